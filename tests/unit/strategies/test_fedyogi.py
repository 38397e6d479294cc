from __future__ import annotations

from math import sqrt

from strategies.fedyogi import FedYogi
from tests.unit.strategies.given import arrays_of, assert_arrays, rounds


def test_two_steps() -> None:
    """Rate 1, betas 0.5 and 0.75, tau 0.5, so that v starts at 0.25. Deltas 2 and 1 of p:

    m = 1,            v = 0.25 + 0.25 * 4 = 1.25 (below d^2, so it grows):   p = 1 / (sqrt(1.25) + 0.5)
    m = 0.5 + 0.5,    v = 1.25 - 0.25 * 1 = 1 (above d^2, so it shrinks):    p + 1 / (1 + 0.5)

    and -0.5 and 0 of q, whose square is v itself at first, so that v stays:

    m = -0.25, v = 0.25:  q = -0.25 / (0.5 + 0.5);   m = -0.125, v = 0.25:  q - 0.125
    """
    strategy = FedYogi({"learning_rate": 1.0, "beta_1": 0.5, "beta_2": 0.75, "tau": 0.5})
    one, two = rounds(strategy, arrays_of(p=[0.0, 0.0]), arrays_of(p=[2.0, -0.5]), arrays_of(p=[1.0, 0.0]))
    first = 1 / (sqrt(1.25) + 0.5)
    assert_arrays(one, p=[first, -0.25])
    assert_arrays(two, p=[first + 2 / 3, -0.375])


def test_by_default_moments_decay_as_in_the_paper() -> None:
    """Rate 0.01, betas 0.9 and 0.99, tau 0.001: m = 0.1, v = 1e-6 + 0.01 = 0.010001."""
    (moved,) = rounds(FedYogi(), arrays_of(p=[0.0]), arrays_of(p=[1.0]))
    assert_arrays(moved, p=[0.01 * 0.1 / (sqrt(0.010001) + 0.001)])
