from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from strategies.norm_bound import BoundedMean, NormBound
from strategies.settings import Settings
from strategies.update import Update
from tests.unit.strategies.given import after_round, arrays_of, assert_arrays, by_rows, update

TABLE = Settings(row_names=("t",))


def test_deltas_longer_than_a_number_are_scaled_to_it() -> None:
    """C = 5, rows not bounded. Mean deltas (6, 8) of norm 10 and weight 1, scaled to (3, 4); (3, 0) and weight 3 stays:
    (1 * (3, 4) + 3 * (3, 0)) / 4 = (3, 1)."""
    updates = [update(1, 0, p=[6.0], s=8.0), update(3, 1, p=[3.0], s=0.0)]
    found = after_round(NormBound({"max_norm": 5, "rows": 0}), arrays_of(p=[1.0], s=1.0), updates)
    assert_arrays(found, p=[4.0], s=2.0)


def test_the_median_of_the_norms_may_be_the_bound() -> None:
    """Norms 10, 5, 1, so C = 5: (3, 4), (0, 5), (1, 0) with weights 1, 2, 1: (4, 14) / 4."""
    updates = [update(1, 0, p=[6.0, 8.0]), update(2, 1, p=[0.0, 5.0]), update(1, 2, p=[1.0, 0.0])]
    found = after_round(NormBound({"rows": 0}), arrays_of(p=[0.0, 0.0]), updates)
    assert_arrays(found, p=[1.0, 3.5])


def table() -> Update:
    """Mean deltas of norm 5: rows (3, 0), (0, 0), (0, 2) and (0, 0) of a table, and a number, which is no row."""
    return update(2, 0, t=[[3.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 0.0]], s=sqrt(12))


def test_a_long_row_is_shortened_to_its_share_and_the_rest_stays() -> None:
    """C = 5 and 4 rows: a row may be 5 / sqrt(4) = 2.5 long. Only the first row of the table is longer; s is no row."""
    strategy = NormBound({"max_norm": 5, "rows": 4}, TABLE)
    params = arrays_of(t=np.zeros((4, 2)), s=0.0)
    expected = [[2.5, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 0.0]]
    assert_arrays(after_round(strategy, params, [table()]), t=expected, s=sqrt(12))
    assert_arrays(after_round(strategy, params, [by_rows(table(), "t", [0, 2])]), t=expected, s=sqrt(12))


def test_rows_are_bounded_after_the_whole() -> None:
    """C = 2.5 halves everything first; then a row may be 2.5 / 2 = 1.25 long: (1.5, 0) becomes (1.25, 0)."""
    strategy = NormBound({"max_norm": 2.5, "rows": 4}, TABLE)
    found = after_round(strategy, arrays_of(t=np.zeros((4, 2)), s=0.0), [table()])
    assert_arrays(found, t=[[1.25, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]], s=sqrt(3))


def test_without_tables_there_are_no_rows_to_bound() -> None:
    for settings in (Settings(), Settings(row_names=("elsewhere",))):
        found = after_round(
            NormBound({"max_norm": 5, "rows": 4}, settings), arrays_of(t=np.zeros((4, 2)), s=0.0), [table()]
        )
        assert_arrays(found, t=[[3.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 0.0]], s=sqrt(12))


def test_who_promotes_one_item_gets_a_row_of_the_bound_and_no_more() -> None:
    """Nine nodes move 50 rows by 0.1 each (norm sqrt(0.5)); a liar puts all of it into one row, which may be 0.1."""
    honest = [update(1, k, t=np.full((50, 1), 0.1)) for k in range(9)]
    liar = update(1, 9, t=np.r_[[[sqrt(0.5)]], np.zeros((49, 1))])
    found = after_round(NormBound({}, TABLE), arrays_of(t=np.zeros((50, 1))), [*honest, liar])
    assert_arrays(found, t=np.r_[[[0.1]], np.full((49, 1), 0.09)])


def test_nobody_and_nothing_move_nothing() -> None:
    params = arrays_of(t=np.ones((2, 1)))
    assert_arrays(after_round(NormBound({}, TABLE), params, [update(0, t=[[9.0], [9.0]])]), t=[[1.0], [1.0]])
    assert_arrays(after_round(NormBound({}, TABLE), params, [update(1, t=[[0.0], [0.0]])]), t=[[1.0], [1.0]])


@pytest.mark.parametrize("weight", [1e-100, 1e-200, 1e-300])
def test_a_weight_as_small_as_a_liar_likes_ends_no_round(weight: float) -> None:
    """Its squared weight is no number, its mean delta is beyond any bound, and what is left of it weighs nothing."""
    liar = Update({"delta/t": np.full((2, 1), 3e38)}, {"weight": weight}, 2)
    given = [update(1, 0, t=[[1.0], [0.0]]), update(1, 1, t=[[1.0], [0.0]]), liar]
    for options in ({"max_norm": 1.0, "rows": 1}, {"max_norm": "median", "rows": 0}):
        found = after_round(NormBound(options, TABLE), arrays_of(t=np.zeros((2, 1))), given)
        assert_arrays(found, t=[[1.0], [0.0]])


def test_weights_count_like_nodes_unless_the_bound_is_their_median() -> None:
    assert BoundedMean({"max_norm": 1.0}).weighted
    assert not BoundedMean().weighted


def test_float32_updates_stay_float32_until_they_are_added_up() -> None:
    given = Update({"delta/t": np.array([[6.0], [8.0]], dtype=np.float32)}, {"weight": 1.0})
    strategy = NormBound({"max_norm": 5, "rows": 1}, TABLE)
    delta = strategy.aggregate(iter([given]), {"t": np.zeros((2, 1), dtype=np.float32)})
    assert_arrays(delta, t=[[3.0], [4.0]])
    assert given.arrays["delta/t"].tolist() == [[6.0], [8.0]]
