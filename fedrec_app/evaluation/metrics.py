"""Ranking metrics of single users with binary relevance, and the numbers that a run reports.

Definitions follow ranx (Bassani, "ranx: A Blazing-Fast Python Library for Ranking Evaluation and Comparison",
ECIR 2022). With R_u the held-out items of user u and r the 0-based rank of one of them:

    hits@k       number of held-out items with r < k
    hr@k         1 if hits@k > 0
    recall@k     hits@k / |R_u|
    precision@k  hits@k / k, also where the user has fewer than k candidates
    f1@k         harmonic mean of the user's precision@k and recall@k, 0 if both are 0
    mrr@k        1 / (r + 1) of the first hit, 0 without one
    ndcg@k       sum of 1 / log2(r + 2) over hits, over its largest possible value with min(|R_u|, k) hits
                 (Jarvelin and Kekalainen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedrec_app.compiled import njit
from fedrec_app.data.stats import gini
from fedrec_app.errors import DataError, unknown
from fedrec_app.evaluation.kernels import read_only
from fedrec_app.evaluation.sums import SAMPLED, MetricSums

METRICS = ("hr", "ndcg", "recall", "precision", "f1", "mrr")
_HR, _NDCG, _RECALL, _PRECISION, _F1, _MRR = range(len(METRICS))
SAMPLED_METRICS = ("hr", "ndcg")


def metric_names(ks: Sequence[int], metrics: Sequence[str] = METRICS, prefix: str = "") -> tuple[str, ...]:
    """Returns "hr@5", "hr@10", ..., "mrr@20": metric by metric, each with every k in the order given.

    Args:
        ks: cut-offs, distinct, each at least 1.
        metrics: which ones, of METRICS.
        prefix: "sampled/" for metrics among drawn negatives.

    Raises:
        ValueError: a k below 1 or given twice.
    """
    if any(int(k) != k or k < 1 for k in ks) or len(set(ks)) != len(ks):
        raise ValueError(f"cut-offs {list(ks)}: must be distinct whole numbers, each at least 1")
    return tuple(f"{prefix}{metric}@{int(k)}" for metric in metrics for k in ks)


def user_metrics(
    ranks: NDArray[np.int64], num_held_out: NDArray[np.int64], names: Sequence[str]
) -> NDArray[np.float64]:
    """Returns (num_users, len(names)) the metrics of each user; all 0 for a user with nothing held out.

    >>> user_metrics(np.array([0, 12]), np.array([1, 1]), ["hr@10", "mrr@10"]).tolist()
    [[1.0, 1.0], [0.0, 0.0]]

    Args:
        ranks: (num_held_out.sum(),) 0-based ranks, those of user 0 first.
        num_held_out: (num_users,) how many of the ranks belong to each user.
        names: such as "ndcg@10"; a prefix that ends in "/" is ignored.

    Raises:
        ValueError: unknown names, or ranks that do not match num_held_out.
    """
    num_users = len(num_held_out)
    if len(ranks) != num_held_out.sum():
        raise ValueError(f"{len(ranks)} ranks for {num_held_out.sum()} held-out items")
    metrics, ks = _parse(tuple(names))
    values = np.empty((num_users, len(names)))
    _fill(ranks, num_held_out, metrics, ks, values)
    return values


@njit(nogil=True, cache=True)
def _fill(ranks, num_held_out, metrics, ks, values):
    start = 0
    for u, count in enumerate(num_held_out):
        mine = ranks[start : start + count]
        start += count
        for column in range(len(metrics)):
            metric, k = metrics[column], ks[column]
            hits, gain, best = 0, 0.0, k
            for rank in mine:
                if rank < k:
                    hits += 1
                    best = min(best, rank)
                    if metric == _NDCG:
                        gain += 1.0 / math.log2(rank + 2.0)
            value = 0.0
            if hits > 0:
                if metric == _HR:
                    value = 1.0
                elif metric == _NDCG:
                    ideal = 0.0
                    for place in range(min(count, k)):
                        ideal += 1.0 / math.log2(place + 2.0)
                    # Rounding in the sums may put a perfect list a hair above 1.
                    value = min(gain / ideal, 1.0)
                elif metric == _RECALL:
                    value = hits / count
                elif metric == _PRECISION:
                    value = hits / k
                elif metric == _F1:
                    # 2pr / (p + r) with p = hits / k and r = hits / n is 2 hits / (k + n).
                    value = 2.0 * hits / (k + count)
                elif metric == _MRR:
                    value = 1.0 / (best + 1.0)
            values[u, column] = value


def weighted_sums(values: NDArray[np.float64], weights: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns (1 + num_bootstrap, num_values) the sums over users, then those with each column of weights.

    Added up user by user: a matrix product is no slower, but its rounding depends on the number of threads.

    Args:
        values: (num_users, num_values).
        weights: (num_users, num_bootstrap).
    """
    sums = np.zeros((values.shape[1], 1 + weights.shape[1]))
    _add(values, read_only(np.ascontiguousarray(weights)), sums)
    return np.ascontiguousarray(sums.T)


@njit(nogil=True, cache=True)
def _add(values, weights, sums):
    mine = np.ones(1 + weights.shape[1])
    for u in range(len(values)):
        for b in range(weights.shape[1]):
            mine[1 + b] = weights[u, b]
        for column in range(values.shape[1]):
            value, total = values[u, column], sums[column]
            if value != 0.0:
                for b in range(len(mine)):
                    total[b] += mine[b] * value


def finalise(sums: MetricSums, popularity: ArrayLike | None = None) -> dict[str, Any]:
    """Returns what a run reports: counts, means over users, beyond-accuracy metrics and confidence intervals.

    Counts are always there: `num_users`, `num_without_held_out`, `num_held_out`, `num_short_negatives`. If
    there is at least one user, so are, as floats, every metric's mean and, with lists of k items,

        coverage@k    share of the catalog that stands in at least one user's list
        gini@k        Gini coefficient of how often each item of the catalog is listed: 0 all alike, near 1 few
        popularity@k  with `popularity`: mean, over all entries of all lists, of the item's popularity percentile,
                      which is the share of the other items that are less popular, half of the equally popular
                      ones included: 0.5 for random lists, 1 for nothing but the most popular item. ARP of
                      Abdollahpouri et al., "Managing Popularity Bias in Recommender Systems with Personalized
                      Re-ranking", FLAIRS 2019, with percentiles for raw counts, so that catalogs compare
        ci            with bootstrap rows and at least two users: {metric: [low, high]}, 95 % percentile
                      interval over the rows (Poisson bootstrap: Chamandy et al., "Estimating Uncertainty for
                      Massive Data Streams", Google 2012)

    What does not apply is absent; nothing is ever NaN.

    Args:
        sums: over all users of all nodes.
        popularity: (num_items,) how often each item stands in train data.

    Raises:
        DataError: popularity of another shape, negative, or not finite.
    """
    result: dict[str, Any] = {
        "num_users": sums.num_users,
        "num_without_held_out": sums.num_without_held_out,
        "num_held_out": sums.num_held_out,
        "num_short_negatives": sums.num_short_negatives,
    }
    if sums.num_users == 0:
        return result
    means = sums.sums[0, :-1] / sums.sums[0, -1]
    result |= dict(zip(sums.names, means.tolist(), strict=True))
    counts, k = sums.item_counts, sums.list_length
    listed = int(counts.sum())
    if listed:
        result[f"coverage@{k}"] = float(np.mean(counts > 0))
        result[f"gini@{k}"] = gini(counts)
        if popularity is not None:
            result[f"popularity@{k}"] = float(counts @ popularity_percentiles(popularity, len(counts)) / listed)
    replicates = sums.sums[1:][sums.sums[1:, -1] > 0]
    if len(replicates) and sums.num_users > 1:
        low, high = np.percentile(replicates[:, :-1] / replicates[:, -1:], [2.5, 97.5], axis=0)
        result["ci"] = {name: [float(a), float(b)] for name, a, b in zip(sums.names, low, high, strict=True)}
    return result


def popularity_percentiles(popularity: ArrayLike, num_items: int) -> NDArray[np.float64]:
    """Returns (num_items,) the share of the other items that are less popular, ties half; 0.5 if alone.

    Args:
        popularity: (num_items,) counts.
        num_items: size of the catalog.

    Raises:
        DataError: popularity of another shape, negative, or not finite.
    """
    counts = np.asarray(popularity, dtype=np.float64)
    if counts.shape != (num_items,) or not np.isfinite(counts).all() or (counts < 0).any():
        raise DataError(f"popularity of shape {counts.shape}: must be ({num_items},) finite counts, none negative")
    if num_items == 1:
        return np.array([0.5])
    ordered = np.sort(counts)
    less = np.searchsorted(ordered, counts, side="left")
    not_more = np.searchsorted(ordered, counts, side="right")
    return (less + 0.5 * (not_more - less - 1)) / (num_items - 1)


@lru_cache(maxsize=64)
def _parse(names: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    metrics, ks = [], []
    for name in names:
        metric, _, k = name.removeprefix(SAMPLED).partition("@")
        if metric not in METRICS:
            raise ValueError(unknown("metric", metric, METRICS))
        if not k.isdecimal() or int(k) < 1:
            raise ValueError(f"metric {name!r}: must end in '@' and a whole number of at least 1, such as 'ndcg@10'")
        metrics.append(METRICS.index(metric))
        ks.append(int(k))
    return np.array(metrics, dtype=np.int64), np.array(ks, dtype=np.int64)
