"""What is drawn at random to evaluate a cohort: negatives and bootstrap weights, both from (seed, user)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec_app.data.cohort import Cohort
from fedrec_app.evaluation.ranking import NUM_NEGATIVES, sampled_negatives
from fedrec_app.seeding import rng


@dataclass(frozen=True, eq=False)
class Candidates:
    """The draws of some users, immutable and the same for every round and part: a worker may cache them.

    Attributes:
        seed: the seed that they were drawn from.
        negatives: (num_users, num_negatives) int32 items that the user never interacted with, -1 where there
            are no more.
        weights: (num_users, num_bootstrap) uint8 Poisson(1) weights. The first b columns do not depend on how
            many there are, so that one cache serves evaluations with fewer.
    """

    seed: int
    negatives: NDArray[np.int32]
    weights: NDArray[np.uint8]

    @classmethod
    def of(
        cls,
        cohort: Cohort,
        seed: int,
        num_bootstrap: int = 0,
        num_negatives: int = NUM_NEGATIVES,
        users: NDArray[np.int64] | None = None,
    ) -> Candidates:
        """Returns the draws of these users of the cohort.

        Args:
            cohort: whose items in train, validation and test are no negatives.
            seed: the run's seed.
            num_bootstrap: number of bootstrap weights a user.
            num_negatives: number of negatives a user.
            users: (num_users,) positions; all users when absent.
        """
        users = np.arange(len(cohort)) if users is None else users
        keys = cohort.keys[users]
        parts = [part.select(users) for part in (cohort.train, cohort.validation, cohort.test)]
        negatives = np.full((len(users), num_negatives), -1, dtype=np.int32)
        for row, key in enumerate(keys):
            never = np.concatenate([part[row] for part in parts])
            drawn = sampled_negatives(int(key), seed, never, cohort.num_items, num_negatives)
            negatives[row, : len(drawn)] = drawn
        weights = bootstrap_weights(keys, seed, num_bootstrap)
        negatives.setflags(write=False)
        weights.setflags(write=False)
        return cls(seed, negatives, weights)

    def __len__(self) -> int:
        return len(self.negatives)

    @property
    def short(self) -> NDArray[np.bool_]:
        """(num_users,) whether the user has fewer free items than were to be drawn."""
        return np.any(self.negatives < 0, axis=1)

    def select(self, users: NDArray[np.int64]) -> Candidates:
        """Returns the draws of these rows, in this order.

        Args:
            users: (num_selected,) positions.
        """
        return Candidates(self.seed, self.negatives[users], self.weights[users])


def bootstrap_weights(keys: NDArray[np.uint64], seed: int, num_bootstrap: int) -> NDArray[np.uint8]:
    """Returns (num_users, num_bootstrap) Poisson(1) weights, each user's from his own stream.

    Args:
        keys: (num_users,) what stands for each user in random streams.
        seed: the run's seed.
        num_bootstrap: number of bootstrap replicates.
    """
    weights = np.zeros((len(keys), num_bootstrap), dtype=np.uint8)
    if num_bootstrap:
        for row, key in enumerate(keys):
            weights[row] = rng(seed, "bootstrap", int(key)).poisson(1.0, num_bootstrap)
    return weights
