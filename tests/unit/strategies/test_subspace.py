"""Subspace iteration against singular value decompositions by numpy."""

from __future__ import annotations

import numpy as np
import pytest

from fedrec_app.records import from_record, to_record
from strategies.dp_fedavg import DPFedAvg
from strategies.subspace import Subspace, SubspaceOptions
from tests.unit.strategies.given import arrays_of

TABLE = np.random.default_rng(0).normal(size=(7, 3)) * [4.0, 1.0, 0.5]


def parts(table: np.ndarray, exponent: float) -> np.ndarray:
    u, s, w = np.linalg.svd(table, full_matrices=False)
    return (u * s**exponent) @ w


def at_scale(table: np.ndarray, scale: float) -> np.ndarray:
    return table * scale / np.sqrt(np.mean(table**2))


@pytest.mark.parametrize("spectrum", [-2.0, -1.0, 0.0, 0.5, 1.0])
def test_a_table_becomes_its_momentum_with_another_spectrum(spectrum: float) -> None:
    optimizer = Subspace({"momentum": 0.5, "spectrum": spectrum, "train_scale": 0.1})
    params, delta = arrays_of(t=np.ones((7, 3))), arrays_of(t=TABLE)
    first = optimizer.step(params, delta)
    np.testing.assert_allclose(first["t"], at_scale(parts(TABLE, spectrum), 0.1), atol=1e-12)
    second = optimizer.step(first, arrays_of(t=TABLE[::-1]))
    expected = at_scale(parts(0.5 * TABLE + TABLE[::-1], spectrum), 0.1)
    np.testing.assert_allclose(second["t"], expected, atol=1e-12)


def test_what_is_released_has_all_directions_alike_whatever_the_spectrum_in_training() -> None:
    released = []
    for spectrum in (-2.0, -1.0, 0.0, 1.0):
        optimizer = Subspace({"momentum": 0.0, "spectrum": spectrum, "serve_scale": 0.2})
        trained = optimizer.step(arrays_of(t=np.zeros((7, 3))), arrays_of(t=TABLE))
        released.append(optimizer.serve(trained)["t"])
        np.testing.assert_allclose(released[-1], at_scale(parts(TABLE, 0.0), 0.2), atol=1e-9)
    gram = released[0].T @ released[0]
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(3), atol=1e-9)


def test_other_arrays_take_averaged_steps_and_are_served_as_they_are() -> None:
    optimizer = Subspace({"momentum": 0.5})
    params = arrays_of(bias=[1.0, 2.0], wide=np.ones((2, 3)), scale=1.5)
    delta = arrays_of(bias=[2.0, 0.0], wide=np.zeros((2, 3)), scale=1.0)
    after = optimizer.step(optimizer.step(params, delta), delta)
    np.testing.assert_allclose(after["bias"], [1.0 + 0.5 * 2 + 0.5 * 3, 2.0])
    np.testing.assert_allclose(after["scale"], 1.5 + 0.5 + 0.75)
    served = optimizer.serve(after)
    assert all(served[name] is after[name] for name in after)


def test_a_table_that_nobody_moved_stays_and_one_of_low_rank_is_finite() -> None:
    optimizer = Subspace()
    params = arrays_of(t=np.ones((4, 2)))
    np.testing.assert_array_equal(optimizer.step(params, arrays_of(t=np.zeros((4, 2))))["t"], 1.0)
    one_direction = np.outer(np.arange(4.0), [1.0, 0.0])
    assert np.isfinite(optimizer.step(params, arrays_of(t=one_direction))["t"]).all()


def test_it_goes_on_from_its_state() -> None:
    one, other = Subspace(), Subspace()
    params = one.step(arrays_of(t=np.ones((7, 3))), arrays_of(t=TABLE))
    other.load_state(one.state())
    later = arrays_of(t=TABLE[::-1])
    np.testing.assert_array_equal(one.step(params, later)["t"], other.step(params, later)["t"])


def test_a_strategy_serves_as_its_optimiser_says_and_others_serve_what_they_trained() -> None:
    arrays = to_record({"t": TABLE.astype(np.float32)})
    assert DPFedAvg().serve(arrays) is arrays
    chosen = SubspaceOptions(serve_scale=0.3).model_dump()
    served = from_record(DPFedAvg({"server_optimizer": {"name": "subspace", **chosen}}).serve(arrays))
    np.testing.assert_allclose(served["t"], at_scale(parts(TABLE, 0.0), 0.3), rtol=1e-5)
