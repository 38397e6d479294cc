from __future__ import annotations

from math import sqrt

import pytest

from strategies.fedadam import FedAdam
from tests.unit.strategies.given import arrays_of, assert_arrays, rounds


def test_two_steps_without_bias_correction() -> None:
    """Rate 0.1, betas 0.9 and 0.99, tau 0.001; deltas 2 and -1:

    m = 0.1 * 2 = 0.2,            v = 0.01 * 4 = 0.04:           p = 0.1 * 0.2 / (0.2 + 0.001)
    m = 0.9 * 0.2 - 0.1 = 0.08,   v = 0.99 * 0.04 + 0.01 = 0.0496:   p + 0.1 * 0.08 / (sqrt(0.0496) + 0.001)
    """
    strategy = FedAdam({"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3, "bias_correction": False})
    one, two = rounds(strategy, arrays_of(p=[0.0]), arrays_of(p=[2.0]), arrays_of(p=[-1.0]))
    assert_arrays(one, p=[0.1 * 0.2 / 0.201])
    assert_arrays(two, p=[0.1 * 0.2 / 0.201 + 0.1 * 0.08 / (sqrt(0.0496) + 0.001)])


def test_two_steps_with_bias_correction() -> None:
    """Rate 1, betas 0.5 and 0.75, tau 1; deltas 4 and 0:

    m = 2 over 1 - 0.5 is 4,     v = 4 over 1 - 0.75 is 16:              p = 4 / (4 + 1) = 0.8
    m = 1 over 1 - 0.25 is 4/3,  v = 3 over 1 - 0.75^2 = 7/16 is 48/7:   p = 0.8 + 4/3 / (sqrt(48/7) + 1)
    """
    strategy = FedAdam({"learning_rate": 1.0, "beta_1": 0.5, "beta_2": 0.75, "tau": 1.0})
    one, two = rounds(strategy, arrays_of(p=[0.0], s=1.0), arrays_of(p=[4.0], s=-4.0), arrays_of(p=[0.0], s=0.0))
    assert_arrays(one, p=[0.8], s=0.2)
    second = 4 / 3 / (sqrt(48 / 7) + 1)
    assert_arrays(two, p=[0.8 + second], s=0.2 - second)


def test_with_bias_correction_it_first_moves_by_the_learning_rate() -> None:
    strategy = FedAdam({"learning_rate": 0.1, "tau": 1e-9})
    (moved,) = rounds(strategy, arrays_of(p=[0.0, 0.0]), arrays_of(p=[5.0, -0.01]))
    assert moved["p"] == pytest.approx([0.1, -0.1], rel=1e-6)
