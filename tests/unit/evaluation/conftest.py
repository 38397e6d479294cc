"""Random cohorts and models that score by a fixed table, so that users can be dealt to nodes in any way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories


@dataclass(frozen=True)
class World:
    """A cohort of all users and the score table of a model."""

    cohort: Cohort
    scores: np.ndarray

    def node(self, users: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], Cohort]:
        """Returns the score callback and the cohort of a node that hosts these users."""
        c = self.cohort
        cohort = Cohort(
            user_ids=tuple(c.user_ids[u] for u in users),
            num_items=c.num_items,
            train=c.train.select(users),
            validation=c.validation.select(users),
            test=c.test.select(users),
            never_negative=c.train.select(users),
        )
        return (lambda chosen: self.scores[users][chosen]), cohort


def make_world(num_users: int = 90, num_items: int = 150, seed: int = 0, most_held_out: int = 3) -> World:
    """Returns a world in which some users have nothing held out and some know nearly the whole catalog."""
    rng = np.random.default_rng(seed)
    train, validation, test = [], [], []
    for user in range(num_users):
        items = rng.permutation(num_items)
        size = num_items - 2 * most_held_out - 5 if user % 10 == 0 else int(rng.integers(1, num_items // 3))
        num_validation, num_test = rng.integers(0, most_held_out + 1, size=2)
        train.append(items[:size])
        validation.append(items[size : size + num_validation])
        test.append(items[size + num_validation : size + num_validation + num_test])
    known = Histories.from_lists(train)
    cohort = Cohort(
        user_ids=tuple(f"user-{u}" for u in range(num_users)),
        num_items=num_items,
        train=known,
        validation=Histories.from_lists(validation),
        test=Histories.from_lists(test),
        never_negative=known,
    )
    return World(cohort, rng.normal(size=(num_users, num_items)).astype(np.float32))


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture(scope="session", name="make_world")
def make_world_fixture() -> Callable[..., World]:
    return make_world
