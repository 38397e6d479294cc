"""Compiled loops that rank items: one pass over a block of scores, no copies of it.

Positions are not checked here: `ranking` checks them before it calls.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

CHUNK = 64


@njit(nogil=True, cache=True)
def _count_at_least(row, threshold):
    # 32-bit counters let the compiler compare as many floats at once as the processor can.
    count = np.int32(0)
    for i in range(len(row)):
        count = np.int32(count + np.int32(row[i] >= threshold))
    return count


@njit(nogil=True, cache=True)
def _count_finite(row, largest):
    count = np.int32(0)
    for i in range(len(row)):
        count = np.int32(count + np.int32(abs(row[i]) <= largest))
    return count


@njit(nogil=True, cache=True)
def full_ranks(
    scores: NDArray[np.floating],
    largest: np.floating,
    known_ptr: NDArray[np.int64],
    known: NDArray[np.int64],
    held_ptr: NDArray[np.int64],
    held: NDArray[np.int64],
    ranks: NDArray[np.int64],
    invalid: NDArray[np.int64],
) -> None:
    """Writes the rank of each held-out item and how many candidates of each user have no finite score.

    Args:
        scores: (num_users, num_items) float32 or float64, C-contiguous.
        largest: the largest finite number of the same dtype.
        known_ptr, known: what each user already has, compressed as in `Histories`.
        held_ptr, held: what is held out of each user.
        ranks: (num_held_out,) written.
        invalid: (num_users,) written.
    """
    num_users, num_items = scores.shape
    mark = np.zeros(num_items, np.int64)
    excluded = np.empty(num_items, np.int64)
    for u in range(num_users):
        row = scores[u]
        stamp = u + 1
        for h in range(held_ptr[u], held_ptr[u + 1]):
            mark[held[h]] = stamp
        num_excluded = 0
        for j in range(known_ptr[u], known_ptr[u + 1]):
            if mark[known[j]] != stamp:
                mark[known[j]] = stamp
                excluded[num_excluded] = known[j]
                num_excluded += 1
        finite = np.int64(_count_finite(row, largest))
        for e in range(num_excluded):
            finite -= abs(row[excluded[e]]) <= largest
        invalid[u] = num_items - num_excluded - finite
        for h in range(held_ptr[u], held_ptr[u + 1]):
            score = row[held[h]]
            at_least = np.int64(_count_at_least(row, score))
            for e in range(num_excluded):
                at_least -= row[excluded[e]] >= score
            ranks[h] = at_least - 1


@njit(nogil=True, cache=True)
def sampled_ranks(
    scores: NDArray[np.floating],
    largest: np.floating,
    negatives: NDArray[np.integer],
    held_ptr: NDArray[np.int64],
    held: NDArray[np.int64],
    ranks: NDArray[np.int64],
    invalid: NDArray[np.int64],
) -> None:
    """Writes ranks among a user's drawn negatives and all his held-out items; arguments as in `full_ranks`.

    Args:
        negatives: (num_users, num_negatives) item positions, -1 where there is none.
    """
    for u in range(scores.shape[0]):
        row = scores[u]
        bad = 0
        for j in range(negatives.shape[1]):
            if negatives[u, j] >= 0 and not abs(row[negatives[u, j]]) <= largest:
                bad += 1
        for h in range(held_ptr[u], held_ptr[u + 1]):
            score = row[held[h]]
            if not abs(score) <= largest:
                bad += 1
            rank = -1
            for j in range(negatives.shape[1]):
                if negatives[u, j] >= 0 and row[negatives[u, j]] >= score:
                    rank += 1
            for other in range(held_ptr[u], held_ptr[u + 1]):
                if row[held[other]] >= score:
                    rank += 1
            ranks[h] = rank
        invalid[u] = bad


@njit(nogil=True, cache=True)
def best_items(
    scores: NDArray[np.floating],
    largest: np.floating,
    known_ptr: NDArray[np.int64],
    known: NDArray[np.int64],
    lists: NDArray[np.int64],
    invalid: NDArray[np.int64],
) -> None:
    """Writes each user's best unknown items, best first; arguments as in `full_ranks`.

    Args:
        lists: (num_users, k) filled with -1, k at least 1 and at most num_items; written.
    """
    num_users, num_items = scores.shape
    k = lists.shape[1]
    mark = np.zeros(num_items, np.int64)
    values = np.empty(k, scores.dtype)
    for u in range(num_users):
        row = scores[u]
        stamp = u + 1
        candidates = num_items
        finite = np.int64(_count_finite(row, largest))
        for j in range(known_ptr[u], known_ptr[u + 1]):
            if mark[known[j]] != stamp:
                mark[known[j]] = stamp
                candidates -= 1
                finite -= abs(row[known[j]]) <= largest
        invalid[u] = candidates - finite
        filled = 0
        for start in range(0, num_items, CHUNK):
            stop = min(start + CHUNK, num_items)
            # Most chunks hold nothing better than the list's last entry: see so without a branch an item.
            if filled == k:
                worst = values[k - 1]
                better = np.int32(0)
                for i in range(start, stop):
                    better = np.int32(better + np.int32(row[i] > worst))
                if better == 0:
                    continue
            for i in range(start, stop):
                score = row[i]
                if mark[i] == stamp or (filled == k and not score > values[k - 1]):
                    continue
                if filled < k:
                    filled += 1
                place = filled - 1
                while place > 0 and values[place - 1] < score:
                    values[place] = values[place - 1]
                    lists[u, place] = lists[u, place - 1]
                    place -= 1
                values[place] = score
                lists[u, place] = i
