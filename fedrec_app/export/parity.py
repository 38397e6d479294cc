"""Whether an exported model scores as the run does: differences of scores, of the ten best, and of NDCG@10."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedrec_app import node_data
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.errors import FedrecError
from fedrec_app.finished import FinishedRun
from fedrec_app.seeding import rng

K = 10
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """How an exported model compares.

    Attributes:
        max_difference: largest difference of two scores.
        overlap: mean share of the run's ten best items that are among the exported model's.
        ndcg: NDCG@10 of the exported model, for the last item of each user.
        ndcg_difference: that less the run's own.
    """

    max_difference: float
    overlap: float
    ndcg: float
    ndcg_difference: float


def sampled_users(run: FinishedRun, num_items: int, users: int) -> tuple[Cohort, NDArray[np.int64], bool]:
    """Returns users to compare for, what each did last, (num_users,), and whether they are of the run's own data.

    That last item is not in their histories. Where this machine does not have the data, histories are drawn.

    Args:
        run: a finished one.
        num_items: of its catalog.
        users: how many; fewer where the data has fewer.
    """
    generator = rng(run.config.seed, "parity")
    everyone = _everyone(run, num_items)
    if everyone is None:
        lengths = generator.integers(2, min(20, num_items) + 1, users)
        lists = [generator.choice(num_items, length, replace=False) for length in lengths]
        return *_held_out([f"drawn-{n}" for n in range(users)], lists, num_items, True), False
    able = np.flatnonzero(everyone.train.lengths >= 2)
    chosen = np.sort(generator.permutation(able)[:users])
    names = [everyone.user_ids[user] for user in chosen]
    return *_held_out(names, [everyone.train[user] for user in chosen], num_items, everyone.ordered), True


def _everyone(run: FinishedRun, num_items: int) -> Cohort | None:
    """Returns the users of a run's data with all they did; None where this machine does not have it, or other data."""
    try:
        everyone = node_data.cohort(run.config.data, None, 1)
    except FedrecError:
        return None
    whole = everyone.train.followed_by(everyone.validation).followed_by(everyone.test)
    there = everyone.num_items == num_items and bool((whole.lengths >= 2).any())
    return replace(everyone, train=whole) if there else None


def _held_out(
    names: list[str], lists: list[NDArray[np.int64]], num_items: int, ordered: bool
) -> tuple[Cohort, NDArray[np.int64]]:
    history, nothing = Histories.from_lists([mine[:-1] for mine in lists]), Histories.from_lists([[] for _ in lists])
    last = np.array([mine[-1] for mine in lists], dtype=np.int64)
    return Cohort(tuple(names), num_items, history, nothing, nothing, history, ordered), last


def compare(exported: Scores, own: Scores, cohort: Cohort, last: NDArray[np.int64]) -> Parity:
    """Returns how two sets of scores compare; items that a user has are not recommended.

    Args:
        exported, own: (num_users, num_items).
        cohort: the users.
        last: (num_users,) what each did last.
    """
    met = cohort.train.matrix(cohort.num_items)
    met[np.arange(len(last)), last] = False
    theirs, ours = (np.where(met, -np.inf, scores) for scores in (exported, own))
    best = [np.argsort(-scores, axis=1, kind="stable")[:, :K] for scores in (theirs, ours)]
    shared = [len(set(a) & set(b)) / len(b) for a, b in zip(*(block.tolist() for block in best), strict=True)]
    gains = [_gain(block, last) for block in best]
    return Parity(
        float(np.abs(exported.astype(np.float64) - own.astype(np.float64)).max(initial=0.0)),
        float(np.mean(shared)), gains[0], gains[0] - gains[1],
    )  # fmt: skip


def _gain(best: NDArray[np.int64], last: NDArray[np.int64]) -> float:
    hits = best == last[:, None]
    return float((hits / np.log2(np.arange(best.shape[1]) + 2)).sum(1).mean())
