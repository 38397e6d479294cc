"""Batches of sequences: a unit is a user, whose history predicts its next items.

"user" (B,), "items" (B, T), right-aligned, "present" (B, T) 1 where there is an item, "targets" (B, T) the item that
came next, "weights" (B, T) 1 where there is one, "share" (B,) ones,
"examples" (B,) interactions that a unit stands for, "noise" (B,) int64 a random number for dropout.
Drawn from (seed, round, epoch, user) and nothing else, as all training samples are.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch, Recommender
from fedrec_app.training.sampling import one_number


def make(base: np.uint64, epoch: int, keys: NDArray[np.uint64], train: Histories, model: Recommender) -> Batch:
    """Returns the batch of users in an epoch.

    Args:
        base: from `sampling_base`.
        epoch: of the local fit.
        keys: (num_users,) keys of users.
        train: what each of them did, oldest first.
        model: its `max_length` is T at most: the last items count, of a history that is cut those before the cut. Its
            `crop` is the share of epochs in which a history of more than T + 1 items is cut, at a random place.
    """
    lengths, length, crop = train.lengths, model.max_length, model.crop
    is_cut, place, noise = (one_number(stream(base, 3 * epoch + k), keys) for k in range(3))
    # Of a cut history `length` + 1 items remain, or more: the window ends anywhere after them.
    room = np.maximum(lengths - (length + 1), 0)
    shorter = np.where(is_cut < crop, np.floor(place * (room + 1)).astype(np.int64), 0)
    ends = train.indptr[1:] - shorter
    kept = np.minimum(lengths - shorter, length + 1)
    width = max(int(kept.max(initial=0)) - 1, 1)
    back = np.arange(width)[::-1]
    present = back < (kept - 1)[:, None]
    at = np.where(present, ends[:, None] - 2 - back, 0)
    items = np.where(present, train.items[at], 0) if len(train.items) else np.zeros(at.shape, dtype=np.int64)
    targets = np.where(present, train.items[at + present], 0) if len(train.items) else items
    there = torch.from_numpy(present.astype(np.float32))
    return {
        "user": torch.arange(len(lengths)),
        "items": torch.from_numpy(items),
        "present": there,
        "targets": torch.from_numpy(targets),
        "weights": there,
        "share": torch.ones(len(lengths)),
        "examples": torch.from_numpy(lengths.astype(np.float32)),
        "noise": torch.from_numpy((noise * 2.0**53).astype(np.int64)),
    }


def stream(base: np.uint64, number: int) -> np.uint64:
    """Returns the base of one of many streams of a fit, apart from those that samples with negatives are drawn from."""
    return np.uint64((int(base) + (number + 1) * _ODD) % 2**64)


_ODD = 0xD1342543DE82EF95
