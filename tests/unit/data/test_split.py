import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec_app.data.histories import Histories
from fedrec_app.data.split import PROTOCOLS, Split, split
from fedrec_app.errors import ConfigError, DataError


def lists(histories: Histories) -> list[list[int]]:
    return [histories[user].tolist() for user in range(len(histories))]


def run(rows: list[tuple[int, int, float]], protocol: str, num_users: int, seed: int = 0, timed: bool = True) -> Split:
    users, items, times = (np.array(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    return split(
        np.asarray(users, dtype=np.int64),
        np.asarray(items, dtype=np.int64),
        np.asarray(times, dtype=np.float64) if timed else None,
        [f"user-{u}" for u in range(num_users)],
        protocol,
        seed,
    )


def test_the_last_by_time_is_test_and_ties_keep_the_file_order() -> None:
    rows = [
        (0, 5, 3.0),
        (1, 1, 9.0),
        (0, 2, 1.0),
        (1, 7, 9.0),
        (0, 9, 3.0),
        (1, 4, 9.0),
        (1, 3, 9.0),
        (0, 1, 3.0),
    ]
    parts = run(rows, "leave-one-out", 2)
    assert lists(parts.train) == [[2, 5], [1, 7]]
    assert lists(parts.validation) == [[9], [4]]
    assert lists(parts.test) == [[1], [3]]
    assert parts.never_negative is parts.train


def test_users_with_too_few_items_keep_all_of_them() -> None:
    rows = [(0, 1, 1.0), (1, 2, 1.0), (1, 3, 2.0), (2, 4, 1.0), (2, 5, 2.0), (2, 6, 3.0)]
    parts = run(rows, "leave-one-out", 4)
    assert lists(parts.train) == [[1], [2, 3], [4], []]
    assert lists(parts.validation) == [[], [], [5], []]
    assert lists(parts.test) == [[], [], [6], []]


def test_leaky_protocol_never_draws_the_answers_and_the_honest_one_may() -> None:
    rows = [(0, item, float(item)) for item in range(4)]
    honest, leaky = run(rows, "leave-one-out", 1), run(rows, "leaky-pfedrec", 1)
    assert lists(honest.never_negative) == [[0, 1]]
    assert lists(leaky.never_negative) == [[0, 1, 2, 3]]
    for part in ("train", "validation", "test"):
        assert lists(getattr(leaky, part)) == lists(getattr(honest, part))


def test_without_time_the_draw_belongs_to_the_user_alone() -> None:
    rows = [(0, item, 0.0) for item in range(30)] + [(1, item, 0.0) for item in range(30)]
    both = run(rows, "leave-one-out", 2, timed=False)
    alone = split(np.zeros(30, np.int64), np.arange(30), None, ["user-1"], "leave-one-out", 0)
    assert both.test[1].tolist() == alone.test[0].tolist()
    assert both.validation[1].tolist() == alone.validation[0].tolist()
    assert both.train[1].tolist() == alone.train[0].tolist() == sorted(alone.train[0].tolist())
    drawn = {run(rows, "leave-one-out", 2, seed, timed=False).test[0][0] for seed in range(40)}
    assert len(drawn) > 10
    assert both.test[0].tolist() + both.validation[0].tolist() != both.test[1].tolist() + both.validation[1].tolist()


def test_temporal_cuts_all_users_at_the_same_times() -> None:
    rows = [(time % 3, time, float(time)) for time in range(100)]
    parts = run(rows[::-1], "temporal", 3)
    assert sorted(parts.train.items.tolist()) == list(range(80))
    assert sorted(parts.validation.items.tolist()) == list(range(80, 90))
    assert sorted(parts.test.items.tolist()) == list(range(90, 100))
    assert parts.test[0].tolist() == [90, 93, 96, 99]


def test_temporal_never_parts_simultaneous_rows() -> None:
    parts = run([(0, item, 7.0) for item in range(10)], "temporal", 1)
    assert parts.train.lengths.tolist() == [10]


def test_wrong_requests_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"unknown protocol 'leave-1-out'.*did you mean 'leave-one-out'"):
        run([(0, 1, 1.0)], "leave-1-out", 1)
    with pytest.raises(DataError, match="'temporal' needs timestamps"):
        run([(0, 1, 1.0)], "temporal", 1, timed=False)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[tuple[int, int, float]], int]:
    num_users = draw(st.integers(1, 5))
    pairs = draw(st.lists(st.tuples(st.integers(0, num_users - 1), st.integers(0, 12)), unique=True, max_size=40))
    times = draw(st.lists(st.integers(0, 6), min_size=len(pairs), max_size=len(pairs)))
    return [(u, i, float(t)) for (u, i), t in zip(pairs, times, strict=True)], num_users


@given(tables(), st.sampled_from(PROTOCOLS), st.booleans())
def test_parts_are_disjoint_and_together_everything(
    table: tuple[list[tuple[int, int, float]], int], protocol: str, timed: bool
) -> None:
    rows, num_users = table
    parts = run(rows, protocol, num_users, timed=timed or protocol == "temporal")
    held = [lists(part) for part in (parts.train, parts.validation, parts.test)]
    for user in range(num_users):
        together = sorted(item for part in held for item in part[user])
        assert together == sorted(item for u, item, _ in rows if u == user)
        if protocol != "temporal":
            judged = len(together) >= 3
            assert (len(held[1][user]), len(held[2][user])) == (judged, judged)


@given(tables(), st.sampled_from(PROTOCOLS))
def test_the_past_comes_before_what_is_held_out(table: tuple[list[tuple[int, int, float]], int], protocol: str) -> None:
    rows, num_users = table
    parts = run(rows, protocol, num_users)
    for user in range(num_users):
        time_of = {item: time for u, item, time in rows if u == user}
        order = [time_of[i] for part in (parts.train, parts.validation, parts.test) for i in part[user].tolist()]
        assert order == sorted(order)
