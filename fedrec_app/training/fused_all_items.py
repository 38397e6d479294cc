"""Users of a factorisation with the all-items loss: one gradient step of each and the sum in one compiled loop.

What the loss says of every item is the same for all users but for a d x d matrix, so it is added up over users and
multiplied with the table once (Hu, Koren & Volinsky, ICDM 2008, section 4).
"""

from __future__ import annotations

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
    losses, weights = np.zeros(len(users)), job.weights(users)
    wide = table.astype(np.float64)
    gram = wide.T @ wide
    parts = job.parts(users)

    def train(start: int, stop: int) -> tuple[NDArray, NDArray]:
        pull, squares = np.zeros(table.shape), np.zeros_like(gram)
        _cohort(
            users[start:stop], cohort.train.indptr, cohort.train.items, table, rows, gram, unobserved, l2,
            weights[start:stop], pull, squares, losses[start:stop],
        )  # fmt: skip
        return pull, squares

    scale = unobserved * float((weights / cohort.train.lengths[users]).sum())
    gradient, squares = scale * l2 * wide, np.zeros_like(gram)
    for pull, part in in_threads(train, parts):
        gradient += pull
        squares += part
    sums.delta[factors.item] -= plan.learning_rate * (gradient + unobserved * (wide @ squares))
    if factors.item in sums.count:
        sums.count[factors.item] += weights.sum()
    job.tally(users, losses)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _cohort(
    users: NDArray[np.int64],
    indptr: NDArray[np.int64],
    items: NDArray[np.int64],
    table: NDArray[np.float32],
    rows: NDArray[np.float32],
    gram: NDArray[np.float64],
    unobserved: float,
    l2: float,
    weights: NDArray[np.float64],
    pull: NDArray[np.float64],
    squares: NDArray[np.float64],
    losses: NDArray[np.float64],
) -> None:
    """Adds the gradients of some users at their own items to `pull`, and their w/n p p' to `squares`; writes losses."""
    num_items, d = table.shape
    mine = np.empty(d)
    trace = 0.0
    for c in range(d):
        trace += gram[c, c]
    for n in range(len(users)):
        user = users[n]
        first, last = indptr[user], indptr[user + 1]
        each = weights[n] / (last - first)
        norm = 0.0
        for c in range(d):
            mine[c] = rows[user, c]
            norm += mine[c] * mine[c]
        loss = 0.0
        for at in range(first, last):
            item = items[at]
            score = square = 0.0
            for c in range(d):
                value = np.float64(table[item, c])
                score += mine[c] * value
                square += value * value
            missing = 1.0 - score
            loss += missing * missing + l2 * (square + norm)
            for c in range(d):
                pull[item, c] += each * (l2 * table[item, c] - missing * mine[c])
        everywhere = l2 * (trace + num_items * norm)
        for i in range(d):
            for c in range(d):
                everywhere += mine[i] * gram[i, c] * mine[c]
                squares[i, c] += each * mine[i] * mine[c]
        losses[n] = 0.5 * (loss + unobserved * everywhere) / (last - first)
