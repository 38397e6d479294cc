"""Where held-out items stand among a user's candidates, and each user's best items.

Full ranking is the primary protocol; ranking among 99 sampled negatives (He et al., "Neural Collaborative
Filtering", WWW 2017) is reported beside it although it can order models differently (Krichene and Rendle, "On
Sampled Metrics for Item Recommendation", KDD 2020). In both, a tie counts against the held-out item: a
constant score is no hit.

Scores are a tensor or an array, (num_users, num_items). Those in this processor's memory are ranked by compiled loops
(`kernels`): float32 and float64 are read in place, other types are widened first. Those on another device are ranked
there (`tensor_ranking`). Every score of a candidate must be finite; those of known items may be anything.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec_app.data.histories import Histories
from fedrec_app.errors import FedrecError
from fedrec_app.evaluation import kernels, tensor_ranking

Scores = torch.Tensor | NDArray[np.floating]


def rank_block(
    scores: Scores,
    known: Histories,
    held_out: Histories,
    users: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Returns (len(held_out.items),) the 0-based rank of every held-out item, ordered as `held_out.items`.

    The candidates of a user are all items that are not in `known`, his other held-out items included (they
    compete with each other, as in any top-k list). A held-out item that is also known, a repeat consumption,
    stays a candidate. rank = #(score > s) + #(score == s) - 1 over the candidates, the last one being the
    item itself.

    Args:
        scores: (num_users, num_items) higher is better.
        known: (num_users) lists of what a user already has; an item may stand there twice.
        held_out: (num_users) lists of what is to be found; a user's list may be empty.
        users: (num_users,) the numbers by which errors name the users; 0, 1, ... when absent.

    Raises:
        FedrecError: a candidate's score is not finite.
        ValueError: shapes or item positions that do not match.
    """
    return rank_and_list(scores, known, held_out, 0, users)[0]


def top_items(scores: Scores, known: Histories, k: int, users: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Returns (num_users, k) each user's best items without the known ones, best first, padded with -1.

    Of equal scores the lower position comes first. Unlike in `rank_block` nothing known is ever listed.

    Args:
        scores: (num_users, num_items) higher is better.
        known: (num_users) lists of what a user already has.
        k: length of the lists, at least 1; may exceed the number of items.
        users: (num_users,) the numbers by which errors name the users; 0, 1, ... when absent.

    Raises:
        FedrecError: a candidate's score is not finite.
        ValueError: shapes or item positions that do not match, or k < 1.
    """
    if k < 1:
        raise ValueError(f"lists of {k} items: k must be at least 1")
    nothing = Histories(np.zeros(len(known) + 1, dtype=np.int64), np.zeros(0, dtype=np.int64))
    return rank_and_list(scores, known, nothing, k, users)[1]


def rank_and_list(
    scores: Scores,
    known: Histories,
    held_out: Histories,
    k: int,
    users: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns what `rank_block` and `top_items` return, from one pass over the scores.

    Args:
        scores: (num_users, num_items) higher is better.
        known: (num_users) lists of what a user already has.
        held_out: (num_users) lists of what is to be found.
        k: length of the lists; 0 for ranks alone.
        users: (num_users,) the numbers by which errors name the users; 0, 1, ... when absent.

    Raises:
        FedrecError: a candidate's score is not finite.
        ValueError: shapes or item positions that do not match.
    """
    block = readable(scores)
    num_users, num_items = block.shape
    _check_lists(num_users, num_items, known=known, held_out=held_out)
    ranks, found, invalid = _backend(block).rank_and_list(block, known, held_out, min(k, num_items))
    _refuse_invalid(invalid, users)
    if k <= num_items:
        return ranks, found
    return ranks, np.pad(found, ((0, 0), (0, k - num_items)), constant_values=-1)


def rank_sampled(
    scores: Scores,
    negatives: NDArray[np.integer],
    held_out: Histories,
    users: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Returns (len(held_out.items),) the 0-based rank of every held-out item among the drawn negatives.

    A user's candidates are his negatives and all his held-out items, so that several held-out items cannot
    share the first place; with one held-out item this is the usual list of 1 + 99.

    Args:
        scores: (num_users, num_items) higher is better.
        negatives: (num_users, num_negatives) item positions, -1 where there is none.
        held_out: (num_users) lists of what is to be found.
        users: (num_users,) the numbers by which errors name the users; 0, 1, ... when absent.

    Raises:
        FedrecError: a candidate's score is not finite.
        ValueError: shapes or item positions that do not match.
    """
    block = readable(scores)
    num_users, num_items = block.shape
    _check_lists(num_users, num_items, held_out=held_out)
    if negatives.ndim != 2 or len(negatives) != num_users:
        raise ValueError(f"negatives of shape {negatives.shape} for {num_users} users")
    if negatives.size and not (negatives.min() >= -1 and negatives.max() < num_items):
        raise ValueError(f"negatives name items outside -1..{num_items - 1}")
    negatives = np.ascontiguousarray(negatives, dtype=np.int32)
    ranks, invalid = _backend(block).rank_sampled(block, negatives, held_out)
    _refuse_invalid(invalid, users)
    return ranks


def readable(scores: Scores) -> Scores:
    """Returns the scores as a C-contiguous float32 or float64 array, the same memory where they are one; or, where
    they are on another device, as a tensor of any floating type.

    Raises:
        ValueError: not a matrix.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores of shape {tuple(scores.shape)}: must be (num_users, num_items)")
    if isinstance(scores, torch.Tensor):
        scores = scores.detach()
        if _stays_on_device(scores):
            return scores if scores.is_floating_point() else scores.double()
        scores = (scores.float() if scores.element_size() < 4 else scores).numpy()
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    return np.ascontiguousarray(scores)


def _stays_on_device(scores: torch.Tensor) -> bool:
    return scores.device.type != "cpu"


def _backend(block: Scores) -> ModuleType:
    return kernels if isinstance(block, np.ndarray) else tensor_ranking


def _check_lists(num_users: int, num_items: int, **lists: Histories) -> None:
    for name, histories in lists.items():
        if len(histories) != num_users:
            raise ValueError(f"{name} has lists of {len(histories)} users, scores of {num_users}")
        items = histories.items
        if len(items) and not (items.min() >= 0 and items.max() < num_items):
            raise ValueError(f"{name} names items {items.min()}..{items.max()}, scores know 0..{num_items - 1}")


def _refuse_invalid(invalid: NDArray[np.int64], users: NDArray[np.int64] | None) -> None:
    affected = np.flatnonzero(invalid)
    if len(affected):
        first = affected[0] if users is None else users[affected[0]]
        raise FedrecError(
            f"{invalid.sum()} candidate scores of {len(affected)} users are not finite, "
            f"first of user {first} ({invalid[affected[0]]} scores): "
            "the model has diverged (lower the learning rate), or its score() divides by zero"
        )
