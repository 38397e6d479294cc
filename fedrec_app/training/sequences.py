"""Batches of sequences: a unit is a user, whose history predicts its next items, or those of its own that are hidden.

"user" (B,), "items" (B, T), right-aligned, "present" (B, T) 1 where there is an item, "targets" (B, T) what is to be
predicted there, "weights" (B, T) 1 where something is, "share" (B,) ones,
"examples" (B,) interactions that a unit stands for, "noise" (B,) int64 a random number for dropout.
With the model's `SequenceRules` also "hidden" (B, T) 1 where the model may not see the item, and "negatives" (B, n).
Cells without an item hold the user's last one, so that what is in a batch is what its users met.
Drawn from (seed, round, epoch, user) and nothing else, as all training samples are.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch, Recommender
from fedrec_app.models.sequence_rules import SequenceRules
from fedrec_app.training.sampling import one_number, rename

_REORDER, _MASK, _PREDICT, _NEGATIVES = range(4)
_ITEMS = ("items", "targets", "negatives")


def make(base: np.uint64, epoch: int, keys: NDArray[np.uint64], train: Histories, model: Recommender) -> Batch:
    """Returns the batch of users in an epoch.

    Args:
        base: from `sampling_base`.
        epoch: of the local fit.
        keys: (num_users,) keys of users.
        train: what each of them did, oldest first.
        model: its `max_length` is T at most, one more where it is masked: the last items count, of a history that is
            cut those before the cut. Its `crop` is the share of epochs in which a history of more than `max_length` + 1
            items is cut, at a random place. For the rest see `SequenceRules`.
    """
    rules = model.sequence_rules
    is_cut, place, noise = (one_number(stream(base, 3 * epoch + k), keys) for k in range(3))
    window, kept = _windows(train, model.max_length + 1, np.where(is_cut < model.crop, place, 0.0))
    width = window.shape[1]
    back = np.arange(width)[::-1]
    there = back < kept[:, None]
    if rules.reorder:
        window = _reordered(window, kept, rules.reorder, _numbers(base, epoch, _REORDER, keys, 3 + width))
    hidden = np.zeros_like(there)
    if rules.mask:
        numbers = _numbers(base, epoch, _MASK, keys, 1 + width)
        hidden = there & (numbers[:, :1] < rules.mask) & (numbers[:, 1 + back] < rules.mask_share)
    if rules.masked:
        asked = _asked(there, kept, rules, _numbers(base, epoch, _PREDICT, keys, 1 + width))
        batch = _cells(window, window, there, asked, hidden | asked)
    else:
        batch = _cells(window[:, :-1], window[:, 1:], there[:, :-1], there[:, :-1], hidden[:, :-1])
        if not rules.mask:
            del batch["hidden"]
    if rules.negatives:
        num_items = len(model.get_parameter(model.row_names()[0]))
        numbers = _numbers(base, epoch, _NEGATIVES, keys, rules.negatives)
        batch["negatives"] = torch.from_numpy((numbers * num_items).astype(np.int64))
    return {
        **batch,
        "user": torch.arange(len(keys)),
        "share": torch.ones(len(keys)),
        "examples": torch.from_numpy(train.lengths.astype(np.float32)),
        "noise": torch.from_numpy((noise * 2.0**53).astype(np.int64)),
    }


def num_scored(model: Recommender, num_items: int) -> int:
    """Returns how many items each cell of a batch is scored against: its negatives, or the whole catalog."""
    return model.sequence_rules.negatives or num_items


def met(batch: Batch) -> NDArray[np.int64]:
    """Returns (B, n) the items that each unit met, some of them more than once."""
    return torch.cat([batch[name] for name in _ITEMS if name in batch], dim=1).numpy()


def renumber(epochs: list[Batch], num_items: int, together: bool) -> tuple[list[Batch], Histories]:
    """Returns the batches with items by their place among those met, and the items met: by all users together, as one
    list, or by each of them over all epochs.

    Args:
        epochs: batches of the same users.
        num_items: size of the catalog.
        together: users share one list.
    """
    names = [name for name in _ITEMS if name in epochs[0]]
    cells, num_users = np.concatenate([met(batch) for batch in epochs]), len(epochs[0]["items"])
    groups = np.array([0, num_users]) if together else np.arange(num_users + 1)
    lists = Histories(*rename(cells, groups, len(epochs), num_items))
    parts = torch.from_numpy(cells).split([epochs[0][name].shape[1] for name in names], dim=1)
    found = [
        {**batch, **{name: part[at * num_users :][:num_users] for name, part in zip(names, parts, strict=True)}}
        for at, batch in enumerate(epochs)
    ]
    return found, lists


def stream(base: np.uint64, number: int) -> np.uint64:
    """Returns the base of one of many streams of a fit, apart from those that samples with negatives are drawn from.

    Args:
        base: from `sampling_base`.
        number: of the stream, any but -1.
    """
    return np.uint64((int(base) + (number + 1) * _ODD) % 2**64)


def _numbers(base: np.uint64, epoch: int, what: int, keys: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Returns (num_users, count) numbers from [0, 1); those that more are asked for begin with the same ones."""
    cells = keys[:, None] + np.arange(count, dtype=np.uint64) * _CELL
    return one_number(stream(base, -2 - (4 * epoch + what)), cells.ravel()).reshape(len(keys), count)


def _windows(train: Histories, length: int, place: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (B, W) at most `length` items of each user, right-aligned, behind copies of the last of them; and (B,)
    how many of them there are.

    Args:
        train: what each user did.
        length: of a window.
        place: (B,) how far from its end a history is cut, as a share of what leaves a whole window.
    """
    room = np.maximum(train.lengths - length, 0)
    shorter = np.floor(place * (room + 1)).astype(np.int64)
    kept = np.minimum(train.lengths, length)
    back = np.arange(max(int(kept.max(initial=0)), 2))[::-1]
    last = (train.indptr[1:] - shorter - 1)[:, None]
    at = np.where(kept[:, None] > 0, last - np.where(back < kept[:, None], back, 0), -1)
    return np.append(train.items, 0)[at], kept


def _reordered(
    window: NDArray[np.int64], kept: NDArray[np.int64], share: float, numbers: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Returns windows of which a share have a part shuffled: of two items to all of them, anywhere, as likely.

    Inputs and targets are cut from the same shuffled window: no cell is shown the item that it is to predict.
    """
    back = np.arange(window.shape[1])[::-1]
    length = 2 + np.floor(numbers[:, 1] * (kept - 1))[:, None]
    first = np.floor(numbers[:, 2, None] * (kept[:, None] - length + 1))
    chosen = ((numbers[:, 0] < share) & (kept > 1))[:, None]
    inside = chosen & (back >= first) & (back < first + length)
    order = np.argsort(-np.where(inside, first + length * numbers[:, 3 + back], back), axis=1, kind="stable")
    return np.take_along_axis(window, order, axis=1)


def _asked(
    there: NDArray[np.bool_], kept: NDArray[np.int64], rules: SequenceRules, numbers: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Returns (B, W) the cells that are hidden and asked for: the last alone, or a share of all, one at least; none of
    a user of one item, who has nothing to predict it from."""
    back = np.arange(there.shape[1])[::-1]
    each = np.where(there, numbers[:, 1 + back], 1.0)
    some = each <= np.maximum(rules.mask_share, each.min(axis=1, initial=1.0))[:, None]
    return there & (kept > 1)[:, None] & np.where(numbers[:, :1] < rules.mask_last, back == 0, some)


def _cells(
    items: NDArray[np.int64],
    targets: NDArray[np.int64],
    there: NDArray[np.bool_],
    asked: NDArray[np.bool_],
    hidden: NDArray[np.bool_],
) -> Batch:
    return {
        "items": torch.from_numpy(items),
        "present": torch.from_numpy(there.astype(np.float32)),
        "targets": torch.from_numpy(targets),
        "weights": torch.from_numpy(asked.astype(np.float32)),
        "hidden": torch.from_numpy(hidden.astype(np.float32)),
    }


_ODD, _CELL = 0xD1342543DE82EF95, np.uint64(0x9E3779B97F4A7C15)
