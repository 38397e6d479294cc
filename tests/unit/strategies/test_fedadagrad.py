from __future__ import annotations

from strategies.fedadagrad import FedAdagrad
from tests.unit.strategies.given import arrays_of, assert_arrays, rounds


def test_two_steps() -> None:
    """Rate 1, tau 3, so that v starts at 9. Deltas 4 and 12 of p, then -4 and 0 of q:

    v = 9 + 16 = 25: p = 4 / (5 + 3) = 0.5;    v = 25 + 144 = 169: p = 0.5 + 12 / (13 + 3) = 1.25
    v = 25: q = -0.5;                          v = 25, and without momentum q stays
    """
    strategy = FedAdagrad({"learning_rate": 1.0, "tau": 3.0})
    one, two = rounds(strategy, arrays_of(p=[0.0, 0.0]), arrays_of(p=[4.0, -4.0]), arrays_of(p=[12.0, 0.0]))
    assert_arrays(one, p=[0.5, -0.5])
    assert_arrays(two, p=[1.25, -0.5])


def test_two_steps_with_momentum() -> None:
    """As above with beta_1 = 0.5: m = 2 and 2 / 8 = 0.25; then m = 1 + 6 = 7 and 7 / 16 = 0.4375 more."""
    strategy = FedAdagrad({"learning_rate": 1.0, "tau": 3.0, "beta_1": 0.5})
    one, two = rounds(strategy, arrays_of(s=0.0), arrays_of(s=4.0), arrays_of(s=12.0))
    assert_arrays(one, s=0.25)
    assert_arrays(two, s=0.6875)
