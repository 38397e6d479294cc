import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedrec_app.data import sources
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.data.partition import Prepared, build_cohort, partition
from fedrec_app.data.schema import Dataset
from fedrec_app.errors import ConfigError

USERS = pd.DataFrame(
    {"region": ["n", "s", "n", None, "s", "n", "e"], "age": [1, 2, 3, 4, 5, 6, 7]}, index=list("abcdefg")
)


def people(count: int) -> pd.DataFrame:
    return pd.DataFrame(index=[f"u{n}" for n in range(count)])


def test_943_nodes_hold_one_user_each() -> None:
    assert sorted(partition(people(943), "users", 943, 0).tolist()) == list(range(943))


def test_users_are_shuffled_by_the_seed() -> None:
    first, again, other = (partition(people(100), "users", 10, seed).tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert first != [n % 10 for n in range(100)]


def test_groups_stay_together_largest_first_to_the_emptiest() -> None:
    # n has 3, s has 2, then "" and e with 1 each, by name
    assert partition(USERS, "by:region", 2, 0).tolist() == [0, 1, 0, 1, 1, 0, 0]
    assert partition(USERS, "by:region", 6, 0).tolist() == [0, 1, 0, 2, 1, 0, 3]
    assert partition(USERS, "by:age", 1, 0).tolist() == [0] * 7


def test_dirichlet_is_reproducible_and_alpha_sets_the_skew() -> None:
    def sizes(alpha: float, seed: int) -> np.ndarray:
        return np.bincount(partition(people(10_000), f"dirichlet:{alpha}", 20, seed), minlength=20)

    assert (partition(people(500), "dirichlet:0.5", 20, 3) == partition(people(500), "dirichlet:0.5", 20, 3)).all()
    assert (sizes(0.5, 3) != sizes(0.5, 4)).any()
    assert sizes(1000, 0).std() < 40
    assert np.mean([sizes(0.1, seed).max() for seed in range(10)]) > 3000


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("user", "unknown partition 'user'.*did you mean 'users'"),
        ("by", "unknown partition 'by'"),
        ("by:regoin", "unknown user attribute 'regoin': one of age, region .did you mean 'region'"),
        ("dirichlet", "unknown partition"),
        ("dirichlet:", "alpha must be a positive number"),
        ("dirichlet:0", "alpha must be a positive number"),
        ("dirichlet:-1", "alpha must be a positive number"),
        ("dirichlet:nan", "alpha must be a positive number"),
        ("dirichlet:inf", "alpha must be a positive number"),
    ],
)
def test_wrong_schemes_are_named(scheme: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        partition(USERS, scheme, 2, 0)


def test_no_attributes_and_no_nodes_are_errors() -> None:
    with pytest.raises(ConfigError, match="have no attributes"):
        partition(people(3), "by:region", 2, 0)
    with pytest.raises(ConfigError, match="at least 1"):
        partition(people(3), "users", 0, 0)


@given(
    st.integers(1, 60),
    st.integers(1, 80),
    st.sampled_from(["users", "by:region", "dirichlet:0.01", "dirichlet:0.5", "dirichlet:100"]),
    st.integers(0, 2**63),
)
def test_every_user_is_on_one_of_the_nodes(count: int, num_nodes: int, scheme: str, seed: int) -> None:
    users = people(count).assign(region=[n % 4 for n in range(count)])
    nodes = partition(users, scheme, num_nodes, seed)
    assert nodes.shape == (count,)
    assert nodes.dtype == np.int64
    assert 0 <= nodes.min() <= nodes.max() < num_nodes
    if scheme == "users":
        sizes = np.bincount(nodes, minlength=num_nodes)
        assert sizes.max() - sizes.min() <= 1


@pytest.fixture(scope="module")
def data() -> Dataset:
    return sources.load("synthetic", options='{"num_users": 60, "num_items": 200, "mean_interactions": 30}')


@pytest.mark.parametrize("protocol", ["leave-one-out", "temporal", "leaky-pfedrec"])
@pytest.mark.parametrize("scheme", ["users", "by:region", "dirichlet:0.3"])
def test_cohorts_together_are_the_whole(data: Dataset, scheme: str, protocol: str) -> None:
    prepared = Prepared.of(data, protocol, seed=1)
    whole = prepared.cohort()
    assert whole.user_ids == tuple(data.users.index)
    place = {user: n for n, user in enumerate(whole.user_ids)}
    seen: list[str] = []
    for node in range(8):
        cohort = prepared.cohort(node, 8, scheme, seed=1)
        assert [place[user] for user in cohort.user_ids] == sorted(place[user] for user in cohort.user_ids)
        assert cohort.num_items == 200
        for n, user in enumerate(cohort.user_ids):
            for part in ("train", "validation", "test", "never_negative"):
                expected = getattr(whole, part)[place[user]]
                assert getattr(cohort, part)[n].tolist() == expected.tolist()
        seen += cohort.user_ids
    assert sorted(seen) == sorted(whole.user_ids)


def test_one_step_and_two_steps_agree(data: Dataset) -> None:
    one = build_cohort(data, "leave-one-out", "users", 7, 3, seed=2)
    two = Prepared.of(data, "leave-one-out", seed=2).cohort(3, 7, "users", seed=2)
    assert one.user_ids == two.user_ids
    assert one.test.items.tolist() == two.test.items.tolist()
    assert len(build_cohort(data, "leave-one-out", "users", 7, None, seed=2)) == 60


def test_nodes_may_be_empty_but_must_exist(data: Dataset) -> None:
    prepared = Prepared.of(data, "leave-one-out", seed=0)
    cohorts = [prepared.cohort(node, 100) for node in range(100)]
    assert sorted(len(cohort) for cohort in cohorts) == [0] * 40 + [1] * 60
    empty = next(cohort for cohort in cohorts if not len(cohort))
    assert (empty.user_ids, len(empty.train), empty.train.items.tolist()) == ((), 0, [])
    for node in (-1, 100):
        with pytest.raises(ConfigError, match="nodes are 0 to 99"):
            prepared.cohort(node, 100)


def test_users_are_dealt_once_for_all_nodes(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    dealt: list[tuple[str, int, int]] = []

    def deal(users: pd.DataFrame, scheme: str, num_nodes: int, seed: int) -> NDArray[np.int64]:
        dealt.append((scheme, num_nodes, seed))
        return partition(users, scheme, num_nodes, seed)

    monkeypatch.setattr("fedrec_app.data.partition.partition", deal)
    prepared = Prepared.of(data, "leave-one-out", seed=0)
    for scheme, seed in (("users", 0), ("users", 1), ("by:region", 1)):
        for node in range(4):
            expected = np.flatnonzero(partition(data.users, scheme, 4, seed) == node)
            np.testing.assert_array_equal(prepared.members(node, 4, scheme, seed), expected)
    assert dealt == [("users", 4, 0), ("users", 4, 1), ("by:region", 4, 1)]


def test_prepared_parts_cannot_be_written(data: Dataset) -> None:
    prepared = Prepared.of(data, "leave-one-out", seed=0)
    with pytest.raises(ValueError, match="read-only"):
        prepared.split.train.items[0] = 1


def test_the_honest_cohort_does_not_copy_its_train(data: Dataset) -> None:
    cohort = Prepared.of(data, "leave-one-out", seed=0).cohort(0, 2)
    assert cohort.never_negative is cohort.train


def test_clicks_make_histories_once_each_and_by_the_earliest() -> None:
    raw = pd.DataFrame(
        [
            ("a", "x", 1, 5.0),
            ("a", "y", 0, 1.0),
            ("a", "x", 1, 2.0),
            ("a", "z", 1, 3.0),
            ("a", "w", 1, 4.0),
            ("b", "y", 0, 1.0),
        ],
        columns=["user_id", "item_id", "label", "timestamp"],
    )
    cohort = build_cohort(Dataset.assemble(raw), "leave-one-out", "users", 1, None, seed=0)
    assert cohort.user_ids == ("a", "b")
    # catalog: w x y z; x was first clicked at 2
    assert [cohort.train[0].tolist(), cohort.validation[0].tolist(), cohort.test[0].tolist()] == [
        [1],
        [3],
        [0],
    ]
    assert cohort.train[1].tolist() == []


def test_clicks_at_one_time_keep_the_file_order() -> None:
    raw = pd.DataFrame({"user_id": ["a"] * 4, "item_id": list("ywxy"), "label": [1] * 4, "timestamp": [7.0] * 4})
    cohort = build_cohort(Dataset.assemble(raw), "leave-one-out", "users", 1, None, seed=0)
    # catalog: w x y
    assert [cohort.train[0].tolist(), cohort.validation[0].tolist(), cohort.test[0].tolist()] == [[2], [0], [1]]


def test_cohorts_know_whether_their_lists_are_in_the_order_of_time() -> None:
    raw = pd.DataFrame({"user_id": ["a", "a"], "item_id": ["x", "y"]})
    assert not build_cohort(Dataset.assemble(raw), "leave-one-out", "users", 1, 0, seed=0).ordered
    timed = Dataset.assemble(raw.assign(timestamp=[1, 2]))
    assert build_cohort(timed, "leave-one-out", "users", 1, 0, seed=0).ordered


def test_one_of_943_cohorts_takes_milliseconds() -> None:
    prepared = Prepared.of(sources.load("synthetic"), "leave-one-out", seed=0)
    prepared.cohort(0, 943)
    started = time.perf_counter()
    for node in range(50):
        assert len(prepared.cohort(node, 943)) == 1
    assert (time.perf_counter() - started) / 50 < 0.01


def test_a_cohort_with_items_beyond_the_catalog_is_refused() -> None:
    inside, beyond = Histories.from_lists([[0, 2]]), Histories.from_lists([[0, 3]])
    with pytest.raises(ValueError, match="test holds items 0 to 3: 0 to 2 are there"):
        Cohort(("u",), 3, inside, inside, beyond, inside)
