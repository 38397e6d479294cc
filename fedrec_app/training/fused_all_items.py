"""Users of a factorisation with the all-items loss: one gradient step of each and the sum in one compiled loop.

What the loss says of every item is the same for all users but for a d x d matrix, so it is added up over users and
multiplied with the table once (Hu, Koren & Volinsky, ICDM 2008, section 4). The norm of a user's gradient, which moves
every item, follows from the Gram matrix of the table in the same way, so clipping needs no table a user either.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedrec_app.compiled import njit
from fedrec_app.models.base import Factorization
from fedrec_app.threads import in_threads
from fedrec_app.training.job import Job


def fused_all_items(job: Job, users: NDArray[np.int64], factors: Factorization) -> None:
    """Trains users who take one step of "sgd" with private rows solved already; the sums change.

    The loss of a user with items S, n of them, row p and table V is 1/2n [sum_S (1 - p.v)^2 + l |v|^2] + a/2n [|V p|^2
    + l |V|^2] + terms of p alone; its gradient 1/n [-(1 - p.v) p + l v] at his items and a/n [V p p' + l V] at all.

    Args:
        job: the fit.
        users: (num_users,) positions.
        factors: the model, with an unobserved weight.
    """
    cohort, plan, sums = job.cohort, job.plan, job.sums
    table, rows = job.shared[factors.item].numpy(), job.rows[factors.user]
    l2, unobserved = factors.regularization, float(factors.unobserved_weight or 0.0)
    losses, weights, norms = np.zeros(len(users)), job.weights(users), np.zeros(len(users))
    wide = table.astype(np.float64)
    gram, lengths = wide.T @ wide, np.square(wide).sum(1)
    factors_of = weights.copy()
    parts = job.parts(users)

    def train(start: int, stop: int) -> tuple[NDArray, NDArray]:
        pull, squares = np.zeros(table.shape), np.zeros_like(gram)
        _cohort(
            users[start:stop], cohort.train.indptr, cohort.train.items, table, rows, gram, lengths, unobserved, l2,
            plan.learning_rate, plan.clip_norm, pull, squares, factors_of[start:stop], losses[start:stop],
            norms[start:stop],
        )  # fmt: skip
        return pull, squares

    found = in_threads(train, parts)
    kept = job.judge_norms(users, norms) if plan.clip_norm else np.ones(len(users), dtype=np.bool_)
    if kept.any():  # else the table itself may not be finite
        scale = unobserved * float((factors_of / cohort.train.lengths[users])[kept].sum())
        gradient, squares = scale * l2 * wide, np.zeros_like(gram)
        for pull, part in found:
            gradient += pull
            squares += part
        sums.delta[factors.item] -= plan.learning_rate * (gradient + unobserved * (wide @ squares))
    if factors.item in sums.count:
        sums.count[factors.item] += weights[kept].sum()
    job.tally(users[kept], losses[kept])


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _cohort(
    users: NDArray[np.int64],
    indptr: NDArray[np.int64],
    items: NDArray[np.int64],
    table: NDArray[np.float32],
    rows: NDArray[np.float32],
    gram: NDArray[np.float64],
    lengths: NDArray[np.float64],
    unobserved: float,
    l2: float,
    rate: float,
    clip_norm: float,
    pull: NDArray[np.float64],
    squares: NDArray[np.float64],
    factors: NDArray[np.float64],
    losses: NDArray[np.float64],
    norms: NDArray[np.float64],
) -> None:
    """Adds the gradients of some users at their own items to `pull`, and their factor/n p p' to `squares`.

    Args:
        users: (n,) positions of those who are trained, each with at least one item.
        indptr, items: of the whole cohort.
        table: (num_items, d) rows v.
        rows: (num_users, d) rows p.
        gram: (d, d) V'V.
        lengths: (num_items,) |v|^2.
        unobserved, l2: a and l of the loss.
        rate: of the step, which makes a delta of a gradient.
        clip_norm: see `FitPlan`.
        pull: (num_items, d) changed.
        squares: (d, d) changed.
        factors: (n,) what the users' deltas are multiplied with; with clipping, their clipping factors come in.
        losses: (n,) mean losses, written.
        norms: (n,) norms of deltas before clipping, written where deltas are clipped; who has none that is finite adds
            nothing.
    """
    num_items, d = table.shape
    mine, missing = np.empty(d), np.empty(0)
    times = np.zeros(num_items if clip_norm > 0 else 0, np.int32)
    trace = 0.0
    for c in range(d):
        trace += gram[c, c]
    for n in range(len(users)):
        user = users[n]
        first, last = indptr[user], indptr[user + 1]
        count = last - first
        if len(missing) < count:
            missing = np.empty(2 * count)
        norm = curve = 0.0
        for c in range(d):
            mine[c] = rows[user, c]
            norm += mine[c] * mine[c]
        for i in range(d):
            for c in range(d):
                curve += mine[i] * gram[i, c] * mine[c]
        loss = 0.0
        for at in range(count):
            item = items[first + at]
            score = 0.0
            for c in range(d):
                score += mine[c] * table[item, c]
            missing[at] = 1.0 - score
            loss += missing[at] * missing[at] + l2 * (lengths[item] + norm)
        losses[n] = 0.5 * (loss + unobserved * (l2 * (trace + num_items * norm) + curve)) / count
        if clip_norm > 0:
            # n times the gradient: a V (p p' + l I) everywhere, and c (l v - m p) at an item that he has c times.
            own = items[first:last]
            for item in own:
                times[item] += 1
            square = unobserved * unobserved * ((norm + 2.0 * l2) * curve + l2 * l2 * trace)
            for at in range(count):
                m, v = missing[at], lengths[own[at]]
                s = 1.0 - m
                both = l2 * s * s + l2 * l2 * v - m * s * norm - l2 * m * s
                alone = l2 * l2 * v - 2.0 * l2 * m * s + m * m * norm
                square += 2.0 * unobserved * both + times[own[at]] * alone
            for item in own:
                times[item] = 0
            if not math.isfinite(square):
                norms[n] = square
                continue
            norms[n] = rate / count * math.sqrt(max(square, 0.0))
            factors[n] *= min(1.0, clip_norm / (norms[n] + 1e-6))
        each = factors[n] / count
        for at in range(count):
            item = items[first + at]
            for c in range(d):
                pull[item, c] += each * (l2 * table[item, c] - missing[at] * mine[c])
        for i in range(d):
            for c in range(d):
                squares[i, c] += each * mine[i] * mine[c]
