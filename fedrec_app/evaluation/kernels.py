"""Compiled loops that rank items, user by user, for scores in this processor's memory.

They release the interpreter lock. Positions are not checked here: `ranking` checks them before it calls. What
`tensor_ranking` does on another device is the same, by the same names.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec_app.compiled import njit
from fedrec_app.data.histories import Histories

GROUPS = 128
"""Items i, i + GROUPS, i + 2 GROUPS ... are a group when lists of up to GROUPS / 4 items are made."""


def rank_and_list(
    scores: NDArray[np.floating], known: Histories, held_out: Histories, k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns (num_held_out,) full ranks, (num_users, k) best unknown items, -1 where there are no more, and
    (num_users,) how many candidates have no finite score; with any, ranks and lists mean nothing.

    Args:
        scores: (num_users, num_items) float32 or float64, C-contiguous.
        known: what each user already has: no candidates, but for those held out.
        held_out: what is held out of each user.
        k: length of the lists, or 0 for none.
    """
    ranks = np.empty(len(held_out.items), dtype=np.int64)
    lists = np.full((len(scores), k), -1, dtype=np.int64)
    invalid = np.empty(len(scores), dtype=np.int64)
    _rank_and_list(
        read_only(scores), _largest(scores), read_only(known.indptr), read_only(known.items),
        read_only(held_out.indptr), read_only(held_out.items), ranks, lists, invalid,
    )  # fmt: skip
    return ranks, lists, invalid


def rank_sampled(
    scores: NDArray[np.floating], negatives: NDArray[np.int32], held_out: Histories
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (num_held_out,) ranks among a user's negatives and all his held-out items, and (num_users,) how many
    of these have no finite score.

    Args:
        scores: (num_users, num_items) float32 or float64, C-contiguous.
        negatives: (num_users, num_negatives) item positions, -1 where there is none.
        held_out: what is held out of each user.
    """
    ranks = np.empty(len(held_out.items), dtype=np.int64)
    invalid = np.empty(len(scores), dtype=np.int64)
    _rank_sampled(
        read_only(scores), _largest(scores), read_only(negatives),
        read_only(held_out.indptr), read_only(held_out.items), ranks, invalid,
    )  # fmt: skip
    return ranks, invalid


@njit(nogil=True, cache=True)
def _rank_and_list(scores, largest, known_ptr, known, held_ptr, held, ranks, lists, invalid):
    num_users, num_items = scores.shape
    k = lists.shape[1]
    num_groups = GROUPS * max(-(-4 * k // GROUPS), 1)
    padded = -(-num_items // num_groups) * num_groups
    # A copy of a user's scores that stays in the first cache, in which what is no candidate scores -inf.
    row = np.full(padded, -np.inf, scores.dtype)
    tops = np.empty(num_groups, scores.dtype)
    values = np.empty(k, scores.dtype)
    found = np.empty(padded + 1, np.int64)
    for u in range(num_users):
        mine = known[known_ptr[u] : known_ptr[u + 1]]
        targets = held[held_ptr[u] : held_ptr[u + 1]]
        invalid[u] = num_items - _copy(scores[u], largest, row)
        if invalid[u] > 0:
            # What is known may score anything: a number stands in for it while the others are counted again.
            for item in mine:
                row[item] = 0
            for item in targets:
                row[item] = scores[u, item]
            invalid[u] = num_items - _count_finite(row[:num_items], largest)
        for item in mine:
            row[item] = -np.inf
        for item in targets:
            row[item] = scores[u, item]
        for h in range(held_ptr[u], held_ptr[u + 1]):
            ranks[h] = _count_at_least(row, row[held[h]]) - 1
        if k > 0:
            for item in mine:
                row[item] = -np.inf
            num_found = _not_below_kth_top(row, tops, values, found)
            _sort_best(row, found[:num_found], values, lists[u])


@njit(nogil=True, cache=True)
def _copy(scores, largest, row):
    """Returns how many scores are finite."""
    # 32-bit counters let the compiler take as many floats at once as the processor can.
    count = np.int32(0)
    for i in range(len(scores)):
        score = scores[i]
        row[i] = score
        count = np.int32(count + np.int32(abs(score) <= largest))
    return np.int64(count)


@njit(nogil=True, cache=True)
def _count_at_least(row, threshold):
    count = np.int32(0)
    for i in range(len(row)):
        count = np.int32(count + np.int32(row[i] >= threshold))
    return np.int64(count)


@njit(nogil=True, cache=True)
def _count_finite(row, largest):
    count = np.int32(0)
    for i in range(len(row)):
        count = np.int32(count + np.int32(abs(row[i]) <= largest))
    return np.int64(count)


@njit(nogil=True, cache=True)
def _not_below_kth_top(row, tops, values, found):
    """Writes to `found`, in order, the items that score at least as much as the k-th best group's best item, and
    returns how many: all of the k best items and few others, unless many scores are equal.

    The groups' best items are found with no branch an item, and most groups are never looked into again.
    """
    k, num_groups = len(values), len(tops)
    tops[:] = -np.inf
    for start in range(0, len(row), num_groups):
        part = row[start : start + num_groups]
        for g in range(num_groups):
            score, top = part[g], tops[g]
            tops[g] = score if score > top else top
    values[:] = -np.inf
    for top in tops:
        if top > values[k - 1]:
            place = k - 1
            while place > 0 and values[place - 1] < top:
                values[place] = values[place - 1]
                place -= 1
            values[place] = top
    bound = values[k - 1]
    groups = np.flatnonzero(tops >= bound)
    num_found = 0
    for start in range(0, len(row), num_groups):
        for g in groups:
            found[num_found] = start + g
            num_found += row[start + g] >= bound
    return num_found


@njit(nogil=True, cache=True)
def _sort_best(row, found, values, best):
    """Writes the best of the items found, which stand in order, to `best`; -inf is no score."""
    k = len(best)
    filled = 0
    for item in found:
        score = row[item]
        if score == -np.inf or (filled == k and not score > values[k - 1]):
            continue
        if filled < k:
            filled += 1
        place = filled - 1
        while place > 0 and values[place - 1] < score:
            values[place] = values[place - 1]
            best[place] = best[place - 1]
            place -= 1
        values[place] = score
        best[place] = item


@njit(nogil=True, cache=True)
def _rank_sampled(scores, largest, negatives, held_ptr, held, ranks, invalid):
    drawn = np.empty(negatives.shape[1], scores.dtype)
    for u in range(len(scores)):
        num_drawn = 0
        for item in negatives[u]:
            if item >= 0:
                drawn[num_drawn] = scores[u, item]
                num_drawn += 1
        targets = held[held_ptr[u] : held_ptr[u + 1]]
        invalid[u] = num_drawn - _count_finite(drawn[:num_drawn], largest)
        for item in targets:
            invalid[u] += not abs(scores[u, item]) <= largest
        for h in range(held_ptr[u], held_ptr[u + 1]):
            score = scores[u, held[h]]
            rank = _count_at_least(drawn[:num_drawn], score) - 1
            for item in targets:
                rank += scores[u, item] >= score
            ranks[h] = rank


def _largest(scores: NDArray[np.floating]) -> np.floating:
    return np.finfo(scores.dtype).max


def read_only(array: NDArray) -> NDArray:
    """Returns a view that may not be written to: with other arrays too, the loops would be compiled once for every
    combination of those that may and may not."""
    view = array.view()
    view.flags.writeable = False
    return view
