"""Training samples, drawn from (seed, round, epoch, user) and nothing else.

The generator is SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) started from a mix of those four numbers, so that any
engine, in any order and on any node, draws the same negatives and the same shuffle for a user.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec_app.compiled import njit
from fedrec_app.data.histories import Histories
from fedrec_app.seeding import stream_base
from fedrec_app.splitmix import GOLDEN, below, stream_start, uniform


@njit(cache=True, nogil=True)
def ban(items: NDArray[np.int64], marks: NDArray[np.int32], stamp: np.int32) -> int:
    """Returns how many items a user may draw as negatives, having put his stamp on the others."""
    allowed = len(marks)
    for item in items:
        if marks[item] != stamp:
            marks[item] = stamp
            allowed -= 1
    return allowed


@njit(cache=True, nogil=True)
def user_epoch(
    start: np.uint64,
    positives: NDArray[np.int64],
    marks: NDArray[np.int32],
    stamp: np.int32,
    num_allowed: int,
    num_negatives: int,
    shuffle: bool,
    items: NDArray[np.integer],
) -> None:
    """Fills one user's epoch: shuffled positives, each followed by its negatives.

    Args:
        start: from `stream_start`.
        positives: (n,) the user's training items.
        marks: (num_items,) `stamp` at items that are never negatives of this user; see `ban`.
        stamp: of this user.
        num_allowed: how many items are not banned; with none, the negatives repeat the positive (and weigh nothing).
        num_negatives: k, drawn for each positive, uniformly and with replacement.
        shuffle: whether positives are shuffled; else they stay oldest first.
        items: (n, 1 + k) the output.
    """
    state = start
    n = len(positives)
    num_items = len(marks)
    for i in range(n):
        items[i, 0] = positives[i]
    for i in range(n - 1 if shuffle else 0, 0, -1):
        state += GOLDEN
        j = below(state, i + 1)
        items[i, 0], items[j, 0] = items[j, 0], items[i, 0]
    for i in range(n):
        for k in range(num_negatives):
            if num_allowed == 0:
                items[i, 1 + k] = items[i, 0]
                continue
            while True:
                state += GOLDEN
                candidate = below(state, num_items)
                if marks[candidate] != stamp:
                    items[i, 1 + k] = candidate
                    break


@njit(cache=True, nogil=True)
def _fill(
    base: np.uint64,
    epoch: int,
    keys: NDArray[np.uint64],
    indptr: NDArray[np.int64],
    positives: NDArray[np.int64],
    banned_indptr: NDArray[np.int64],
    banned_items: NDArray[np.int64],
    num_items: int,
    num_negatives: int,
    shuffle: bool,
    out: NDArray[np.int64],
    full: NDArray[np.bool_],
) -> None:
    marks = np.zeros(num_items, dtype=np.int32)
    for u in range(len(keys)):
        stamp = np.int32(u + 1)
        allowed = ban(banned_items[banned_indptr[u] : banned_indptr[u + 1]], marks, stamp)
        full[u] = allowed == 0
        user_epoch(
            stream_start(base, epoch, keys[u]),
            positives[indptr[u] : indptr[u + 1]],
            marks,
            stamp,
            allowed,
            num_negatives,
            shuffle,
            out[indptr[u] : indptr[u + 1]],
        )


def sampling_base(seed: int, server_round: int, purpose: str) -> np.uint64:
    """Returns 64 bits for (seed, round, purpose); users and epochs are mixed in by `draw_epoch`."""
    return stream_base(seed, "samples", purpose, server_round)


@njit(cache=True, nogil=True)
def one_number(base: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Returns (num_users,) one number from [0, 1) a user.

    Args:
        base: from `sampling_base`.
        keys: (num_users,) keys of users.
    """
    numbers = np.empty(len(keys))
    for u in range(len(keys)):
        numbers[u] = uniform(stream_start(base, 0, keys[u]))
    return numbers


def draw_epoch(
    base: np.uint64,
    epoch: int,
    keys: NDArray[np.uint64],
    train: Histories,
    never_negative: Histories,
    num_items: int,
    num_negatives: int,
    shuffle: bool = True,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns (num_rows, 1 + num_negatives) items, the user's rows where `train` has them: a shuffled positive and
    its negatives; and (num_users,) whether a user has no item left for negatives (they repeat the positive then,
    and must weigh nothing).

    Args:
        base: from `sampling_base`.
        epoch: the pass over the interactions.
        keys: (num_users,) keys of the users.
        train: their positives.
        never_negative: items that are not drawn for them.
        num_items: size of the catalog.
        num_negatives: drawn for each positive.
        shuffle: whether a user's positives are shuffled; else they stay oldest first.
    """
    out = np.empty((len(train.items), 1 + num_negatives), dtype=np.int64)
    full = np.zeros(len(keys), dtype=np.bool_)
    _fill(
        base, epoch, keys, train.indptr, train.items, never_negative.indptr, never_negative.items,
        num_items, num_negatives, shuffle, out, full,
    )  # fmt: skip
    return out, full


@njit(cache=True, nogil=True)
def rename(
    samples: NDArray[np.int64], indptr: NDArray[np.int64], epochs: int, num_items: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the items that each group of rows holds, compressed as in `Histories`; items in `samples` become their
    place in their group's list.

    Args:
        samples: (epochs * num_rows, 1 + k) samples of one epoch after the other; changed in place.
        indptr: (num_groups + 1,) where the rows of each group lie within an epoch.
        epochs: how many there are.
        num_items: size of the catalog.
    """
    rows, width = indptr[-1], samples.shape[1]
    stamps, place = np.zeros(num_items, np.int64), np.empty(num_items, np.int64)
    ends, met = np.zeros(len(indptr), np.int64), np.empty(samples.size, np.int64)
    total = 0
    for user in range(len(indptr) - 1):
        for epoch in range(epochs):
            for row in range(epoch * rows + indptr[user], epoch * rows + indptr[user + 1]):
                for column in range(width):
                    item = samples[row, column]
                    if stamps[item] != user + 1:
                        stamps[item] = user + 1
                        place[item] = total - ends[user]
                        met[total] = item
                        total += 1
                    samples[row, column] = place[item]
        ends[user + 1] = total
    return ends, met[:total].copy()
