"""Lower bounds on mu: exact where they can be, never above the truth, and above the claim where that is broken."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrec_app.audits.bounds import distinguish, upper_bound
from fedrec_app.audits.canary import CONFIDENCE
from fedrec_app.errors import ConfigError
from fedrec_app.privacy.gaussian import gaussian_epsilon

NOISE = 1.0811618
"""Noise multiplier of epsilon 4 at delta 1e-5."""
DELTA = 1e-5


def normal(generator: np.random.Generator, mu: float, number: int = 1000) -> NDArray[np.float64]:
    return generator.normal(mu, 1.0, (number, 1))


def bounds(mu: float, repeats: int) -> list[float]:
    """Returns bounds on epsilon of audits of 2000 releases each, of a Gaussian mechanism whose worlds are mu apart."""
    generator = np.random.default_rng(7)
    pairs = [(normal(generator, mu), normal(generator, 0.0)) for _ in range(repeats)]
    return [gaussian_epsilon(distinguish(*pair, CONFIDENCE).mu, DELTA) for pair in pairs]


def test_the_bound_on_a_probability_is_that_of_clopper_and_pearson() -> None:
    """Of no hit in n: 1 - (1 - level)^(1/n). That of 3 in 10 at 97.5 % is in every table."""
    assert upper_bound(0, 500, 0.995) == pytest.approx(1 - 0.005 ** (1 / 500), rel=1e-12)
    assert upper_bound(3, 10, 0.975) == pytest.approx(0.6524529, rel=1e-6)
    assert upper_bound(np.array([10, 0]), 10, 0.9).tolist() == pytest.approx([1.0, 1 - 0.1**0.1])


def test_epsilon_is_almost_never_above_what_an_honest_mechanism_costs() -> None:
    found = bounds(1 / NOISE, 400)
    assert max(found) < 4.0
    assert 1.8 < np.mean(found) < 2.4


@pytest.mark.parametrize(
    ("mu", "low", "high"),
    [(2 / NOISE, 6.0, 6.8), (3 / NOISE, 10.8, 11.9), (1e9, 27.19, 27.2)],
    ids=["half the noise", "a canary of 3 C that is not clipped", "no noise"],
)
def test_a_broken_mechanism_is_always_above_its_claim(mu: float, low: float, high: float) -> None:
    found = bounds(mu, 50)
    assert min(found) > 4.0
    assert low < np.mean(found) < high


def test_nothing_is_shown_of_worlds_that_are_alike_or_the_wrong_way_round() -> None:
    assert max(bounds(0.0, 50)) == 0.0
    assert max(bounds(-2.0, 5)) == 0.0


def test_what_only_the_first_half_shows_is_not_shown() -> None:
    """The test is chosen there, so what it does there proves nothing."""
    generator = np.random.default_rng(1)
    held, absent = normal(generator, 0.0), normal(generator, 0.0)
    held[:500] += 10
    assert distinguish(held, absent, CONFIDENCE).mu == 0.0
    held[500:] += 10
    assert distinguish(held, absent, CONFIDENCE).mu > 4


def test_the_best_of_several_statistics_is_taken() -> None:
    generator = np.random.default_rng(2)
    held, absent = generator.normal(0, 1, (200, 3)), generator.normal(0, 1, (200, 3))
    held[:, 1] += 6
    found = distinguish(held, absent, CONFIDENCE)
    assert (found.statistic, found.misses, found.false_alarms, found.trials) == (1, 0, 0, 100)


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(2, 1\)"):
        distinguish(np.zeros((2, 1)), np.zeros((2, 1)), 0.99)
    with pytest.raises(ValueError, match="not finite"):
        distinguish(np.full((4, 1), np.nan), np.zeros((4, 1)), 0.99)
