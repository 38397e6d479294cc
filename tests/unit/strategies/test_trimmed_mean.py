from __future__ import annotations

import numpy as np
import pytest

from strategies.trimmed_mean import CoordinateTrimmedMean, TrimmedMean
from tests.unit.strategies.given import after_round, arrays_of, assert_arrays, by_rows, update


def test_the_mean_without_the_ends_of_each_coordinate() -> None:
    """Five nodes, a fifth of them at each end. Of p: -100, 1, 2, 6, 1000 leave 1, 2, 6: 3. Of q: 0, 1, 2, 3, 4: 2.
    Weights do not matter."""
    values = [[1000.0, 0.0], [2.0, 1.0], [-100.0, 2.0], [1.0, 3.0], [6.0, 4.0]]
    updates = [update(1 + k, k, p=value) for k, value in enumerate(values)]
    found = after_round(TrimmedMean({"trim": 0.2}), arrays_of(p=[1.0, 1.0]), updates)
    assert_arrays(found, p=[4.0, 3.0])


def test_two_of_five_at_each_end_leave_the_median() -> None:
    updates = [update(1, k, s=value) for k, value in enumerate([5.0, -9.0, 1.0, 100.0, 2.0])]
    assert_arrays(after_round(TrimmedMean({"trim": 0.4}), arrays_of(s=0.0), updates), s=2.0)


def test_a_row_that_a_node_does_not_send_counts_as_zero() -> None:
    """Row 0: 6, 3, -5 and 0 (not sent): the middle two are 0 and 3: 1.5. Row 1: 8, 0, 0, 0 leave 0 and 0."""
    updates = [
        update(1, 0, t=[[6.0], [8.0]]),
        by_rows(update(2, 1, t=[[3.0], [0.0]]), "t", [0]),
        by_rows(update(4, 2, t=[[-5.0], [0.0]]), "t", [0]),
        by_rows(update(4, 3, t=[[0.0], [0.0]]), "t", []),
    ]
    found = after_round(TrimmedMean({"trim": 0.25}), arrays_of(t=[[0.0], [0.0]]), updates)
    assert_arrays(found, t=[[1.5], [0.0]])


def test_nodes_that_do_not_answer_do_not_switch_trimming_off() -> None:
    """A tenth of ten nodes is one; nine answer, and a tenth of them is none. One is left out at each end all the same:
    eight honest nodes at 1, 2, ... 8 and a liar leave 2 ... 8, whose mean is 5."""
    updates = [update(1, k, s=float(k)) for k in range(1, 9)] + [update(1, 9, s=1e9)]
    assert_arrays(after_round(TrimmedMean({"trim": 0.1}), arrays_of(s=0.0), updates), s=5.0)


def test_of_two_nodes_nobody_is_left_out_and_without_anybody_nothing_moves() -> None:
    params = arrays_of(s=0.0)
    strategy = TrimmedMean({"trim": 0.4})
    assert_arrays(after_round(strategy, params, [update(1, 0, s=2.0), update(9, 1, s=4.0)]), s=3.0)
    assert_arrays(after_round(strategy, params, [update(0, 0, s=2.0)]), s=0.0)


@pytest.mark.parametrize("num_nodes", [3, 4, 5])
def test_a_trim_just_below_a_half_leaves_somebody(num_nodes: int) -> None:
    updates = [update(1, k, s=float(k)) for k in range(num_nodes)]
    found = after_round(TrimmedMean({"trim": 0.4999999999}), arrays_of(s=0.0), updates)
    assert_arrays(found, s=(num_nodes - 1) / 2)


@pytest.mark.parametrize("num_nodes", [3, 6, 7, 9, 11, 13, 997, 1003])
def test_the_trim_that_is_advised_is_taken(num_nodes: int) -> None:
    found = CoordinateTrimmedMean({"trim": 0.0001}).problem(num_nodes)
    assert f"of {num_nodes} nodes leaves nobody out" in found
    advised = float(found.split("at least ")[1].split()[0])
    assert CoordinateTrimmedMean({"trim": advised}).problem(num_nodes) == ""


@pytest.mark.parametrize("num_nodes", [0, 1, 2])
def test_of_fewer_than_three_nodes_none_can_be_trimmed(num_nodes: int) -> None:
    assert "at least 3 are needed" in CoordinateTrimmedMean({"trim": 0.49}).problem(num_nodes)


def test_a_share_that_rounding_puts_just_below_a_whole_number_of_nodes_counts() -> None:
    assert 0.29 * 100 < 29
    updates = [update(1, k, s=value) for k, value in enumerate(np.r_[np.full(29, -1e6), np.ones(42), np.full(29, 1e6)])]
    assert_arrays(after_round(TrimmedMean({"trim": 0.29}), arrays_of(s=0.0), updates), s=1.0)
