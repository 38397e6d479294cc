"""The baselines of evaluation: a loop over users, as published code evaluates.

`by_heap` is the loop of the authors' code of NCF (He et al., WWW 2017, `evaluate.py`) and NGCF (Wang et al., SIGIR
2019, `batch_test.py`), which many papers started from: a dictionary from item to score, `heapq.nlargest`, and metrics
from the list of hits. `by_argsort` is what one writes with numpy today, and much faster.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Scores = Callable[[int], NDArray[np.float32]]
"""From a user to the (num_items,) scores of all items, which may be changed."""


def by_heap(
    scores_of: Scores, known: Sequence[list[int]], held_out: NDArray[np.int64], num_items: int, ks: list[int]
) -> NDArray[np.float64]:
    """Returns mean hr@k of all k, then mean ndcg@k of all k.

    Args:
        scores_of: the model.
        known: what each user already has, which is never listed.
        held_out: (num_users,) the item to find for each user.
        num_items: size of the catalog.
        ks: lengths of lists.
    """
    all_items = set(range(num_items))
    sums = np.zeros(2 * len(ks))
    for user, target in enumerate(held_out):
        rating = scores_of(user)
        item_score = {}
        for item in all_items - set(known[user]):
            item_score[item] = rating[item]
        best = heapq.nlargest(max(ks), item_score, key=item_score.get)
        sums += _metrics([int(item == target) for item in best], ks)
    return sums / len(held_out)


def by_argsort(
    scores_of: Scores, known: Sequence[NDArray[np.int64]], held_out: NDArray[np.int64], num_items: int, ks: list[int]
) -> NDArray[np.float64]:
    """Returns what `by_heap` returns, by sorting the scores."""
    sums = np.zeros(2 * len(ks))
    for user, target in enumerate(held_out):
        rating = scores_of(user)
        rating[known[user]] = -np.inf
        best = np.argsort(-rating)[: max(ks)]
        sums += _metrics([int(item == target) for item in best], ks)
    return sums / len(held_out)


def _metrics(hits: list[int], ks: list[int]) -> NDArray[np.float64]:
    rate = [float(np.sum(hits[:k]) > 0) for k in ks]
    return np.array(rate + [_ndcg(hits, k) for k in ks])


def _ndcg(hits: list[int], k: int) -> float:
    best = _dcg(sorted(hits, reverse=True), k)
    return _dcg(hits, k) / best if best else 0.0


def _dcg(hits: list[int], k: int) -> float:
    gains = np.asarray(hits, dtype=float)[:k]
    return float(np.sum(gains / np.log2(np.arange(2, gains.size + 2))))
