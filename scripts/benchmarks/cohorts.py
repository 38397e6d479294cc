"""The users that are trained on: ML-100K where it is given, else made up directly as cohorts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec_app import node_data
from fedrec_app.config import RunConfig
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Recommender, initialise
from fedrec_app.models.mf import MatrixFactorization
from fedrec_app.models.neumf import NeuMF
from fedrec_app.training.plan import Arrays

_USERS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Task:
    """A model and the users that it is trained on; private rows are copied for each fit, which changes them.

    Attributes:
        model: bound to the catalog.
        cohort: the users.
        shared: parameters that a round starts from.
        rows: private rows that a round starts from.
    """

    model: Recommender
    cohort: Cohort
    shared: Arrays
    rows: Arrays

    def fresh_rows(self) -> Arrays:
        """Returns private rows that a fit may change."""
        return {name: array.copy() for name, array in self.rows.items()}


def ml_100k_or_alike(data_dir: Path | None, quick: bool) -> tuple[Cohort, str]:
    """Returns the training cohort and what it is.

    Args:
        data_dir: the folder `ml-100k`, or the one it lies in; None: synthetic users in its size.
        quick: a few users only.
    """
    if data_dir is None:
        num_users, num_items, most = (24, 120, 60) if quick else (943, 1682, 735)
        # As in ML-100K a user has 20 to some hundreds, about a hundred on average.
        lengths = np.random.default_rng(0).lognormal(4.2, 0.9, num_users).astype(np.int64).clip(20, most)
        cohort = zipf_cohort(lengths, num_items)
        name = "synthetic, Zipf"
    else:
        folder = data_dir / "ml-100k" if (data_dir / "ml-100k").is_dir() else data_dir
        config = RunConfig.from_flat({"data.name": "ml-100k", "data.path": str(folder.absolute())})
        cohort = node_data.cohort(config.data, None, 1)
        if quick:
            cohort = cohort.select(np.arange(24))
        name = "ML-100K, leave-one-out"
    return cohort, f"{name}, {describe(cohort)}"


def describe(cohort: Cohort) -> str:
    """Returns the size of a cohort in words."""
    return f"{len(cohort):,} users, {cohort.num_items:,} items, {len(cohort.train.items):,} training interactions"


def short_histories(num_users: int) -> NDArray[np.int64]:
    """Returns (num_users,) lengths of 20 to 50 items."""
    return np.random.default_rng(0).integers(20, 51, num_users)


def zipf_cohort(lengths: NDArray[np.int64], num_items: int, seed: int = 0) -> Cohort:
    """Returns users with Zipf-like popular items in no particular order, and nothing held out.

    Args:
        lengths: (num_users,) how many items each has, well below num_items.
        num_items: size of the catalog.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    # By a plain Zipf law rank 1 would be in nearly every list; the most popular film is in half of them.
    shares = np.cumsum(1.0 / (np.arange(num_items) + 10.0))
    shares /= shares[-1]
    item_of_rank = generator.permutation(num_items)
    num_users = len(lengths)
    items = np.empty(lengths.sum(), dtype=np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    for at in range(0, num_users, _USERS_AT_A_TIME):
        end = min(at + _USERS_AT_A_TIME, num_users)
        items[indptr[at] : indptr[end]] = _lists(lengths[at:end], shares, item_of_rank, generator)
    train = Histories(indptr, items)
    nothing = Histories(np.zeros(num_users + 1, dtype=np.int64), np.zeros(0, dtype=np.int64))
    return Cohort(tuple(f"u{number:07d}" for number in range(num_users)), num_items, train, nothing, nothing, train)


def _lists(
    lengths: NDArray[np.int64],
    shares: NDArray[np.float64],
    item_of_rank: NDArray[np.int64],
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Returns the lists of some users, one after the other, each without repetition."""
    num_items = len(shares)
    missing, drawn = lengths.copy(), np.zeros(0, dtype=np.int64)
    while missing.any():
        users = np.repeat(np.arange(len(lengths)), missing)
        ranks = np.searchsorted(shares, generator.random(len(users)))
        drawn = np.concatenate([drawn, users * num_items + item_of_rank[ranks]])
        _, first = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first)]
        missing = lengths - np.bincount(drawn // num_items, minlength=len(lengths))
    return drawn[np.argsort(drawn // num_items, kind="stable")] % num_items


def mf_task(cohort: Cohort, embedding_dim: int = 32) -> Task:
    """Returns matrix factorisation with sampled negatives on these users."""
    return task_of(MatrixFactorization(embedding_dim, MatrixFactorization.Options(loss="bce", init_std=0.1)), cohort)


def neumf_task(cohort: Cohort, embedding_dim: int = 32) -> Task:
    """Returns NeuMF with a perceptron 64-32-16-8 (for 32 dimensions) on these users."""
    return task_of(NeuMF(embedding_dim, NeuMF.Options(layers=(32, 16, 8))), cohort)


def task_of(model: Recommender, cohort: Cohort) -> Task:
    """Returns what these users train, with new parameters.

    Args:
        model: not bound yet.
        cohort: the users.
    """
    catalog = Catalog.of_ids(f"i{number:07d}" for number in range(cohort.num_items))
    initialise(model, catalog, None, seed=0)
    shared = {name: model.get_parameter(name).detach().numpy().copy() for name in model.shared_names()}
    generator = np.random.default_rng(0)
    rows = {}
    for name in model.private_names():
        shape = (len(cohort), *model.get_parameter(name).shape[1:])
        rows[name] = generator.standard_normal(shape, dtype=np.float32) * np.float32(model.private_std())
    return Task(model, cohort, shared, rows)


def as_tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Returns tensors that share the arrays' memory."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
