"""Users of a factorisation with sampled negatives: samples, local SGD, clipping and the sum in one compiled loop.

A user touches only the rows of the items that he meets, so his cost does not depend on the catalog. A worker thread
needs one table for the sum and three numbers an item, however many users there are. It is FedAvg's client (McMahan
et al., AISTATS 2017, Algorithm 1) with mini-batch SGD on binary cross-entropy (Neural Collaborative Filtering, He et
al., WWW 2017, equation 7).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedrec_app.compiled import njit
from fedrec_app.models.base import Factorization
from fedrec_app.splitmix import stream_start
from fedrec_app.threads import in_threads
from fedrec_app.training import sampling
from fedrec_app.training.fused_all_items import fused_all_items
from fedrec_app.training.job import Job
from fedrec_app.training.logistic import FAST, residual

_LOGS = 512
"""Factors of at most 2 that are multiplied before one logarithm is taken: far below the largest float64."""


def has_kernel(job: Job, users: NDArray[np.int64]) -> bool:
    """Returns whether this fit of these users can be done by `fused`."""
    plan, factors = job.plan, job.model.factorization
    if factors is None or plan.device != "cpu" or plan.optimizer != "sgd" or plan.weight_decay or plan.max_grad_norm:
        return False
    if plan.part is not None and (plan.part.changes_gradients() or plan.part.weighed_by_outcome):
        return False
    if factors.unobserved_weight is None:
        return plan.proximal_mu == 0
    return job.model.solves_private and plan.part is None and bool((job.steps(users) == 1).all())


def fused(job: Job, users: NDArray[np.int64]) -> None:
    """Trains users; the sums and their private rows change.

    Args:
        job: the fit, for which `has_kernel` holds.
        users: (num_users,) positions.

    Raises:
        ValueError: there is no kernel for this fit.
    """
    factors = job.model.factorization
    if factors is None or not has_kernel(job, users):
        raise ValueError(f"there is no kernel for model {job.model.name!r} with {job.plan}")
    if factors.unobserved_weight is None:
        _fused_samples(job, users, factors)
    else:
        fused_all_items(job, users, factors)


def _fused_samples(job: Job, users: NDArray[np.int64], factors: Factorization) -> None:
    user_name, item_name = factors.user, factors.item
    cohort, plan, sums = job.cohort, job.plan, job.sums
    table = job.shared[item_name].numpy()
    losses, weights, factors_of = np.zeros(len(users)), job.weights(users), job.factors(users)
    norms = np.zeros(len(users))
    counts = item_name in sums.count
    parts = job.parts(users)

    def train(start: int, stop: int) -> tuple[NDArray, NDArray]:
        alone = len(parts) == 1
        delta = sums.delta[item_name] if alone else np.zeros(table.shape)
        count = (sums.count[item_name] if alone else np.zeros(len(table))) if counts else np.zeros(0)
        _cohort(
            job.base, users[start:stop], cohort.keys, cohort.train.indptr, cohort.train.items,
            cohort.never_negative.indptr, cohort.never_negative.items, table, job.rows[user_name],
            np.float32(plan.learning_rate), np.float32(plan.private_learning_rate if job.moves_private else 0.0),
            plan.num_negatives, plan.local_epochs, plan.batch_size, weights[start:stop], factors_of[start:stop],
            plan.clip_norm, delta, count, losses[start:stop], norms[start:stop],
        )  # fmt: skip
        return delta, count

    for delta, count in in_threads(train, parts):
        if len(parts) > 1:
            sums.delta[item_name] += delta
            if counts:
                sums.count[item_name] += count
    kept = job.judge_norms(users, norms) if plan.clip_norm else slice(None)
    job.tally(users[kept], losses[kept])


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _cohort(
    base: np.uint64,
    users: NDArray[np.int64],
    keys: NDArray[np.uint64],
    indptr: NDArray[np.int64],
    positives: NDArray[np.int64],
    banned_indptr: NDArray[np.int64],
    banned: NDArray[np.int64],
    table: NDArray[np.float32],
    rows: NDArray[np.float32],
    rate: np.float32,
    private_rate: np.float32,
    num_negatives: int,
    epochs: int,
    batch_size: int,
    weights: NDArray[np.float64],
    factors: NDArray[np.float64],
    clip_norm: float,
    delta: NDArray[np.float64],
    count: NDArray[np.float64],
    losses: NDArray[np.float64],
    norms: NDArray[np.float64],
) -> None:
    """Trains some users of a cohort one after the other.

    Args:
        base: see `sampling.sampling_base`.
        users: (n,) positions of those who are trained, each with at least one positive.
        keys, indptr, positives, banned_indptr, banned: of the whole cohort.
        table: (num_items, d) shared rows.
        rows: (num_users, d) private rows; changed in place.
        rate, private_rate, num_negatives, epochs, batch_size: see `FitPlan`.
        weights: (n,) of the users, for `count`.
        factors: (n,) what their deltas are multiplied with.
        clip_norm: see `FitPlan`.
        delta: (num_items, d) what deltas are added to.
        count: (num_items,) what weights are added to at items that were met, or (0,).
        losses: (n,) mean losses, written.
        norms: (n,) norms of deltas before clipping, written where deltas are clipped; who has none that is finite adds
            nothing.
    """
    num_items, d = table.shape
    longest = 0
    for user in users:
        longest = max(longest, indptr[user + 1] - indptr[user])
    items = np.empty((longest, 1 + num_negatives), np.int32)
    residuals = np.empty(items.size, np.float32)
    most = min(num_items, items.size * epochs)
    met = np.empty(most, np.int32)
    marks, met_by, place = np.zeros(num_items, np.int32), np.zeros(num_items, np.int32), np.empty(num_items, np.int32)
    slopes = np.empty(most, np.float32)
    # Copies of rows are made only by users who take several steps.
    copies = np.empty((0, d), np.float32)
    mine, start, pull = np.empty(d, np.float32), np.empty(d, np.float32), np.empty(d, np.float32)
    for n in range(len(users)):
        user, stamp = int(users[n]), np.int32(n + 1)
        own = positives[indptr[user] : indptr[user + 1]]
        length = len(own)
        size = batch_size if batch_size > 0 else length
        one_step = epochs == 1 and size >= length
        if not one_step and len(copies) == 0:
            copies = np.empty((most, d), np.float32)
        allowed = sampling.ban(banned[banned_indptr[user] : banned_indptr[user + 1]], marks, stamp)
        width = 1 if allowed == 0 else 1 + num_negatives
        num_met = 0
        loss = 0.0
        for c in range(d):
            mine[c] = start[c] = rows[user, c]
        for epoch in range(epochs):
            sampling.user_epoch(
                stream_start(base, epoch, keys[user]), own, marks, stamp, allowed, num_negatives, True, items
            )
            for at in range(0, length, size):
                stop = min(at + size, length)
                scale = np.float32(1.0 / ((stop - at) * width))
                product, terms = 1.0, 0
                for c in range(d):
                    pull[c] = 0
                for i in range(at, stop):
                    for k in range(width):
                        item = items[i, k]
                        if met_by[item] != stamp:
                            met_by[item], place[item], met[num_met] = stamp, num_met, item
                            slopes[num_met] = 0
                            if not one_step:
                                for c in range(d):
                                    copies[num_met, c] = table[item, c]
                            num_met += 1
                        p = place[item]
                        row = table[item] if one_step else copies[p]
                        logit = np.float32(0)
                        for c in range(d):
                            logit += mine[c] * row[c]
                        slope, small = residual(logit, np.float32(k == 0))
                        slope *= scale
                        # log(1 + e^x) = max(x, 0) + log(1 + e^-|x|); logarithms are taken of products.
                        loss += max(logit, np.float32(0)) - (logit if k == 0 else np.float32(0))
                        product *= 1.0 + small
                        terms += 1
                        if terms % _LOGS == 0:
                            loss += math.log(product)
                            product = 1.0
                        for c in range(d):
                            pull[c] += slope * row[c]
                        if one_step:
                            slopes[p] += slope
                        else:
                            residuals[i * width + k] = slope
                loss += math.log(product)
                if not one_step:
                    for i in range(at, stop):
                        for k in range(width):
                            p = place[items[i, k]]
                            change = rate * residuals[i * width + k]
                            for c in range(d):
                                copies[p, c] -= change * mine[c]
                for c in range(d):
                    mine[c] -= private_rate * pull[c]
        losses[n] = loss / (epochs * length * width)
        factor = factors[n]
        if clip_norm > 0:
            square = 0.0
            if one_step:  # slopes times one row
                of_slopes = of_row = 0.0
                for p in range(num_met):
                    change = np.float64(rate * slopes[p])
                    of_slopes += change * change
                for c in range(d):
                    of_row += np.float64(start[c]) * np.float64(start[c])
                square = of_slopes * of_row
            else:
                for p in range(num_met):
                    for c in range(d):
                        change = np.float64(copies[p, c] - table[met[p], c])
                        square += change * change
            norms[n] = math.sqrt(square)
            if not math.isfinite(square):
                continue
            factor *= min(1.0, clip_norm / (norms[n] + 1e-6))
        for p in range(num_met):
            item = met[p]
            if one_step:
                change = np.float32(-rate * slopes[p])
                for c in range(d):
                    delta[item, c] += factor * np.float64(change * start[c])
            else:
                for c in range(d):
                    delta[item, c] += factor * np.float64(copies[p, c] - table[item, c])
            if len(count):
                count[item] += weights[n]
        for c in range(d):
            rows[user, c] = mine[c]
