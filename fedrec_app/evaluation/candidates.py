"""What is drawn at random to evaluate a cohort: negatives and bootstrap weights, both from (seed, user)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec_app.compiled import njit
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories, as_range
from fedrec_app.seeding import stream_base
from fedrec_app.splitmix import GOLDEN, below, stream_start, uniform

NUM_NEGATIVES = 99
# P(Poisson(1) <= n); what lies beyond 2^-53 of the end is never drawn.
_POISSON = np.array([*np.cumsum([math.exp(-1.0) / math.factorial(n) for n in range(18)]), 1.0])


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
        train, validation, test = (part.select(users) for part in (cohort.train, cohort.validation, cohort.test))
        never = train.followed_by(validation).followed_by(test)
        negatives = sampled_negatives(keys, seed, never, cohort.num_items, num_negatives)
        weights = bootstrap_weights(keys, seed, num_bootstrap)
        negatives.setflags(write=False)
        weights.setflags(write=False)
        return cls(seed, negatives, weights)

    def __len__(self) -> int:
        return len(self.negatives)

    @property
    def short(self) -> NDArray[np.bool_]:
        """(num_users,) whether the user has fewer free items than were to be drawn."""
        return np.any(self.negatives[:, -1:] < 0, axis=1)

    def select(self, users: NDArray[np.int64]) -> Candidates:
        """Returns the draws of these rows, in this order; views where the rows are neighbors.

        Args:
            users: (num_selected,) positions.
        """
        rows = as_range(users)
        return Candidates(self.seed, self.negatives[rows], self.weights[rows])


def sampled_negatives(
    keys: NDArray[np.uint64], seed: int, never: Histories, num_items: int, num_negatives: int = NUM_NEGATIVES
) -> NDArray[np.int32]:
    """Returns (num_users, num_negatives) distinct items that the user never interacted with, every set of them equally
    likely; a user who has fewer free items gets all of them, in order, and then -1.

    A user's depend on (seed, key) and his own items alone, not on who else is drawn for.

    Args:
        keys: (num_users,) what stands for each user in random streams.
        seed: the run's seed.
        never: what each user interacted with, in train, validation and test, in any order; items may repeat.
        num_items: size of the catalog.
        num_negatives: how many to draw.
    """
    negatives = np.full((len(keys), num_negatives), -1, dtype=np.int32)
    _draw_negatives(stream_base(seed, "evaluation-negatives"), keys, never.indptr, never.items, num_items, negatives)
    return negatives


@njit(nogil=True, cache=True)
def _draw_negatives(base, keys, indptr, items, num_items, negatives):
    num_negatives = negatives.shape[1]
    marks = np.zeros(num_items, dtype=np.int64)
    for u in range(len(keys)):
        stamp = u + 1
        num_free = num_items
        for item in items[indptr[u] : indptr[u + 1]]:
            num_free -= marks[item] != stamp
            marks[item] = stamp
        drawn = 0
        if num_free <= num_negatives:
            for item in range(num_items):
                if marks[item] != stamp:
                    negatives[u, drawn] = item
                    drawn += 1
            continue
        # Until as many free items have come up: some five times `num_items` tries where nearly all are taken.
        state = stream_start(base, 0, keys[u])
        while drawn < num_negatives:
            state += GOLDEN
            item = below(state, num_items)
            if marks[item] != stamp:
                marks[item] = stamp
                negatives[u, drawn] = item
                drawn += 1


def bootstrap_weights(keys: NDArray[np.uint64], seed: int, num_bootstrap: int) -> NDArray[np.uint8]:
    """Returns (num_users, num_bootstrap) Poisson(1) weights, each user's from his own stream.

    Args:
        keys: (num_users,) what stands for each user in random streams.
        seed: the run's seed.
        num_bootstrap: number of bootstrap replicates.
    """
    weights = np.empty((len(keys), num_bootstrap), dtype=np.uint8)
    _draw_weights(stream_base(seed, "bootstrap"), keys, _POISSON, weights)
    return weights


@njit(nogil=True, cache=True)
def _draw_weights(base, keys, distribution, weights):
    for u in range(len(keys)):
        state = stream_start(base, 0, keys[u])
        for b in range(weights.shape[1]):
            state += GOLDEN
            number = uniform(state)
            count = 0
            while number >= distribution[count]:
                count += 1
            weights[u, b] = count
