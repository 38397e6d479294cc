from __future__ import annotations

import numpy as np

from fedrec_app.client_part import Units
from strategies.qfedavg import QFedAvg, QFedAvgPart
from tests.unit.strategies.given import after_round, arrays_of, assert_arrays, update

CURVATURE = "q-curvature"


def weighed(q: float, **units: object) -> tuple[list[float], list[float]]:
    given = {"weights": [1.0], "losses": [1.0], "squared_norms": [1.0], **units}
    arrays = {name: np.array(value, dtype=np.float64) for name, value in given.items()}
    part = QFedAvgPart(QFedAvg({"q": q}).options, {}, {})
    factors, sums = part.weigh(Units(examples=arrays["weights"], steps=arrays["weights"], learning_rate=0.5, **arrays))
    return factors.tolist(), sums[CURVATURE].tolist()


def test_on_the_node_losses_to_the_power_of_q_weigh() -> None:
    """q = 2, rate 0.5, so L = 2. Two users, weights 2 and 1, losses 3 and 1, squared norms 4 and 0.25:

    w F^q = 2 * 9 = 18 and 1;   w (F^q + q L F^(q-1) |d|^2) = 2 (9 + 4 * 3 * 4) = 114 and 1 + 4 * 1 * 0.25 = 2
    """
    found = weighed(2.0, weights=[2.0, 1.0], losses=[3.0, 1.0], squared_norms=[4.0, 0.25])
    assert found == ([18.0, 1.0], [114.0, 2.0])


def test_a_whole_round_follows_algorithm_2() -> None:
    """q = 1, rate 0.5 (L = 2), equal weights. Two users start at losses 4 and 1 and move by (1, 0) and (0, 2).

    With the paper's w - w_k = -d_k, its Delta w_k = -L d_k is (-2, 0) and (0, -4), Delta_k = F_k Delta w_k is (-8, 0)
    and (0, -4), h_k = |Delta w_k|^2 + L F_k is 4 + 8 = 12 and 16 + 2 = 18: w moves by (8, 4) / 30.
    """
    factors, curvatures = weighed(1.0, weights=[1.0, 1.0], losses=[4.0, 1.0], squared_norms=[1.0, 4.0])
    assert (factors, curvatures) == ([4.0, 1.0], [6.0, 9.0])
    updates = [
        update(1, k, scalars={CURVATURE: curvature}, p=np.array(delta) * factor)
        for k, (delta, factor, curvature) in enumerate(zip(([1, 0], [0, 2]), factors, curvatures, strict=True))
    ]
    assert_arrays(after_round(QFedAvg(), arrays_of(p=[0.0, 1.0]), updates), p=[8 / 30, 1 + 4 / 30])


def test_without_fairness_it_is_the_weighted_mean() -> None:
    """q = 0: w F^0 = w and the curvature is w, even at a loss of zero; (1 * 6 + 3 * 2) / 4 = 3."""
    assert weighed(0.0, weights=[1.0, 3.0], losses=[0.0, 7.0], squared_norms=[5.0, 5.0]) == ([1.0, 3.0], [1.0, 3.0])
    updates = [update(1, scalars={CURVATURE: 1.0}, p=[6.0]), update(3, 1, scalars={CURVATURE: 3.0}, p=[2.0])]
    assert_arrays(after_round(QFedAvg({"q": 0}), arrays_of(p=[0.0]), updates), p=[3.0])


def test_a_loss_of_zero_is_taken_for_almost_zero() -> None:
    """q = 0.5: F^q is sqrt(1e-10) = 1e-5, and F^(q-1) is 1e5, not infinity: 1e-5 + 0.5 * 2 * 1e5 * 1."""
    (factor,), (curvature,) = weighed(0.5, losses=[0.0])
    np.testing.assert_allclose([factor, curvature], [1e-5, 1e5 + 1e-5], rtol=1e-12)


def test_nobody_moves_nothing() -> None:
    nobody = update(0, scalars={CURVATURE: 0.0}, p=[0.0])
    assert_arrays(after_round(QFedAvg(), arrays_of(p=[1.0]), [nobody]), p=[1.0])
