"""Batches of training samples, in the layout that a model's `sampling` names."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch


def pointwise(items: NDArray[np.int64], no_negatives: NDArray[np.bool_] | bool) -> Batch:
    """Returns the "pointwise" batch of one unit, without "user".

    Args:
        items: (n, 1 + k) positives, each followed by its negatives.
        no_negatives: the unit has no item that could be a negative: those columns weigh nothing.
    """
    labels = np.zeros(items.shape, dtype=np.float32)
    labels[:, 0] = 1.0
    weights = np.ones(items.shape, dtype=np.float32)
    if no_negatives:
        weights[:, 1:] = 0.0
    return {
        "items": torch.from_numpy(items.reshape(1, -1)),
        "labels": torch.from_numpy(labels.reshape(1, -1)),
        "weights": torch.from_numpy(weights.reshape(1, -1)),
    }


def padded_pointwise(
    samples: NDArray[np.int64], train: Histories, no_negatives: NDArray[np.bool_], users: NDArray[np.int64]
) -> Batch:
    """Returns the "pointwise" batch whose units are these users, each with all his samples, padded with weight 0.

    Args:
        samples: (num_rows, 1 + k) samples of all users, as `draw_epoch` returns them.
        train: whose rows the samples follow.
        no_negatives: (num_users,) see `pointwise`.
        users: (B,) the users of this batch.
    """
    lengths = train.lengths[users]
    longest, width = int(lengths.max(initial=0)), samples.shape[1]
    items = np.zeros((len(users), longest, width), dtype=np.int64)
    weights = np.zeros((len(users), longest, width), dtype=np.float32)
    filled = np.arange(longest)[None, :] < lengths[:, None]
    rows = train.select(users)
    source = np.repeat(train.indptr[users], lengths) + np.arange(len(rows.items)) - np.repeat(rows.indptr[:-1], lengths)
    items[filled] = samples[source]
    weights[filled] = 1.0
    weights[no_negatives[users], :, 1:] = 0.0
    labels = np.zeros(items.shape, dtype=np.float32)
    labels[:, :, 0] = 1.0
    flat = (len(users), longest * width)
    return {
        "user": torch.from_numpy(np.arange(len(users))),
        "items": torch.from_numpy(items.reshape(flat)),
        "labels": torch.from_numpy(labels.reshape(flat)),
        "weights": torch.from_numpy(weights.reshape(flat)),
    }


def all_items(train: Histories, users: NDArray[np.int64], num_items: int) -> Batch:
    """Returns the "all-items" batch whose units are these users.

    Args:
        train: training items of all users.
        users: (B,) the users of this batch.
        num_items: size of the catalog.
    """
    mine = train.select(users)
    return {
        "user": torch.from_numpy(np.arange(len(users))),
        "positives": torch.from_numpy(mine.matrix(num_items).astype(np.float32)),
        "examples": torch.from_numpy(mine.lengths.astype(np.float32)),
    }
