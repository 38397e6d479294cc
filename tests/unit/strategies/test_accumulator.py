"""Sums that no order of arrival changes, to the last bit."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.accumulator import ExactSum, UpdateSum
from strategies.update import Update

HARD: dict[str, list[float]] = {
    "cancels": [1e30, 1.0, -1e30],
    "cancels twice": [1.0, 1e16, 1.0, -1e16, 2.0**-60],
    "five scales, as many as float32 has room for": [2.0**127, 2.0**72, 2.0**17, 2.0**-38, 2.0**-93, 2.0**-149],
    "five scales that cancel": [2.0**127, 2.0**72, 2.0**17, 2.0**-38, 2.0**-149, -(2.0**127), -(2.0**72), -(2.0**17)],
    "half way between two floats": [1.0, 2.0**-53, 2.0**-149],
    "half way and a little less": [1.0, 2.0**-53, -(2.0**-149)],
    "just one": [0.1],
    "nothing": [0.0, -0.0],
    "largest": [float(np.finfo(np.float32).max)] * 7,
    "smallest": [float(np.finfo(np.float32).smallest_subnormal)] * 7,
    "thirds": [1 / 3] * 999,
}


def summed(values: list[float] | NDArray, dtype: str = "float32") -> float:
    total = ExactSum(())
    for value in values:
        total.add(np.array(value, dtype=dtype))
    return float(total.total())


def same_bits(one: float, other: float) -> bool:
    return np.float64(one).tobytes() == np.float64(other).tobytes()


@pytest.mark.parametrize("case", HARD)
def test_the_sum_is_the_exact_one_rounded_once_in_every_order(case: str) -> None:
    values = np.array(HARD[case], dtype=np.float32)
    right = math.fsum(values.astype(np.float64)) + 0.0
    for seed in range(30):
        assert same_bits(summed(np.random.default_rng(seed).permutation(values)) + 0.0, right)


@settings(deadline=None)  # the first example compiles
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40), st.randoms())
def test_any_float32_values_in_any_order_sum_to_what_fsum_says(values: list[float], random) -> None:  # type: ignore[no-untyped-def]
    right = math.fsum(values)
    random.shuffle(values)
    assert summed(values) == right


@settings(deadline=None)
@given(st.lists(st.floats(-1e60, 1e60).filter(lambda x: abs(x) > 1e-60), max_size=20), st.randoms())
def test_any_float64_values_in_any_order_sum_to_what_fsum_says(values: list[float], random) -> None:  # type: ignore[no-untyped-def]
    right = math.fsum(values)
    random.shuffle(values)
    assert summed(values, "float64") == right


def test_a_value_at_each_of_all_scales_is_kept_though_there_are_many() -> None:
    generator = np.random.default_rng(0)
    values = (generator.normal(size=(2000, 5)) * 2.0 ** generator.integers(-140, 120, size=(2000, 5))).astype(
        np.float32
    )
    right = [math.fsum(column) for column in values.T.astype(np.float64)]
    for order in (slice(None), slice(None, None, -1), np.argsort(np.abs(values[:, 0])), np.argsort(-values[:, 0])):
        total = ExactSum((5,))
        for row in values[order]:
            total.add(row)
        np.testing.assert_array_equal(total.total(), right)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 2), (6, 0)])
def test_rows_alone_give_the_bits_that_whole_arrays_give(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    by_rows, whole, right = ExactSum(shape), ExactSum(shape), np.zeros(shape)
    for _ in range(50):
        rows = np.flatnonzero(generator.random(6) < 0.5).astype(np.int32)
        values = generator.normal(size=(len(rows), *shape[1:])).astype(np.float32)
        array = np.zeros(shape, dtype=np.float32)
        array[rows] = values
        right += array
        by_rows.add(values, rows)
        whole.add(array)
    assert by_rows.total().tobytes() == whole.total().tobytes()
    assert by_rows.total().shape == shape
    np.testing.assert_allclose(by_rows.total(), right, rtol=1e-12)


@pytest.mark.parametrize("shape", [(), (0, 3), (1,)])
def test_the_shape_is_kept(shape: tuple[int, ...]) -> None:
    total = ExactSum(shape)
    total.add(np.ones(shape, dtype=np.float32))
    total.add(np.ones(shape, dtype=np.int64))
    assert total.total().shape == shape
    assert total.total().dtype == np.float64
    assert (total.total() == 2).all()


def test_what_is_added_may_lie_in_any_order_in_memory() -> None:
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    total = ExactSum((3, 2))
    total.add(np.asfortranarray(values))
    total.add(values[::-1])
    np.testing.assert_array_equal(total.total(), [[4, 6], [4, 6], [4, 6]])


def test_a_total_cannot_be_written_to_and_more_can_be_added_after_it() -> None:
    total = ExactSum((2,))
    for expected in (1, 2):
        total.add(np.ones(2, dtype=np.float32))
        np.testing.assert_array_equal(total.total(), [expected] * 2)
        with pytest.raises(ValueError, match="read-only"):
            total.total()[0] = 5


@pytest.mark.parametrize("rows", [[-1], [3], [2**31 - 1], [-(2**31)]])
def test_rows_that_are_not_there_are_refused(rows: list[int]) -> None:
    with pytest.raises(IndexError, match="0 to 2"):
        ExactSum((3, 2)).add(np.ones((1, 2), dtype=np.float32), np.array(rows, dtype=np.int32))


@pytest.mark.parametrize("shape", [(1, 2), (3, 1), (3,), (3, 2, 1)])
def test_shapes_that_would_broadcast_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"where \(3, 2\) is expected"):
        ExactSum((3, 2)).add(np.ones(shape, dtype=np.float32))
    with pytest.raises(ValueError, match=r"where \(2, 2\) is expected"):
        ExactSum((3, 2)).add(np.ones(shape, dtype=np.float32), np.array([0, 1], dtype=np.int32))


def test_an_overflow_is_not_finite_and_takes_no_more_memory() -> None:
    total = ExactSum((1,))
    for _ in range(20):
        total.add(np.full(1, 1.7e308))
    assert not np.isfinite(total.total()).any()
    assert len(total._levels) == 3


def test_a_sum_takes_no_more_memory_with_the_number_of_updates() -> None:
    values, rows = np.ones((10, 8), dtype=np.float32), np.arange(10, dtype=np.int32)
    ExactSum((20_000, 8)).add(values, rows)
    tracemalloc.start()
    total = ExactSum((20_000, 8))
    size = tracemalloc.get_traced_memory()[0]
    for _ in range(200):
        total.add(values, rows)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == pytest.approx(3 * 8 * 20_000 * 8, rel=0.01)
    assert now - size < 10_000
    assert peak - size < 10_000


def test_a_sum_of_updates_reads_like_an_update() -> None:
    params = {"t": np.zeros((3, 1), np.float32), "b": np.zeros((), np.float32)}
    one = Update(
        {
            "rows/t": np.array([0, 2], np.int32), "delta/t": np.array([[1.0], [2.0]], np.float32),
            "count/t": np.array([1.0, 2.0], np.float32), "delta/b": np.array(4.0, np.float32),
        },
        {"weight": 2.0}, num_rows={"t": 3},
    )  # fmt: skip
    other = Update(
        {
            "delta/t": np.array([[5.0], [6.0], [7.0]], np.float32), "count/t": np.array([1.0, 1.0, 0.0], np.float32),
            "delta/b": np.array(0.5, np.float32),
        },
        {"weight": 0.1},
    )  # fmt: skip
    total = UpdateSum(params)
    assert (total.weight, total.count("t")) == (0.0, None)
    total.add(one)
    total.add(other)
    assert total.weight == 2.1
    np.testing.assert_array_equal(total.delta("t"), one.delta("t") + other.delta("t"))
    np.testing.assert_array_equal(total.delta("t"), [[6], [6], [9]])
    np.testing.assert_array_equal(total.count("t"), [2, 1, 2])
    assert total.delta("b") == 4.5
    assert total.count("b") is None
