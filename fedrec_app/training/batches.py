"""Batches of training samples: "user" (B,), "items", "labels", "weights" (B, n), "share" and "examples" (B,)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec_app.data.histories import Histories, recency_weights
from fedrec_app.models.base import Batch


def make(
    user: NDArray[np.int64],
    items: NDArray[np.int64],
    positive_weights: NDArray[np.float32],
    no_negatives: NDArray[np.bool_],
    share: NDArray[np.floating],
) -> Batch:
    """Returns a batch whose units have `n` positives, each followed by its negatives.

    Args:
        user: (B,) rows of the units' users in the private parameters that the loss is given.
        items: (B, n, 1 + k) positives and their negatives.
        positive_weights: (B, n) of each positive and its negatives; 0 is padding.
        no_negatives: (B,) the unit has no item that could be a negative: those columns weigh nothing.
        share: (B,) how much of its user's positives a unit holds, 1 for all: for terms of the loss that each user
            has once.
    """
    labels = np.zeros(items.shape, dtype=np.float32)
    labels[..., 0] = 1.0
    weights = np.repeat(positive_weights[..., None], items.shape[2], axis=2)
    weights[no_negatives, :, 1:] = 0.0
    flat = (len(items), -1)
    return {
        "user": torch.from_numpy(user),
        "items": torch.from_numpy(items.reshape(flat)),
        "labels": torch.from_numpy(labels.reshape(flat)),
        "weights": torch.from_numpy(weights.reshape(flat)),
        "share": torch.from_numpy(share.astype(np.float32)),
        "examples": torch.ones(len(items)),
    }


def to(batch: Batch, device: str) -> Batch:
    """Returns the batch on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def whole_users(
    samples: NDArray[np.int64], train: Histories, no_negatives: NDArray[np.bool_], recency: float = 0.0
) -> Batch:
    """Returns the batch whose units are users, each with all his samples, padded with weight 0.

    Args:
        samples: (num_rows, 1 + k) samples, as `draw_epoch` returns them (unshuffled for `recency`).
        train: whose rows the samples follow.
        no_negatives: (num_users,) see `make`.
        recency: exponent of `recency_weights`, scaled to mean 1 a user; 0 weighs all alike.
    """
    lengths = train.lengths
    longest = int(lengths.max(initial=0))
    filled = np.arange(longest)[None, :] < lengths[:, None]
    items = np.zeros((len(lengths), longest, samples.shape[1]), dtype=np.int64)
    items[filled] = samples
    weights = recency_weights(lengths, longest, recency)
    weights *= (lengths / np.maximum(weights.sum(1), 1e-12))[:, None]
    return make(np.arange(len(lengths)), items, weights.astype(np.float32), no_negatives, np.ones(len(lengths)))
