"""Private rows of a factorisation fitted to sampled negatives while the shared table stands still, compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec_app.compiled import njit
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import recency_weights
from fedrec_app.models.base import Factorization, Recommender
from fedrec_app.splitmix import stream_start
from fedrec_app.threads import even_parts, in_threads
from fedrec_app.training import sampling
from fedrec_app.training.logistic import FAST, residual
from fedrec_app.training.plan import FitPlan


def fold_in_kernel(model: Recommender, plan: FitPlan) -> Factorization | None:
    """Returns the model as `fused_fold_in` needs it, or None where that cannot fit its private rows."""
    factors = model.factorization
    sampled = factors is not None and factors.unobserved_weight is None
    plain = plan.device == "cpu" and plan.optimizer == "sgd" and plan.weight_decay == 0
    return factors if sampled and plain else None


def fused_fold_in(
    table: NDArray[np.float32],
    rows: NDArray[np.float32],
    cohort: Cohort,
    users: NDArray[np.int64],
    plan: FitPlan,
    epochs: int,
    base: np.uint64,
    recency: float,
) -> None:
    """Fits the private rows of users by full-batch steps.

    Args:
        table: (num_items, d) shared rows.
        rows: (num_users, d) private rows of the cohort; changed in place.
        cohort, users, plan, epochs: as for `fit_private`.
        base: what samples are drawn from, see `sampling.sampling_base`.
        recency: exponent of `recency_weights`; 0 weighs all alike.
    """
    lengths = cohort.train.lengths[users]
    longest = int(lengths.max(initial=0))
    back = recency_weights(np.array([longest]), longest, recency)[0, ::-1].astype(np.float32)

    def fit(start: int, stop: int) -> None:
        _cohort(
            base, users[start:stop], cohort.keys, cohort.train.indptr, cohort.train.items,
            cohort.never_negative.indptr, cohort.never_negative.items, table, rows,
            np.float32(plan.private_learning_rate), plan.num_negatives, epochs, back,
        )  # fmt: skip

    in_threads(fit, even_parts(lengths))


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
    num_negatives: int,
    epochs: int,
    back: NDArray[np.float32],
) -> None:
    num_items, d = table.shape
    items = np.empty((len(back), 1 + num_negatives), np.int32)
    marks = np.zeros(num_items, np.int32)
    mine, pull = np.empty(d, np.float32), np.empty(d, np.float32)
    for n in range(len(users)):
        user, stamp = int(users[n]), np.int32(n + 1)
        own = positives[indptr[user] : indptr[user + 1]]
        length = len(own)
        allowed = sampling.ban(banned[banned_indptr[user] : banned_indptr[user + 1]], marks, stamp)
        width = 1 if allowed == 0 else 1 + num_negatives
        total = np.float32(0)
        for i in range(length):
            total += back[length - 1 - i]
        for c in range(d):
            mine[c] = rows[user, c]
        for epoch in range(epochs):
            sampling.user_epoch(
                stream_start(base, epoch, keys[user]), own, marks, stamp, allowed, num_negatives, False, items
            )
            for c in range(d):
                pull[c] = 0
            for i in range(length):
                weight = back[length - 1 - i] / (total * width)
                for k in range(width):
                    item = items[i, k]
                    logit = np.float32(0)
                    for c in range(d):
                        logit += mine[c] * table[item, c]
                    slope, _ = residual(logit, np.float32(k == 0))
                    slope *= weight
                    for c in range(d):
                        pull[c] += slope * table[item, c]
            for c in range(d):
                mine[c] -= rate * pull[c]
        for c in range(d):
            rows[user, c] = mine[c]
