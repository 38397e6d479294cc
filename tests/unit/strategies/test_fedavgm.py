from __future__ import annotations

from strategies.fedavgm import FedAvgM
from tests.unit.strategies.given import arrays_of, assert_arrays, rounds


def test_velocities_add_up() -> None:
    """Momentum 0.5, rate 0.25. With the deltas 2, -1, 4 of p and -4, 6, 0 of q:

    v_p = 2, 0.5 * 2 - 1 = 0, 0 + 4 = 4;   p = 1 + 0.5 = 1.5, 1.5, 2.5
    v_q = -4, -2 + 6 = 4, 2;               q = 2 - 1 = 1, 2, 2.5
    """
    strategy = FedAvgM({"momentum": 0.5, "learning_rate": 0.25})
    deltas = [arrays_of(p=[2.0, -4.0]), arrays_of(p=[-1.0, 6.0]), arrays_of(p=[4.0, 0.0])]
    one, two, three = rounds(strategy, arrays_of(p=[1.0, 2.0]), *deltas)
    assert_arrays(one, p=[1.5, 1.0])
    assert_arrays(two, p=[1.5, 2.0])
    assert_arrays(three, p=[2.5, 2.5])


def test_the_velocity_goes_on_from_the_state() -> None:
    first, second = FedAvgM({"momentum": 0.5}), FedAvgM({"momentum": 0.5})
    (moved,) = rounds(first, arrays_of(p=[0.0], s=0.0), arrays_of(p=[2.0], s=-2.0))
    second.load_state(first.state())
    (found,) = rounds(second, moved, arrays_of(p=[0.0], s=0.0))
    assert_arrays(found, p=[3.0], s=-3.0)  # 2 + 0.5 * 2


def test_by_default_momentum_is_nine_tenths() -> None:
    *_, found = rounds(FedAvgM(), arrays_of(p=[0.0]), arrays_of(p=[1.0]), arrays_of(p=[0.0]))
    assert_arrays(found, p=[1.9])
