"""Ranks items where their scores are: `kernels` for tensors on another device.

Items are counted by comparisons and lists chosen by values, so that results are those of `kernels` on every device;
what is copied back is ranks and lists. At any time a few tensors of the size of the block of scores are held.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec_app.data.histories import Histories


def rank_and_list(
    scores: Tensor, known: Histories, held_out: Histories, k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns (num_held_out,) full ranks, (num_users, k) best unknown items, -1 where there are no more, and
    (num_users,) how many candidates have no finite score; with any, ranks and lists mean nothing.

    Args:
        scores: (num_users, num_items) of a floating type.
        known: what each user already has: no candidates, but for those held out.
        held_out: what is held out of each user.
        k: length of the lists, at most num_items, or 0 for none.
    """
    mine, targets = _places(known, scores.device), _places(held_out, scores.device)
    candidates = torch.ones_like(scores, dtype=torch.bool)
    candidates[mine] = False
    candidates[targets] = True
    invalid = (candidates & ~scores.isfinite()).sum(1)
    masked = scores.masked_fill(~candidates, -torch.inf)
    ranks = _at_least(masked, targets[0], scores[targets]) - 1
    masked[mine] = -torch.inf
    return ranks.cpu().numpy(), _best(masked, k).cpu().numpy(), invalid.cpu().numpy()


def rank_sampled(
    scores: Tensor, negatives: NDArray[np.int32], held_out: Histories
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (num_held_out,) ranks among a user's negatives and all his held-out items, and (num_users,) how many
    of these have no finite score.

    Args:
        scores: (num_users, num_items) of a floating type.
        negatives: (num_users, num_negatives) item positions, -1 where there is none.
        held_out: what is held out of each user.
    """
    lengths = held_out.lengths
    items = np.full((len(scores), negatives.shape[1] + lengths.max(initial=0)), -1, dtype=np.int64)
    items[:, : negatives.shape[1]] = negatives
    items[:, negatives.shape[1] :][np.arange(lengths.max(initial=0)) < lengths[:, None]] = held_out.items
    candidates = torch.from_numpy(items).to(scores.device)
    absent = candidates < 0
    values = scores.gather(1, candidates.clamp(min=0)).masked_fill(absent, -torch.inf)
    invalid = (~absent & ~values.isfinite()).sum(1)
    rows, targets = _places(held_out, scores.device)
    ranks = _at_least(values, rows, scores[rows, targets]) - 1
    return ranks.cpu().numpy(), invalid.cpu().numpy()


def _places(lists: Histories, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the users and the items of every entry."""
    return torch.tensor(lists.rows(), device=device), torch.tensor(lists.items, device=device)


def _at_least(values: Tensor, rows: Tensor, thresholds: Tensor) -> Tensor:
    """Returns (n,) how many values of its row each threshold does not exceed.

    Args:
        values: (num_users, width).
        rows: (n,) the row of each threshold.
        thresholds: (n,).
    """
    counts = torch.empty_like(rows)
    for start in range(0, len(rows), max(len(values), 1)):
        chunk = slice(start, start + len(values))
        counts[chunk] = (values[rows[chunk]] >= thresholds[chunk, None]).sum(1)
    return counts


def _best(values: Tensor, k: int) -> Tensor:
    """Returns (num_users, k) the columns of the largest finite values of each row, largest first, of equal ones the
    first; -1 where there are no more. Overwrites values that are not finite."""
    if k == 0:
        return torch.empty(len(values), 0, dtype=torch.int64)
    values = values.nan_to_num_(-torch.inf, -torch.inf, -torch.inf)
    # The k-th value is the same however a device breaks ties; the positions that it would choose are not.
    kth = values.topk(k, dim=1).values[:, -1:]
    above, equal = values > kth, values == kth
    missing = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= missing))
    items = chosen.nonzero()[:, 1].view(len(values), k)
    found = values.gather(1, items)
    # + 0 turns -0 into 0, which sorts like any other 0.
    order = (found + 0.0).sort(dim=1, descending=True, stable=True).indices
    return items.gather(1, order).masked_fill(found.gather(1, order) == -torch.inf, -1)
