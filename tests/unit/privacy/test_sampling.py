"""Secret sampling: the rate is met, users are independent, and no seed has a part in it."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.privacy.sampling import poisson
from fedrec_app.training.plan import FitPlan
from fedrec_app.training.users import participants


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.99])
def test_users_take_part_at_the_rate(rate: float) -> None:
    num = 400_000
    # Six standard deviations: wrong once in 500 million runs.
    assert abs(poisson(num, rate).mean() - rate) < 6 * np.sqrt(rate * (1 - rate) / num)


def test_users_are_drawn_independently() -> None:
    draws = np.stack([poisson(2, 0.5) for _ in range(20_000)])
    both = (draws[:, 0] & draws[:, 1]).mean()
    assert abs(both - 0.25) < 6 * np.sqrt(0.25 * 0.75 / len(draws))


def test_no_seed_repeats_a_draw() -> None:
    draws = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        draws.append(poisson(256, 0.5))
    assert (draws[0] != draws[1]).any()


def test_the_chance_is_a_comparison_of_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    # The largest of 64 bits is nearest to 1 as a float; the chance 1 - 2^-53 leaves it out all the same.
    numbers = np.array([0, 2**62 - 1, 2**62, 2**64 - 1], dtype=np.uint64)
    monkeypatch.setattr(os, "urandom", lambda count: numbers.tobytes()[:count])
    assert poisson(4, 0.25).tolist() == [True, True, False, False]
    assert poisson(4, 1 - 2.0**-53).tolist() == [True, True, True, False]


@pytest.mark.parametrize("num_users", [0, 1, 5])
def test_rate_one_takes_everybody(num_users: int) -> None:
    assert poisson(num_users, 1.0).tolist() == [True] * num_users


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_chance_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        poisson(3, rate)


def test_a_secret_rate_draws_anew_each_time_from_users_with_something_to_train_on() -> None:
    train = Histories.from_lists([[1], []] * 200)
    nothing = Histories.from_lists([[]] * 400)
    cohort = Cohort(tuple(f"u{user}" for user in range(400)), 5, train, nothing, nothing, train)
    plan = FitPlan(seed=1, server_round=2, user_fraction=0.01, secret_rate=0.5)
    drawn = [participants(cohort, plan) for _ in range(2)]
    assert drawn[0].tolist() != drawn[1].tolist()
    for users in drawn:
        assert 40 < len(users) < 160
        assert (users % 2 == 0).all()
    everybody = participants(cohort, FitPlan(seed=1, server_round=2, user_fraction=0.01, secret_rate=1.0))
    assert everybody.tolist() == list(range(0, 400, 2))
