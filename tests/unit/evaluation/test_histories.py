"""What evaluation asks of `Histories`: selections, views of blocks, lists one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec_app.data.histories import Histories, as_range

LISTS = [[3, 1], [], [4, 1, 5], [9], [], [2, 6]]


@pytest.mark.parametrize("users", [[], [0], [5], [2, 3, 4], [0, 1, 2, 3, 4, 5], [4, 3, 2], [2, 2], [0, 2, 3], [1, 5]])
def test_selected_lists_are_copies_in_the_order_asked_for(users):
    histories = Histories.from_lists(LISTS)
    found = histories.select(np.array(users, dtype=np.int64))
    assert [found[row].tolist() for row in range(len(found))] == [LISTS[user] for user in users]
    assert found.indptr[0] == 0
    assert not np.shares_memory(found.items, histories.items)


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 6), (2, 5), (5, 6), (6, 6)])
def test_lists_between_two_users_are_views(start, stop):
    histories = Histories.from_lists(LISTS)
    found = histories.between(start, stop)
    assert [found[row].tolist() for row in range(len(found))] == LISTS[start:stop]
    assert len(found.items) == 0 or np.shares_memory(found.items, histories.items)


@given(st.lists(st.integers(0, 20), max_size=8))
@settings(max_examples=200, deadline=None)
def test_positions_that_follow_each_other_are_a_slice_of_the_same_positions(users):
    rows = as_range(np.array(users, dtype=np.int64))
    assert np.arange(30)[rows].tolist() == users
    assert isinstance(rows, slice) == (users != [] and users == list(range(users[0], users[0] + len(users))))


def test_lists_follow_those_of_the_same_user():
    later = [[7], [8, 8], [], [0], [], []]
    both = Histories.from_lists(LISTS).followed_by(Histories.from_lists(later))
    assert [both[user].tolist() for user in range(6)] == [a + b for a, b in zip(LISTS, later, strict=True)]
    with pytest.raises(ValueError, match="histories of 6 and 2 users do not match"):
        Histories.from_lists(LISTS).followed_by(Histories.from_lists(LISTS[:2]))
