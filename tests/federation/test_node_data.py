"""Nodes that own their data: shards, files of their operators, and what the roll-call makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedrec_app import client_app, node_data, own_data
from fedrec_app.config import Scalar, read_toml
from fedrec_app.data import sources
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.feedback import Feedback
from fedrec_app.data.shards import Shards, write_shards
from fedrec_app.errors import ConfigError, DataError, FedrecError
from fedrec_app.local_grid import LocalGrid
from fedrec_app.node_settings import NodeSettings
from fedrec_app.server_app import RunResult, run_server
from fedrec_app.simulate import simulate
from strategies.rounds import Progress, RoundRecord
from tests.small import SMALL

Told = list[dict[str, Scalar]]
RUN: dict[str, Scalar] = {"num-server-rounds": 2, "privacy.min-cohort": 1, "strategy.join-timeout": 0.3}


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    dataset = sources.load("synthetic", min_interactions=5, options=SMALL)
    return write_shards(dataset, "users", 3, 0, tmp_path / "shards", {})


def told(shards: Shards, folder: Path) -> Told:
    """What the operators of three nodes say."""
    return [
        {
            "partition-id": k, "num-partitions": 3, "data-path": str(shards.node(k)),
            "state-dir": str(folder / f"state-{k}"),
        }
        for k in range(3)
    ]  # fmt: skip


def deployed(shards: Shards, folder: Path, nodes: Told, **settings: Any) -> RunResult:
    """A run on nodes that own their data, in this process."""
    flat = {**read_toml(shards.settings), "output-dir": str(folder / "out"), **RUN, **settings}
    return run_server(LocalGrid(client_app.app, flat, len(nodes), node_configs=nodes), flat)


def refusals(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if "is refused" in r.getMessage())


@pytest.mark.parametrize("model", ["mf", "sasrec"])
def test_shards_give_what_a_simulation_of_as_many_nodes_gives(shards: Shards, tmp_path: Path, model: str) -> None:
    own = deployed(shards, tmp_path, told(shards, tmp_path), **{"model.name": model})
    flat = {"output-dir": str(tmp_path / "sim"), "data.options": SMALL, **RUN, "model.name": model}
    simulated = simulate(flat, 3)
    arrays, made, popularity = own.folder.read_model()
    expected, expected_made, expected_popularity = simulated.folder.read_model()
    assert made.catalog_hash == expected_made.catalog_hash
    assert own.summary["test"] == simulated.summary["test"]
    assert popularity is not None
    np.testing.assert_array_equal(popularity, expected_popularity)
    for name in expected:
        np.testing.assert_array_equal(arrays[name], expected[name], err_msg=name)


def test_a_shard_has_its_own_users_and_the_server_none(shards: Shards) -> None:
    everyone = sources.load("synthetic", min_interactions=5, options=SMALL)
    found: list[str] = []
    for k in range(3):
        table = pd.read_parquet(shards.node(k) / "interactions.parquet")
        assert len(table) == shards.num_interactions[k]
        assert table["user_id"].nunique() == shards.num_users[k]
        found += sorted(table["user_id"].unique())
        assert shards.node(k).stat().st_mode & 0o777 == 0o700
    assert sorted(found) == sorted(everyone.users.index)
    assert [path.name for path in (shards.folder / "server").iterdir()] == ["catalog.jsonl"]


def empty_shard(folder: Path) -> None:
    table = pd.read_parquet(folder / "interactions.parquet")
    table.iloc[:0].to_parquet(folder / "interactions.parquet", index=False)


def unknown_items(folder: Path) -> None:
    table = pd.read_parquet(folder / "interactions.parquet")
    table.assign(item_id="nobody's").to_parquet(folder / "interactions.parquet", index=False)


def a_few_rows(folder: Path) -> None:
    table = pd.read_parquet(folder / "interactions.parquet")
    table.iloc[:2].to_parquet(folder / "interactions.parquet", index=False)


@pytest.mark.parametrize("spoil", [empty_shard, unknown_items, a_few_rows])
def test_a_node_without_users_takes_part(shards: Shards, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    rows = shards.num_interactions[2] if spoil is unknown_items else 0
    spoil(shards.node(2))
    result = deployed(shards, tmp_path, told(shards, tmp_path))
    assert (result.summary["num_nodes"], result.summary["refused_nodes"]) == (3, 0)
    assert result.summary["dropped_updates"] == {}
    assert result.summary["test"]["num_users"] == sum(shards.num_users[:2])
    assert result.summary["quarantined_rows"] == rows
    if rows:
        written = pd.read_csv(tmp_path / "state-2" / "quarantine-2.csv")
        assert set(written["reason"]) == {"item_id is not in the catalog"}
        assert len(written) == rows


def test_an_operator_names_his_own_file_columns_and_catalog(shards: Shards, tmp_path: Path) -> None:
    nodes = told(shards, tmp_path)
    table = pd.read_parquet(shards.node(1) / "interactions.parquet")
    film = table.rename(columns={"user_id": "viewer", "item_id": "film"})
    stranger = film.iloc[:1].assign(film="of another shop")
    pd.concat([film, stranger]).to_csv(tmp_path / "films.csv", index=False)
    nodes[1] = {
        "partition-id": 1, "state-dir": str(tmp_path / "state-1"), "data-path": str(tmp_path / "films.csv"),
        "data-columns": "user_id=viewer,item_id=film", "data-options": "{}",
        "catalog-path": str(shards.folder / "server" / "catalog.jsonl"),
    }  # fmt: skip
    own = deployed(shards, tmp_path, nodes)
    expected = deployed(shards, tmp_path / "again", told(shards, tmp_path / "again"))
    assert own.summary["quarantined_rows"] == 1
    assert own.summary["test"] == expected.summary["test"]


def other_catalog(node: dict[str, Scalar]) -> None:
    path = Path(str(node["data-path"])) / "catalog.jsonl"
    Catalog.of_ids([*Catalog.from_file(path).item_ids, "one more"]).to_file(path)


def no_timestamps(node: dict[str, Scalar]) -> None:
    path = Path(str(node["data-path"])) / "interactions.parquet"
    pd.read_parquet(path).drop(columns="timestamp").to_parquet(path, index=False)


def damaged(node: dict[str, Scalar]) -> None:
    path = Path(str(node["data-path"])) / "interactions.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def misspelt(node: dict[str, Scalar]) -> None:
    node["data-colums"] = "user_id=user"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (other_catalog, "its catalog-hash is "),
        (no_timestamps, "data.requires names column 'timestamp', this node's data has user_id, item_id"),
        (damaged, "the node's data is not usable; its own log says why"),
        (misspelt, "unknown node setting 'data-colums' (did you mean 'data-columns'?)"),
    ],
)
def test_a_node_that_does_not_fit_is_refused_and_the_run_goes_on(
    shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[dict[str, Scalar]], None],
    why: str,
) -> None:  # fmt: skip
    nodes = told(shards, tmp_path)
    spoil(nodes[1])
    result = deployed(shards, tmp_path, nodes)
    assert (result.summary["num_nodes"], result.summary["refused_nodes"]) == (2, 1)
    assert why in refusals(caplog)
    assert "u0" not in refusals(caplog)


def test_a_node_of_another_message_schema_is_refused(
    shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedrec_app.client.SCHEMA", 2)
    with pytest.raises(FedrecError, match="its message schema is 2, this run's is 1"):
        deployed(shards, tmp_path, told(shards, tmp_path))


def test_a_core_cannot_be_taken_of_data_that_nodes_own(shards: Shards, tmp_path: Path) -> None:
    node = NodeSettings.of(told(shards, tmp_path)[0], tmp_path)
    config = client_app._run((("data.k-core", 2), ("data.name", "csv")))[0]
    with pytest.raises(ConfigError, match=r"data.k-core looks across users: run `fedrec data clean`"):
        node.of_run(config)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "this node has no partition-id"),
        ({"partition-id": 0}, "this node has no num-partitions"),
        ({"partition-id": 2, "num-partitions": 2}, "partition-id is 2: 0 to 1 is allowed"),
        ({"partition-id": "two", "num-partitions": 2}, "partition-id is 'two': a whole number is expected"),
        ({"partition-id": 1.0, "num-partitions": 2}, "partition-id is 1.0: a whole number is expected"),
        ({"partition-id": True, "num-partitions": 2}, "partition-id is True: a whole number is expected"),
        ({"data-path": "/s", "state-dir": "/s"}, "state-dir and data-path are both /s"),
        ({"data-path": "/data"}, "needs a state-dir"),
        ({"data-columns": "a=b", "state-dir": "/s"}, "data-columns needs data-path"),
        ({"catalog-path": "/c", "partition-id": 0, "num-partitions": 1}, "catalog-path goes with data-path"),
    ],
)
def test_node_settings_that_make_no_sense(tmp_path: Path, said: Mapping[str, Scalar], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NodeSettings.of(said, tmp_path)


def test_settings_of_other_apps_are_left_alone(tmp_path: Path) -> None:
    said: dict[str, Scalar] = {"partition-id": 1, "num-partitions": 2, "camera": "/dev/video0"}
    assert NodeSettings.of(said, tmp_path) == NodeSettings(1, 2, tmp_path, durable=False)


def test_a_node_without_a_number_draws_one_and_keeps_it(tmp_path: Path) -> None:
    said: dict[str, Scalar] = {"data-path": "/data", "state-dir": str(tmp_path / "a")}
    first, again = NodeSettings.of(said, tmp_path), NodeSettings.of(said, tmp_path)
    other = NodeSettings.of({**said, "state-dir": str(tmp_path / "b")}, tmp_path)
    assert first.partition_id == again.partition_id != other.partition_id
    (tmp_path / "a" / "partition-id").write_text("x\n")
    with pytest.raises(ConfigError, match="holds 'x': a whole number is expected"):
        NodeSettings.of(said, tmp_path)


def test_feedback_counts_in_the_next_run_and_not_in_the_middle_of_this_one(shards: Shards, tmp_path: Path) -> None:
    nodes = told(shards, tmp_path)
    first = deployed(shards, tmp_path, nodes)
    ids = list(Catalog.from_file(shards.node(0) / "catalog.jsonl").item_ids[:6])
    events = pd.DataFrame({"user_id": "new", "item_id": ids, "timestamp": np.arange(6) + 2e9})
    Feedback(tmp_path / "state-0").append(events)
    lineage = first.summary["lineage"]
    node = NodeSettings.of(nodes[0], tmp_path)
    assert own_data.events_of_run(node, lineage) == 0
    assert own_data.events_of_run(node, "another") == 6
    second = deployed(shards, tmp_path, nodes)
    assert second.summary["test"]["num_users"] == first.summary["test"]["num_users"] + 1


def test_a_node_whose_data_changes_in_the_middle_of_a_run_is_dropped(shards: Shards, tmp_path: Path) -> None:
    nodes = told(shards, tmp_path)

    def watch(record: RoundRecord, progress: Progress, num_rounds: int) -> None:
        if record.round == 1:
            path = shards.node(1) / "interactions.parquet"
            table = pd.read_parquet(path)
            pd.concat([table, table.iloc[:1].assign(user_id="u99")]).to_parquet(path, index=False)

    flat = {**read_toml(shards.settings), "output-dir": str(tmp_path / "out"), **RUN}
    result = run_server(LocalGrid(client_app.app, flat, 3, node_configs=nodes), flat, watchers=[watch])
    assert [line["train"]["num-updates"] for line in result.folder.read_metrics()] == [3, 2]
    assert result.summary["test"]["dropped-evaluations"] == 1
    assert result.summary["remarks"] == [
        "1 nodes gave no usable answer about the test part: the others' users are judged"
    ]
    assert deployed(shards, tmp_path, nodes).summary["num_nodes"] == 3


def test_feedback_after_timestamps_in_milliseconds_is_refused(shards: Shards, tmp_path: Path) -> None:
    path = shards.node(0) / "interactions.parquet"
    table = pd.read_parquet(path)
    table.assign(timestamp=table["timestamp"] * 1000).to_parquet(path, index=False)
    nodes = told(shards, tmp_path)
    node = NodeSettings.of(nodes[0], tmp_path)
    item = str(table["item_id"].iloc[0])
    Feedback(node.state_dir).append(pd.DataFrame({"user_id": ["new"], "item_id": [item]}))
    config, _ = client_app._run(tuple(sorted(read_toml(shards.settings).items())))
    with pytest.raises(DataError, match="feedback has seconds since 1970"):
        node_data.prepared(node.of_run(config, 1).data)


def test_shards_are_not_written_over_others(shards: Shards) -> None:
    dataset = sources.load("synthetic", min_interactions=5, options=SMALL)
    with pytest.raises(DataError, match="it is not empty"):
        write_shards(dataset, "users", 2, 0, shards.folder, {})


def test_a_node_whose_catalog_changes_in_the_middle_of_a_run_is_dropped(shards: Shards, tmp_path: Path) -> None:
    nodes = told(shards, tmp_path)

    def watch(record: RoundRecord, progress: Progress, num_rounds: int) -> None:
        if record.round == 1:
            path = shards.node(1) / "catalog.jsonl"
            path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
            node_data.prepared.cache_clear()  # each message of a deployment has a process of its own
            node_data.node_data.cache_clear()

    flat = {**read_toml(shards.settings), "output-dir": str(tmp_path / "out"), **RUN}
    result = run_server(LocalGrid(client_app.app, flat, 3, node_configs=nodes), flat, watchers=[watch])
    assert [line["train"]["num-updates"] for line in result.folder.read_metrics()] == [3, 2]
    assert result.summary["dropped_updates"] == {"error-reply": 1}
