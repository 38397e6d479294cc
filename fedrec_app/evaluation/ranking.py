"""Where held-out items stand among a user's candidates, and each user's best items.

Full ranking is the primary protocol; ranking among 99 sampled negatives (He et al., "Neural Collaborative
Filtering", WWW 2017) is reported beside it although it can order models differently (Krichene and Rendle, "On
Sampled Metrics for Item Recommendation", KDD 2020). In both, a tie counts against the held-out item: a
constant score is no hit.

Scores are a tensor on any device or an array, (num_users, num_items); float32 and float64 are read in place,
other types are widened first. Every score of a candidate must be finite; those of known items may be
anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedrec_app.data.histories import Histories
from fedrec_app.errors import FedrecError
from fedrec_app.evaluation import kernels
from fedrec_app.seeding import rng

if TYPE_CHECKING:
    import torch

    Scores = torch.Tensor | NDArray[np.floating]

NUM_NEGATIVES = 99


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
    block = as_array(scores)
    _check_lists(block.shape, known=known, held_out=held_out)
    ranks = np.empty(len(held_out.items), dtype=np.int64)
    invalid = np.empty(len(block), dtype=np.int64)
    kernels.full_ranks(
        block, _largest(block), known.indptr, known.items, held_out.indptr, held_out.items, ranks, invalid
    )
    _refuse_invalid(invalid, users)
    return ranks


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
    block = as_array(scores)
    _check_lists(block.shape, held_out=held_out)
    if negatives.ndim != 2 or len(negatives) != len(block):
        raise ValueError(f"negatives of shape {negatives.shape} for {len(block)} users")
    if negatives.size and not (negatives.min() >= -1 and negatives.max() < block.shape[1]):
        raise ValueError(f"negatives name items outside -1..{block.shape[1] - 1}")
    ranks = np.empty(len(held_out.items), dtype=np.int64)
    invalid = np.empty(len(block), dtype=np.int64)
    kernels.sampled_ranks(block, _largest(block), negatives, held_out.indptr, held_out.items, ranks, invalid)
    _refuse_invalid(invalid, users)
    return ranks


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
    block = as_array(scores)
    _check_lists(block.shape, known=known)
    lists = np.full((len(block), k), -1, dtype=np.int64)
    found = np.full((len(block), min(k, block.shape[1])), -1, dtype=np.int64)
    invalid = np.zeros(len(block), dtype=np.int64)
    if found.size:
        kernels.best_items(block, _largest(block), known.indptr, known.items, found, invalid)
    _refuse_invalid(invalid, users)
    lists[:, : found.shape[1]] = found
    return lists


def sampled_negatives(
    key: int, seed: int, never: NDArray[np.integer], num_items: int, n: int = NUM_NEGATIVES
) -> NDArray[np.int64]:
    """Returns (at most n,) distinct items that the user never interacted with; all if there are fewer.

    They depend on (seed, key) and the arguments alone, not on which users are evaluated together.

    Args:
        key: what stands for the user in random streams.
        seed: the run's seed.
        never: items of the user in train, validation and test, in any order; may repeat.
        num_items: size of the catalog.
        n: how many to draw.
    """
    taken = np.unique(np.asarray(never, dtype=np.int64))
    num_free = num_items - len(taken)
    if num_free <= n:
        return np.setdiff1d(np.arange(num_items, dtype=np.int64), taken, assume_unique=True)
    drawn = rng(seed, "evaluation-negatives", int(key)).choice(num_free, size=n, replace=False, shuffle=False)
    # `taken[j] - j` free items precede taken item j, so the x-th free item has this many before it.
    return drawn.astype(np.int64) + np.searchsorted(taken - np.arange(len(taken)), drawn, side="right")


def as_array(scores: Scores) -> NDArray[np.floating]:
    """Returns the scores as a C-contiguous float32 or float64 array, the same memory where they are one."""
    if not isinstance(scores, np.ndarray):
        tensor = scores.detach().cpu()
        scores = (tensor.float() if tensor.element_size() < 4 else tensor).numpy()
    if scores.ndim != 2:
        raise ValueError(f"scores of shape {scores.shape}: must be (num_users, num_items)")
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    return np.ascontiguousarray(scores)


def _largest(block: NDArray[np.floating]) -> np.floating:
    return np.finfo(block.dtype).max


def _check_lists(shape: tuple[int, int], **lists: Histories) -> None:
    num_users, num_items = shape
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
