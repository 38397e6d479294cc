"""Training samples, drawn from (seed, round, epoch, user) and nothing else.

The generator is SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) started from a mix of those four numbers, so that any
engine, in any order and on any node, draws the same negatives and the same shuffle for a user.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fedrec_app.data.histories import Histories
from fedrec_app.seeding import stream_key

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, inline="always")
def _mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, inline="always")
def below(state: np.uint64, bound: int) -> int:
    """Returns a whole number below `bound` from 64 random bits (multiply-shift on the upper 32; bias below 2^-32 *
    bound)."""
    return int(((_mix(state) >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@njit(cache=True, inline="always")
def stream_start(base: np.uint64, epoch: int, key: np.uint64) -> np.uint64:
    """Returns where the stream of (base, epoch, user) starts."""
    return _mix(_mix(base ^ key) + _GOLDEN * np.uint64(epoch + 1))


@njit(cache=True)
def user_epoch(
    start: np.uint64,
    positives: NDArray[np.int64],
    banned: NDArray[np.bool_],
    num_allowed: int,
    num_negatives: int,
    shuffle: bool,
    items: NDArray[np.int64],
) -> None:
    """Fills one user's epoch: shuffled positives, each followed by its negatives.

    Args:
        start: from `stream_start`.
        positives: (n,) the user's training items.
        banned: (num_items,) items that are never negatives of this user.
        num_allowed: how many items are not banned; with none, the negatives repeat the positive (and weigh nothing).
        num_negatives: k, drawn for each positive, uniformly and with replacement.
        shuffle: whether positives are shuffled; else they stay oldest first.
        items: (n, 1 + k) the output.
    """
    state = start
    n = len(positives)
    num_items = len(banned)
    for i in range(n):
        items[i, 0] = positives[i]
    for i in range(n - 1 if shuffle else 0, 0, -1):
        state += _GOLDEN
        j = below(state, i + 1)
        items[i, 0], items[j, 0] = items[j, 0], items[i, 0]
    for i in range(n):
        for k in range(num_negatives):
            if num_allowed == 0:
                items[i, 1 + k] = items[i, 0]
                continue
            while True:
                state += _GOLDEN
                candidate = below(state, num_items)
                if not banned[candidate]:
                    items[i, 1 + k] = candidate
                    break


@njit(cache=True)
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
    banned = np.zeros(num_items, dtype=np.bool_)
    for u in range(len(keys)):
        mine = banned_items[banned_indptr[u] : banned_indptr[u + 1]]
        allowed = num_items
        for item in mine:
            if not banned[item]:
                banned[item] = True
                allowed -= 1
        full[u] = allowed == 0
        user_epoch(
            stream_start(base, epoch, keys[u]),
            positives[indptr[u] : indptr[u + 1]],
            banned,
            allowed,
            num_negatives,
            shuffle,
            out[indptr[u] : indptr[u + 1]],
        )
        for item in mine:
            banned[item] = False


def sampling_base(seed: int, server_round: int, purpose: str) -> np.uint64:
    """Returns 64 bits for (seed, round, purpose); users and epochs are mixed in by `draw_epoch`."""
    return np.uint64(stream_key(seed, "samples", purpose, server_round) & (2**64 - 1))


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
