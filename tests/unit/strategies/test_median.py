from __future__ import annotations

import numpy as np

from strategies.median import Median
from tests.unit.strategies.given import after_round, arrays_of, assert_arrays, by_rows, update


def test_the_middle_of_each_coordinate_whatever_the_weights() -> None:
    """Of (0, 9), (5, 1), (-90, 2) the middle values are 0 and 2; the weights 1, 100 and 3 do not matter."""
    updates = [update(1, 0, p=[0.0, 9.0]), update(100, 1, p=[5.0, 1.0]), update(3, 2, p=[-90.0, 2.0])]
    assert_arrays(after_round(Median(), arrays_of(p=[1.0, 1.0]), updates), p=[1.0, 3.0])


def test_of_an_even_number_the_mean_of_the_middle_two() -> None:
    """1, 2, 4, 1000: 3; a node without weight is not counted."""
    updates = [update(1, k, s=value) for k, value in enumerate([1000.0, 2.0, 4.0, 1.0])]
    updates.append(update(0, 4, s=7.0))
    assert_arrays(after_round(Median(), arrays_of(s=0.0), updates), s=3.0)


def test_a_row_that_a_node_does_not_send_counts_as_zero() -> None:
    """Three nodes of weight 2. Row 0: 1, 3 and nothing, the median is 1. Row 1: 4, 6, 8: 6. Row 2: 5 alone: 0."""
    updates = [
        by_rows(update(2, 0, t=[[1.0], [4.0], [0.0]]), "t", [0, 1]),
        update(2, 1, t=[[3.0], [6.0], [0.0]]),
        by_rows(update(2, 2, t=[[0.0], [8.0], [5.0]]), "t", [1, 2]),
    ]
    assert_arrays(after_round(Median(), arrays_of(t=[[0.0], [0.0], [0.0]]), updates), t=[[1.0], [6.0], [0.0]])


def test_tables_larger_than_a_block_are_the_same(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    updates = [
        by_rows(update(2, 0, t=[[1.0], [4.0], [0.0]]), "t", [0, 1]),
        update(2, 1, t=[[3.0], [6.0], [-2.0]]),
        by_rows(update(2, 2, t=[[0.0], [8.0], [-5.0]]), "t", [1, 2]),
    ]
    for size in (1, 6, 7):  # rows one by one, two by two
        monkeypatch.setattr("strategies.stacking.MOST_NUMBERS", size)
        found = after_round(Median(), arrays_of(t=[[0.0], [0.0], [0.0]]), updates)
        assert_arrays(found, t=[[1.0], [6.0], [-2.0]])


def test_without_anybody_nothing_moves() -> None:
    params = arrays_of(p=[1.0], s=2.0)
    assert_arrays(after_round(Median(), params, [update(0, p=[3.0], s=3.0)]), p=[1.0], s=2.0)


def test_a_weight_as_small_as_a_liar_likes_moves_the_median_by_one_place_only() -> None:
    liar = update(1e-300, 2, s=0.0)
    liar.arrays["delta/s"] = np.array(1e30)
    updates = [update(1, 0, s=1.0), update(1, 1, s=2.0), liar]
    assert_arrays(after_round(Median(), arrays_of(s=0.0), updates), s=2.0)
