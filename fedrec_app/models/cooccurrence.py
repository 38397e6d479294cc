"""How many users met both of two items: the Gram matrix of the users' item sets, which is a sum over users.

As it travels from a node it takes one of two forms, whichever is smaller: the upper triangle with its diagonal, row by
row, or of each row the items that are there. Counts are of the smallest unsigned type that holds them.

    triangle            (n (n + 1) / 2,) counts
    starts, items, counts   (n + 1,) int64, (k,) int32, (k,): row i is items[starts[i]:starts[i + 1]], all at least i,
                        strictly increasing, and their counts
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec_app.compiled import njit
from fedrec_app.data.histories import Histories
from fedrec_app.records import Arrays

TRIANGLE, STARTS, ITEMS, COUNTS = "triangle", "starts", "items", "counts"
MOST_ITEMS = 25_000
"""The triangle of so many items takes 1.25 GB."""
_MOST_USERS = 2**31 - 1


def cooccurrences(histories: Histories, num_items: int) -> Arrays:
    """Returns the counts of some users, as they travel.

    Args:
        histories: their items; one that a user met twice counts once.
        num_items: n, of the catalog.
    """
    sets = _distinct(histories)
    users = Histories.from_rows(sets.items, sets.rows(), num_items)  # of each item, who met it
    lengths = np.zeros(num_items + 1, dtype=np.int64)
    _count_pairs(sets.indptr, sets.items, users.indptr, users.items, lengths)
    starts = np.cumsum(lengths)
    items, counts = np.empty(starts[-1], dtype=np.int32), np.empty(starts[-1], dtype=np.int32)
    _fill_pairs(sets.indptr, sets.items, users.indptr, users.items, starts, items, counts)
    dtype = np.min_scalar_type(int(counts.max(initial=0)))
    size = np.dtype(dtype).itemsize
    if len(counts) * (size + 4) + starts.nbytes < num_items * (num_items + 1) // 2 * size:
        return {STARTS: starts, ITEMS: items, COUNTS: counts.astype(dtype)}
    triangle = np.zeros(num_items * (num_items + 1) // 2, dtype=np.int32)
    _add_rows(triangle, num_items, starts, items, counts)
    return {TRIANGLE: triangle.astype(dtype)}


class Cooccurrences:
    """The sum of what nodes sent.

    Args:
        num_items: n, of the catalog.

    Raises:
        ValueError: the triangle of so many items is too large.
    """

    def __init__(self, num_items: int) -> None:
        if num_items > MOST_ITEMS:
            raise ValueError(f"{num_items} items: counts of pairs are kept for {MOST_ITEMS} at most")
        self.num_items = num_items
        self._triangle = np.zeros(num_items * (num_items + 1) // 2, dtype=np.int32)
        self._num_users = 0

    def add(self, arrays: Arrays, num_users: int) -> None:
        """Adds what a node sent.

        Args:
            arrays: in either form; of a node that may lie.
            num_users: of the node.

        Raises:
            ValueError: these cannot be the counts of so many users' items; nothing was added.
        """
        if self._num_users + num_users > _MOST_USERS:
            raise ValueError(f"{self._num_users + num_users} users in all: {_MOST_USERS} can be counted")
        if set(arrays) == {TRIANGLE}:
            _check(TRIANGLE, arrays[TRIANGLE], self._triangle.shape)
            if _impossible_triangle(arrays[TRIANGLE], self.num_items, num_users):
                raise ValueError(_IMPOSSIBLE.format(num_users))
            self._triangle += arrays[TRIANGLE].astype(np.int32)
            self._num_users += num_users
            return
        if set(arrays) != {STARTS, ITEMS, COUNTS}:
            raise ValueError(f"{sorted(arrays)} where {[TRIANGLE]} or {[COUNTS, ITEMS, STARTS]} is expected")
        starts, items, counts = arrays[STARTS], arrays[ITEMS], arrays[COUNTS]
        _check(STARTS, starts, (self.num_items + 1,), np.int64)
        _check(ITEMS, items, (counts.size,), np.int32)
        _check(COUNTS, counts, (items.size,))
        if starts[0] != 0 or starts[-1] != len(items) or (starts[1:] < starts[:-1]).any():
            raise ValueError(f"{STARTS!r} does not go from 0 up to the {len(items)} counts")
        if _impossible_rows(starts, items, counts, self.num_items, num_users):
            raise ValueError(_IMPOSSIBLE.format(num_users))
        _add_rows(self._triangle, self.num_items, starts, items, counts)
        self._num_users += num_users

    def popularity(self) -> NDArray[np.int64]:
        """Returns (num_items,) how many users met each item."""
        rows = np.arange(self.num_items, dtype=np.int64)
        return self._triangle[rows * self.num_items - rows * (rows - 1) // 2].astype(np.int64)

    def matrix(self, items: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns (k, k) the symmetric matrix of some items.

        Args:
            items: (k,) positions in the catalog, strictly increasing.
        """
        result = np.empty((len(items), len(items)))
        _fill_matrix(self._triangle, self.num_items, items, result)
        return result


def _check(name: str, array: NDArray, shape: tuple[int, ...], dtype: type | None = None) -> None:
    allowed = [np.dtype(dtype)] if dtype else [np.dtype(kind) for kind in (np.uint8, np.uint16, np.uint32)]
    if array.shape != shape or array.dtype not in allowed:
        raise ValueError(f"{name!r} is {array.dtype} of shape {array.shape}, not {allowed[0]} of {shape}")


_IMPOSSIBLE = (
    "counts of pairs that the items of {} users cannot have: every row starts with its item, which at most all users "
    "met, and no pair is met more often than either of its items"
)


def _distinct(histories: Histories) -> Histories:
    """Returns each user's items once, in increasing order."""
    users, items = histories.rows(), histories.items
    order = np.lexsort((items, users))
    users, items = users[order], items[order]
    first = np.ones(len(items), dtype=bool)
    first[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    return Histories.from_rows(users[first], items[first], len(histories))


@njit(cache=True, nogil=True)
def _count_pairs(indptr, items, item_indptr, item_users, lengths):  # type: ignore[no-untyped-def]
    """Writes into (n + 1,) lengths, from 1 on, how many items at least as high each item was met with."""
    last = np.full(len(lengths) - 1, -1, np.int64)
    for i in range(len(lengths) - 1):
        for u in item_users[item_indptr[i] : item_indptr[i + 1]]:
            for at in range(indptr[u + 1] - 1, indptr[u] - 1, -1):
                j = items[at]
                if j < i:
                    break
                if last[j] != i:
                    last[j] = i
                    lengths[i + 1] += 1


@njit(cache=True, nogil=True)
def _fill_pairs(indptr, items, item_indptr, item_users, starts, pairs, counts):  # type: ignore[no-untyped-def]
    """Writes the rows of the upper triangle; arguments as above and as they travel."""
    met = np.zeros(len(starts) - 1, np.int32)
    for i in range(len(starts) - 1):
        number = 0
        row = pairs[starts[i] : starts[i + 1]]
        for u in item_users[item_indptr[i] : item_indptr[i + 1]]:
            for at in range(indptr[u + 1] - 1, indptr[u] - 1, -1):
                j = items[at]
                if j < i:
                    break
                if met[j] == 0:
                    row[number] = j
                    number += 1
                met[j] += 1
        row.sort()
        for k in range(number):
            counts[starts[i] + k] = met[row[k]]
            met[row[k]] = 0


@njit(cache=True, nogil=True)
def _add_rows(triangle, num_items, starts, items, counts):  # type: ignore[no-untyped-def]
    for i in range(num_items):
        base = np.int64(i) * num_items - np.int64(i) * (i - 1) // 2 - i
        for at in range(starts[i], starts[i + 1]):
            triangle[base + items[at]] += np.int32(counts[at])


@njit(cache=True, nogil=True)
def _impossible_rows(starts, items, counts, num_items, num_users):  # type: ignore[no-untyped-def]
    own = np.zeros(num_items, np.int64)
    for i in range(num_items):
        if starts[i] < starts[i + 1]:
            if items[starts[i]] != i:
                return True
            own[i] = counts[starts[i]]
            if own[i] > num_users:
                return True
    for i in range(num_items):
        before = np.int64(i) - 1
        for at in range(starts[i], starts[i + 1]):
            j = np.int64(items[at])
            if j <= before or j >= num_items or np.int64(counts[at]) > min(own[i], own[j]):
                return True
            before = j
    return False


@njit(cache=True, nogil=True)
def _impossible_triangle(triangle, num_items, num_users):  # type: ignore[no-untyped-def]
    own = np.empty(num_items, np.int64)
    at = 0
    for i in range(num_items):
        own[i] = triangle[at]
        if own[i] > num_users:
            return True
        at += num_items - i
    at = 0
    for i in range(num_items):
        for j in range(i, num_items):
            if np.int64(triangle[at]) > min(own[i], own[j]):
                return True
            at += 1
    return False


@njit(cache=True, nogil=True)
def _fill_matrix(triangle, num_items, items, result):  # type: ignore[no-untyped-def]
    for a in range(len(items)):
        i = np.int64(items[a])
        base = i * num_items - i * (i - 1) // 2 - i
        for b in range(a, len(items)):
            result[a, b] = triangle[base + items[b]]
            result[b, a] = result[a, b]
