"""The arithmetic of a plan: how loud the noise is, what changes would make of it, what is advised."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedrec_app.errors import ConfigError
from fedrec_app.privacy.accounting import epsilon
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.plan import QUIET, Design, advice, neighbours

LOUD = Design(users=943, sampling_rate=0.1, rounds=100, delta=1e-4, noise_multiplier=1.0, parameters=54_000)


def test_the_noise_is_as_loud_as_measured_for_small_and_large_federations() -> None:
    assert LOUD.noise_to_clip == pytest.approx(2.46, abs=0.01)
    assert replace(LOUD, users=6040).noise_to_clip == pytest.approx(0.385, abs=0.001)
    assert replace(LOUD, parameters=0).noise_to_clip is None


def test_noise_that_is_drawn_is_as_loud_as_planned() -> None:
    design = replace(LOUD, clip_norm=0.3)
    drawn = np.random.default_rng(0).normal(0, design.noise_std, design.parameters) / design.participants
    assert drawn.std() == pytest.approx(design.noise_of_mean, rel=0.02)
    assert np.linalg.norm(drawn) / design.clip_norm == pytest.approx(design.noise_to_clip, rel=0.02)
    assert (design.noise_std, design.participants) == (0.3, pytest.approx(94.3))


def test_epsilon_is_that_of_the_rounds_and_of_what_else_is_released() -> None:
    assert LOUD.epsilon == pytest.approx(5.98, abs=0.005)
    metrics = Gaussian(5.0)
    both = replace(LOUD, others=(metrics,))
    assert both.epsilon == epsilon([Gaussian(1.0, 0.1, 100), metrics], 1e-4) > LOUD.epsilon


def test_changes_of_rounds_and_rate_keep_the_noise_and_epsilons_are_solved_for() -> None:
    design = Design(1000, 0.4, 5, 1e-4, 1.0).at_epsilon(3.0)
    rows = dict(neighbours(design))
    assert list(rows) == [
        "half the rounds", "double the rounds", "half the rate", "double the rate",
        "epsilon 1", "epsilon 8", "epsilon 20",
    ]  # fmt: skip
    for name, row in rows.items():
        if name.startswith("epsilon"):
            assert 0.98 * float(name.split()[1]) < row.epsilon <= float(name.split()[1])
            assert (row.rounds, row.sampling_rate) == (5, 0.4)
        else:
            assert row.noise_multiplier == design.noise_multiplier
    assert (rows["half the rounds"].rounds, rows["double the rounds"].rounds) == (2, 10)
    assert (rows["half the rate"].sampling_rate, rows["double the rate"].sampling_rate) == (0.2, 0.8)


def test_changes_stop_at_one_round_at_everybody_and_at_what_the_rest_costs() -> None:
    names = [name for name, _ in neighbours(Design(1000, 0.7, 1, 1e-4, 2.0, others=(Gaussian(1.0),)))]
    assert names == ["double the rounds", "half the rate", "everybody", "epsilon 8", "epsilon 20"]
    assert "everybody" not in dict(neighbours(Design(1000, 1.0, 1, 1e-4, 2.0)))


def test_what_is_advised_against_loud_noise_brings_it_down() -> None:
    text = " ".join(advice(LOUD))
    assert "2.5 times the clipping bound" in text
    assert "4,648 users instead of 943, or 2,223 shared parameters instead of 54,000" in text
    for better in (replace(LOUD, users=4648), replace(LOUD, parameters=2223)):
        assert better.noise_to_clip == pytest.approx(QUIET, rel=1e-3)
    everybody = replace(LOUD, sampling_rate=1.0).at_epsilon(LOUD.epsilon)
    assert f"noise multiplier {everybody.noise_multiplier:g} for the same epsilon, it is 1.7 times" in text
    assert everybody.noise_to_clip == pytest.approx(1.69, abs=0.01)
    assert advice(replace(LOUD, users=6040)) == [
        "The noise on the mean update is 0.38 times the clipping bound, which leaves room for what users agree on."
    ]


def test_a_fourth_of_the_rounds_needs_about_half_the_noise_as_advised() -> None:
    assert "about half for 25 rounds" in " ".join(advice(LOUD))
    fewer = replace(LOUD, rounds=25).at_epsilon(LOUD.epsilon)
    assert 0.4 < fewer.noise_multiplier < 0.75


def test_promises_that_are_none_are_called_so() -> None:
    assert advice(replace(LOUD, noise_multiplier=0.0)) == ["Without noise nothing is promised."]
    assert replace(LOUD, noise_multiplier=0.0).epsilon == math.inf
    assert advice(replace(LOUD, noise_multiplier=0.5, parameters=0))[0].startswith("Epsilon 27.2 promises little")
    assert advice(replace(LOUD, delta=0.01, parameters=0)) == [
        "Delta 0.01 is not below 1/users: it would allow giving a user away outright. Leave it out, or choose at most "
        "0.0001.",
        "How loud the noise is depends on the model: give its settings with -c, or --parameters.",
    ]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"users": 1}, "users is 1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"parameters": -1}, "parameters is -1"),
        ({"sampling_rate": 0.0}, r"sampling rate is 0\.0"),
        ({"delta": 1.0}, r"delta is 1\.0"),
        ({"noise_multiplier": -1.0}, r"noise multiplier is -1\.0"),
        ({"clip_norm": 0.0}, r"clip norm is 0\.0"),
        ({"clip_norm": math.nan}, "clip norm is nan"),
    ],
)
def test_a_design_that_cannot_be_is_refused(wrong: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(LOUD, **wrong)
