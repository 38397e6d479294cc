import json
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec_app import cli_data, node_data
from fedrec_app.config import DataConfig
from fedrec_app.data.cleaning import Rules, clean, cleaning_of
from fedrec_app.data.schema import Catalog, Dataset
from fedrec_app.errors import ConfigError, DataError

# u has w, x, y; v has w, x; r has x alone, and q has y alone; nobody has z.
ROWS = ["uw", "ux", "uy", "vw", "vx", "rx", "qy"]
CATALOG = Catalog(tuple("zyxw"), pd.DataFrame({"title": ["Z", "Y", "X", "W"]}))


def dataset(pairs: Iterable[str] = ROWS, catalog: Catalog | None = CATALOG, **columns: list) -> Dataset:
    users, items = zip(*pairs, strict=True)
    raw = pd.DataFrame({"user_id": list(users), "item_id": list(items), **columns})
    friends = pd.DataFrame({"user_id": list("uuv"), "friend_id": list("vqr")})
    return Dataset.assemble(raw, catalog=catalog, friends=friends)


def rows(data: Dataset) -> list[str]:
    table = data.interactions.table
    return [user + item for user, item in zip(table["user_id"], table["item_id"], strict=True)]


def test_a_core_is_peeled_until_no_user_and_no_item_has_too_few() -> None:
    whole = dataset()
    data = clean(whole, Rules(k_core=2))
    # first r, q and z go, then y, which only u has left
    assert rows(data) == ["uw", "ux", "vw", "vx"]
    assert data.users.index.tolist() == ["u", "v"]
    assert data.catalog.item_ids == ("x", "w")
    assert data.catalog.features["title"].tolist() == ["X", "W"]
    assert data.catalog.hash != whole.catalog.hash
    assert (data.user_codes.tolist(), data.item_codes.tolist()) == ([0, 0, 1, 1], [1, 0, 1, 0])
    assert data.friends is not None
    assert data.friends.to_numpy().tolist() == [["u", "v"]]
    assert cleaning_of(data) == {
        "before": {"users": 4, "items": 4, "interactions": 7},
        "after": {"users": 2, "items": 2, "interactions": 4},
        "rules": {
            "k-core": {
                "value": 2,
                "users": 2, "items": 2, "interactions": 3,
                "share_of_users": 0.5, "share_of_items": 0.5, "share_of_interactions": 3 / 7,
                "rounds": 2,
            }
        },
    }  # fmt: skip


def test_a_core_of_impressions_counts_each_clicked_pair_once() -> None:
    pairs = ["ux", "ux", "uy", "uz", "vx", "vx", "vy", "vz"]
    data = clean(dataset(pairs, None, label=[1, 0, 1, 0, 1, 1, 1, 1]), Rules(k_core=2))
    # u saw z without a click; the impressions of items that stay do stay
    assert rows(data) == ["ux", "ux", "uy", "vx", "vx", "vy"]
    with pytest.raises(DataError, match=r"k-core = 2 leaves nothing: there is no 2-core: the largest is a 1-core"):
        clean(dataset(["ux", "ux", "vy", "vy"], None, label=[1, 1, 1, 1]), Rules(k_core=2))


def test_outliers_are_removed_whole_and_their_items_stay_in_the_catalog() -> None:
    data = clean(dataset(), Rules(max_interactions=2))
    assert rows(data) == ["vw", "vx", "rx", "qy"]
    assert data.catalog.item_ids == CATALOG.item_ids
    with pytest.raises(DataError, match=r"max-interactions = 1 leaves nothing: no user has at most 1 .* fewest is 2"):
        clean(dataset(["ux", "uy", "vx", "vy"]), Rules(max_interactions=1))


def test_the_last_session_stays_and_a_pause_as_long_as_the_gap_does_not_end_one() -> None:
    pairs = ["uw", "vx", "ux", "uy", "vw", "uz", "ry"]
    data = clean(dataset(pairs, timestamp=[50, 9, 20, 40, 500, 0, 3]), Rules(session_gap=10))
    assert rows(data) == ["uw", "uy", "vw", "ry"]
    assert rows(clean(dataset(pairs, timestamp=[50, 9, 20, 40, 500, 0, 3]), Rules(session_gap=20))) == [
        "uw", "ux", "uy", "vw", "uz", "ry",
    ]  # fmt: skip
    assert data.num_items == 4


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "needs timestamps, which this data set does not have"),
        ({"timestamp": [1685336204570.0] * 7}, r"is in seconds, .* \(the latest is 1685336204570\)"),
    ],
)
def test_sessions_need_timestamps_in_seconds(columns: dict, message: str) -> None:
    with pytest.raises(DataError, match=f"data.session-gap {message}"):
        clean(dataset(**columns), Rules(session_gap=1800))


def test_rules_are_repeated_until_none_removes_anything() -> None:
    # without x, which u alone has, there is a pause between w and y: u's last session is y alone, then y is too rare
    pairs, times = ["uw", "ux", "uy", "vw", "vy", "rw", "rv", "vv"], [0, 20, 40, 0, 20, 5, 5, 20]
    data = clean(dataset(pairs, None, timestamp=times), Rules(session_gap=30, k_core=2))
    assert rows(data) == ["vw", "rw", "rv", "vv"]
    removed = cleaning_of(data)["rules"]
    assert [removed["session-gap"][key] for key in ("users", "interactions", "rounds")] == [0, 1, 1]
    assert [removed["k-core"][key] for key in ("users", "interactions", "rounds")] == [1, 3, 3]


def test_every_row_is_accounted_for_and_every_rule_is_told() -> None:
    pairs = [*ROWS, "ux", "u "]
    data = clean(dataset(pairs, timestamp=list(range(9))), Rules(2, 100, 0, 2))
    report = data.report
    assert report.rows_read == 9 == report.rows_kept + 1 + report.duplicates_merged + report.rows_dropped
    assert (report.users_dropped, report.rows_dropped) == (3, 5)
    assert report.lines() == [
        "2 of 9 rows kept",
        "1 rows set aside: item_id is missing",
        "1 repeated rows of the same user and item merged",
        "data.max-interactions = 2: 1 users (25.00%), 3 interactions (42.86%) removed in 1 round",
        "data.session-gap = 100: nothing to remove",
        "data.min-interactions = 2: 2 users (50.00%), 2 interactions (28.57%) removed in 1 round",
    ]


def test_no_rule_changes_nothing_at_all() -> None:
    data = dataset()
    assert clean(data, Rules()) is data
    assert cleaning_of(data) == {}


def test_users_who_did_nothing_go_before_any_rule() -> None:
    data = dataset()
    users = pd.DataFrame(index=data.users.index.append(pd.Index(["idle"])))
    idle = Dataset.of(data.interactions, data.catalog, users, None, data.report)
    assert clean(idle, Rules()).num_users == 4
    assert cleaning_of(clean(idle, Rules(max_interactions=9)))["before"]["users"] == 4


def test_when_nothing_is_left_the_rule_and_what_went_before_are_named() -> None:
    with pytest.raises(DataError) as caught:
        clean(dataset(), Rules(max_interactions=2, min_interactions=2, k_core=2))
    assert str(caught.value) == (
        "data.k-core = 2 leaves nothing: there is no 2-core: the largest is a 1-core "
        "(before it, data.max-interactions = 2 removed 1 users and 3 interactions)"
    )
    with pytest.raises(DataError, match=r"^data.min-interactions = 9 leaves nothing: no user has 9 interactions"):
        clean(dataset(), Rules(min_interactions=9))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"max_interactions": 4, "min_interactions": 5},
            r"max-interactions \(4\) is below data.min-interactions \(5\)",
        ),
        ({"max_interactions": 4, "k_core": 5}, r"max-interactions \(4\) is below data.k-core \(5\)"),
        ({"session_gap": -1}, "data.session-gap is -1: at least 0"),
    ],
)
def test_rules_that_cannot_be_are_refused(rules: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rules(**rules)


INTERACTIONS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz"), st.integers(0, 60)), min_size=10, max_size=24
)


def of(drawn: list[tuple[str, str, int]]) -> Dataset:
    return dataset([user + item for user, item, _ in drawn], None, timestamp=[time for _, _, time in drawn])


@settings(max_examples=25)
@given(INTERACTIONS, st.integers(0, 8), st.integers(0, 20), st.integers(0, 3), st.integers(1, 3))
def test_cleaning_clean_data_removes_nothing(drawn: list, most: int, gap: int, k: int, least: int) -> None:
    rules = Rules(most if most >= max(k, least) else 0, gap, k, least)
    try:
        once = clean(of(drawn), rules)
    except DataError:
        return
    twice = clean(once, rules)
    assert twice.interactions.table.equals(once.interactions.table)
    assert twice.catalog.hash == once.catalog.hash
    assert all(not removed["rounds"] for removed in cleaning_of(twice).get("rules", {}).values())
    per_user = np.bincount(once.user_codes, minlength=once.num_users)
    assert per_user.min() >= max(least, k)
    assert not rules.max_interactions or per_user.max() <= rules.max_interactions
    assert np.bincount(once.item_codes, minlength=once.num_items).min() >= k


@settings(max_examples=25)
@given(INTERACTIONS, st.integers(2, 3))
def test_the_core_is_that_of_removing_one_at_a_time(drawn: list, k: int) -> None:
    pairs = {user + item.upper() for user, item, _ in drawn}
    while few := [node for node, count in Counter("".join(pairs)).items() if count < k]:
        pairs = {pair for pair in pairs if few[0] not in pair}
    try:
        found = {pair[0] + pair[1].upper() for pair in rows(clean(of(drawn), Rules(k_core=k)))}
    except DataError:
        found = set()
    assert found == pairs


def shop(tmp_path, name: str, pairs: list[str]) -> DataConfig:
    path = tmp_path / f"{name}.csv"
    path.write_text("user_id,item_id\n" + "".join(f"{user},{item}\n" for user, item in pairs))
    return DataConfig(name="csv", path=str(path), k_core=2, min_interactions=1)


def test_server_and_nodes_of_the_same_data_have_the_same_catalog_and_others_have_not(tmp_path) -> None:
    config = shop(tmp_path, "all", ROWS)
    server = node_data.catalog(config)
    assert server.item_ids == ("w", "x")
    assert node_data.prepared(config).dataset.catalog.hash == server.hash
    assert node_data.cohort(config, 0, 2).num_items == 2
    # a node that saw u and q alone would keep other items, and roll-call refuses another catalog
    part = shop(tmp_path, "part", [*ROWS, "qw"])
    assert node_data.catalog(part).hash != server.hash


def test_the_command_shows_what_was_removed(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("fedrec_app.data.stats.plot", lambda stats, path: None)
    path = shop(tmp_path, "all", ROWS).path
    out = tmp_path / "out"
    cli_data.stats("csv", path=path, min_interactions=1, k_core=2, num_nodes=1, out=out, as_json=True)
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["cleaning"]["rules"]["k-core"]["interactions"] == 3
    assert (found["users"], found["items"], found["timestamps"]) == (2, 2, False)
    assert "data.k-core = 2: 2 users (50.00%)" in printed.err
    assert "no timestamps: held-out items are drawn" in printed.err
    cli_data.stats("csv", path=path, min_interactions=1, k_core=2, num_nodes=1, out=out)
    assert "removed by k-core 2" in capsys.readouterr().out
