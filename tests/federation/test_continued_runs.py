"""A new run that goes on where a finished one ended: rows, new users and items, and what it cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedrec_app import client_app, node_data, private_state
from fedrec_app.artifacts import RunFolder
from fedrec_app.config import read_toml
from fedrec_app.data import sources
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.extended import extended
from fedrec_app.data.feedback import Feedback
from fedrec_app.data.shards import write_shards
from fedrec_app.errors import ConfigError, StateError
from fedrec_app.finished import FinishedRun
from fedrec_app.local_grid import LocalGrid
from fedrec_app.privacy.accounting import epsilon
from fedrec_app.privacy.ledger import LEDGER, SPENT_BEFORE, Ledger
from fedrec_app.private_state import Parent, PrivateState, inherited
from fedrec_app.records import Ask
from fedrec_app.seeding import user_key
from fedrec_app.server_app import RunResult, run_server
from fedrec_app.serving.bundle import bundle
from fedrec_app.serving.on_node import recommend_on_node
from fedrec_app.simulate import simulate
from tests.small import SMALL

NUM_USERS, NUM_ITEMS = 60, 40
NEUMF = {"model.name": "neumf", "model.embedding-dim": 8, "model.options": '{"layers": [8]}'}


def clicks(folder: Path, users: range, new_item: bool = False) -> None:
    """Users of three tastes; with the new item, everybody of the first taste has it last but two."""
    rng = np.random.default_rng(3)
    rows = []
    for user in range(NUM_USERS + 10):
        mine = rng.permutation(np.arange(user % 3, NUM_ITEMS, 3))[:10]
        if user in users:
            rows += [(f"u{user}", f"i{item}", 10 * n) for n, item in enumerate(mine)]
            if new_item and user % 3 == 0:
                rows.append((f"u{user}", "new", 75))
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).to_csv(folder / "interactions.csv", index=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    clicks(folder, range(NUM_USERS))
    Catalog(tuple(f"i{n}" for n in range(NUM_ITEMS))).to_file(folder / "catalog.jsonl")
    return folder


def forget() -> None:
    """As in a new process."""
    for kept in vars(node_data).values():
        if isinstance(kept, node_data.Kept):
            kept.cache_clear()
    private_state._rows_of.cache_clear()


def run(data: Path, rounds: int, num_nodes: int = 3, **settings: Any) -> RunResult:
    forget()
    flat = {
        "output-dir": str(data.parent / "runs"), "data.name": "csv", "data.path": str(data),
        "data.options": '{"catalog": "catalog.jsonl"}', "num-server-rounds": rounds, "evaluate.bootstrap": 0,
        "privacy.min-cohort": 1, "train.learning-rate": 1.0, **NEUMF, **settings,
    }  # fmt: skip
    return simulate(flat, num_nodes, reads_test=True)


def rows_of(result: RunResult, name: str = "user_gmf", lineage: str = "", at_round: int = 0) -> dict[int, Any]:
    """User key -> his private row after a round of a run."""
    _, made, _ = result.folder.read_model()
    nodes = result.folder.path.parent.parent / "nodes"
    found = {}
    for partition in range(3):
        rows = PrivateState(nodes, lineage or made.lineage, partition).newest(at_round or made.round)
        assert rows is not None
        found.update(dict(zip(rows["user-keys"].tolist(), rows[name], strict=True)))
    return found


def grow(data: Path) -> None:
    """Ten new users, and a new item that old ones have too."""
    clicks(data, range(NUM_USERS + 10), new_item=True)
    before = Catalog.from_file(data / "catalog.jsonl")
    extended(before, Catalog(("new",))).to_file(data / "catalog.jsonl")


def test_a_continued_run_keeps_rows_admits_newcomers_and_starts_ahead(data: Path, without_pictures: None) -> None:
    first = run(data, 25)
    assert first.summary["status"] == "completed"
    grow(data)
    # Nothing is trained in these rounds, so that what comes of the parent's state shows as it is.
    still = {"train.learning-rate": 1e-30, "train.private-learning-rate": 1e-30}
    still |= {"strategy.name": "fedavg", "strategy.options": "{}", "evaluate.fold-in-epochs": 0}
    onward = {"checkpoint.continue-from": str(first.folder.path)}
    second = run(data, 1, **onward, **still)
    before, after = rows_of(first), rows_of(second)
    assert len(before) == NUM_USERS
    assert len(after) == NUM_USERS + 10
    assert len({row.tobytes() for row in after.values()}) == NUM_USERS + 10
    for key, row in before.items():
        np.testing.assert_array_equal(after[key], row)
    fresh = run(data, 1, **still)
    newcomers = [user_key(f"u{n}") for n in range(NUM_USERS, NUM_USERS + 10)]
    initial = rows_of(fresh)
    for key in newcomers:
        np.testing.assert_array_equal(after[key], initial[key])
    old, new = first.folder.read_model()[0], second.folder.read_model()[0]
    np.testing.assert_allclose(new["item_gmf"][:NUM_ITEMS], old["item_gmf"], atol=1e-6)
    assert new["item_gmf"].shape == (NUM_ITEMS + 1, 8)
    assert second.summary["continued_from"]["new_item_ids"] == ["new"]
    assert second.summary["continued_from"]["lineage"] == first.summary["lineage"] != second.summary["lineage"]
    assert second.summary["test"]["ndcg@10"] > 1.5 * fresh.summary["test"]["ndcg@10"]


def test_training_goes_on_better_than_from_scratch(data: Path, without_pictures: None) -> None:
    first = run(data, 25)
    grow(data)
    onward = run(data, 1, **{"checkpoint.continue-from": str(first.folder.path)})
    scratch = run(data, 1)
    assert onward.summary["test"]["ndcg@10"] > 1.3 * scratch.summary["test"]["ndcg@10"]
    again = run(data, 1, **{"checkpoint.continue-from": str(onward.folder.path)})  # a child has children
    assert again.summary["continued_from"]["new_items"] == 0
    assert again.summary["continued_from"]["lineage"] == onward.summary["lineage"]


def test_messages_name_the_parent_and_a_resumed_run_still_does(
    data: Path, monkeypatch: pytest.MonkeyPatch, without_pictures: None
) -> None:
    first = run(data, 2)
    onward = {"checkpoint.continue-from": str(first.folder.path), "checkpoint.every": 1}
    second = run(data, 2, **onward)
    named = set()
    handle = LocalGrid._handle

    def spy(self: LocalGrid, message: Any) -> Any:
        config = message.content.get("config", {})
        if Ask.ROUND in config or Ask.PART in config:
            named.add(config.get(Ask.PARENT))
        return handle(self, message)

    monkeypatch.setattr(LocalGrid, "_handle", spy)
    made = first.folder.read_model()[1]
    longer = {**onward, "checkpoint.resume-from": str(second.folder.path)}
    assert run(data, 3, **longer).folder.path == second.folder.path
    assert named == {f"{made.lineage}:{made.round}"}
    with pytest.raises(ConfigError, match=r"checkpoint.continue-from was '.*runs"):
        run(data, 4, **{**longer, "checkpoint.continue-from": ""})


def test_private_state_that_is_damaged_is_begun_anew_and_counted(
    data: Path, caplog: pytest.LogCaptureFixture, without_pictures: None
) -> None:
    first = run(data, 2)
    made = first.folder.read_model()[1]
    nodes = first.folder.path.parent.parent / "nodes"
    for file in (nodes / made.lineage / "1").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-5])
    forget()
    intact = PrivateState(nodes, made.lineage, 0).newest(made.round)
    assert intact is not None
    lost = np.array([user_key("nobody"), intact["user-keys"][0]], dtype=np.uint64)
    with caplog.at_level("WARNING", logger="flwr"):
        found = inherited(nodes, Parent(made.lineage, made.round), lost, {"user_gmf": np.full((2, 8), 5, np.float32)})
    np.testing.assert_array_equal(found["user_gmf"], [np.full(8, 5), intact["user_gmf"][0]])
    assert f"1 of 3 private states of {made.lineage}:{made.round} are damaged" in caplog.text
    assert run(data, 1, **{"checkpoint.continue-from": str(first.folder.path)}).summary["status"] == "completed"


@pytest.mark.parametrize(
    "text", ["", "a", "a:", ":3", "../x:3", "a/b:3", "a:-1", "a:1.5", "a:9999999999", "x" * 200 + ":1"]
)
def test_a_parent_that_is_no_plain_name_and_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"parent|lineage"):
        Parent.parse(text)
    assert str(Parent.parse("20240101T000000-ab:12")) == "20240101T000000-ab:12"


def test_what_cannot_be_continued_is_refused_by_name(data: Path, without_pictures: None) -> None:
    first = run(data, 1)
    onward = {"checkpoint.continue-from": str(first.folder.path)}
    with pytest.raises(ConfigError, match=r"model\.embedding-dim was 8 and is 4"):
        run(data, 1, **{**onward, "model.embedding-dim": 4})
    with pytest.raises(ConfigError, match="solved from the data"):
        run(data, 1, **{**onward, "model.name": "ease", "model.embedding-dim": "auto", "model.options": "{}"})
    with pytest.raises(ConfigError, match=r"so does model.init-from"):
        run(data, 1, **{**onward, "model.init-from": str(first.folder.path)})
    example = {"privacy.unit": "example", "privacy.noise-multiplier": 1.0, "privacy.delta": 1e-4}
    with pytest.raises(ConfigError, match="each node's ledger is of one lineage"):
        run(data, 1, **{**onward, **example})
    with pytest.raises(StateError, match=r"no summary.json in .*gone"):
        run(data, 1, **{"checkpoint.continue-from": str(data / "gone")})
    summary = first.folder.read_summary()
    first.folder.write_summary({**summary, "status": "failed"})
    with pytest.raises(StateError, match="is 'failed', not completed"):
        run(data, 1, **onward)
    first.folder.write_summary(summary)
    Catalog(tuple(f"i{n}" for n in range(1, NUM_ITEMS))).to_file(data / "catalog.jsonl")
    with pytest.raises(StateError, match="differ in 1 items: a catalog may grow, and nothing else"):
        run(data, 1, **onward)


def test_feedback_on_a_node_reaches_the_next_run_which_admits_users_and_items(
    tmp_path: Path, without_pictures: None
) -> None:
    dataset = sources.load("synthetic", min_interactions=5, options=SMALL)
    shards = write_shards(dataset, "users", 2, 0, tmp_path / "shards", {})
    states = [tmp_path / f"state-{k}" for k in range(2)]
    told: list[dict[str, Any]] = [
        {"partition-id": k, "num-partitions": 2, "data-path": str(shards.node(k)), "state-dir": str(states[k])}
        for k in range(2)
    ]

    def on_nodes(**settings: Any) -> RunResult:
        forget()
        flat: dict[str, Any] = {
            **read_toml(shards.settings), "output-dir": str(tmp_path / "runs"), "num-server-rounds": 2,
            "privacy.min-cohort": 1, "evaluate.bootstrap": 0, **NEUMF, **settings,
        }  # fmt: skip
        return run_server(LocalGrid(client_app.app, flat, 2, node_configs=told), flat)

    first = on_nodes()
    items = dataset.catalog.item_ids
    new = pd.DataFrame({"user_id": "late", "item_id": ["the new one", *items[:8]]})
    Feedback(states[1]).append(new.assign(timestamp=range(2_000_000_000, 2_000_000_009)))
    onward = {"checkpoint.continue-from": str(first.folder.path)}
    second = on_nodes(**onward)
    assert second.summary["quarantined_rows"] == 1  # no catalog has the item yet
    for folder in (shards.folder / "server", shards.node(0), shards.node(1)):
        after = extended(Catalog.from_file(folder / "catalog.jsonl"), Catalog(("the new one",)))
        after.to_file(folder / "catalog.jsonl")
    third = on_nodes(**onward)
    assert third.summary["quarantined_rows"] == 0
    assert third.summary["continued_from"]["new_item_ids"] == ["the new one"]
    held = [
        PrivateState(states[1], result.folder.read_model()[1].lineage, 1).newest(2) for result in (first, second, third)
    ]
    late = user_key("late")
    assert [late in rows["user-keys"] for rows in held if rows is not None] == [False, True, True]
    (tmp_path / "bundle").write_bytes(bundle(FinishedRun.read(third.folder), after))
    found = recommend_on_node(tmp_path / "bundle", states[1], "late", [], 1000, {"path": str(shards.node(1))})
    assert found["method"] == "private rows"
    assert {item["item_id"] for item in found["items"]} == set(items[8:])


PRIVATE = {
    "model.name": "mf", "model.embedding-dim": 8, "model.options": "{}", "privacy.unit": "user",
    "privacy.metrics": "withheld", "train.learning-rate": "auto",
}  # fmt: skip


def test_the_cost_of_a_private_run_and_of_the_one_before_it_is_one_epsilon(data: Path, without_pictures: None) -> None:
    first = run(data, 3, **PRIVATE, **{"privacy.noise-multiplier": 4.0})
    onward = {"checkpoint.continue-from": str(first.folder.path)}
    second = run(data, 2, **PRIVATE, **onward, **{"privacy.noise-multiplier": 3.0})
    with Ledger.open(second.folder.path / "privacy-ledger.jsonl") as ledger:
        whats, events, delta = [c.what.get("for") for c in ledger.charges], ledger.events, ledger.header["delta"]
    assert whats == [SPENT_BEFORE, "round", "round"]
    assert [(e.noise_multiplier, e.count) for e in events] == [(4.0, 3), (3.0, 1), (3.0, 1)]
    told = second.summary["privacy"]["epsilon"]
    assert told == pytest.approx(epsilon(events, delta), rel=1e-3)
    assert told > epsilon(events[1:], delta) + 0.1
    assert "start" not in second.summary["privacy"]  # the start is covered
    target = told + 2
    third = run(data, 2, **PRIVATE, **onward, **{"privacy.target-epsilon": target})
    assert first.summary["privacy"]["epsilon"] < third.summary["privacy"]["epsilon"] <= target
    assert third.summary["privacy"]["epsilon"] > 0.9 * target  # noise was chosen for both together
    tight = {"privacy.target-epsilon": first.summary["privacy"]["epsilon"] + 1e-3, "privacy.noise-multiplier": 3.0}
    with pytest.raises(ConfigError, match="with what the run before has cost"):
        run(data, 1, **PRIVATE, **onward, **tight)


def test_a_private_run_says_that_a_run_without_privacy_came_before(data: Path, without_pictures: None) -> None:
    open_one = {key: value for key, value in PRIVATE.items() if not key.startswith("privacy")}
    first = run(data, 1, **open_one)
    onward = {"checkpoint.continue-from": str(first.folder.path)}
    second = run(data, 1, **PRIVATE, **onward, **{"privacy.noise-multiplier": 3.0})
    assert second.summary["privacy"]["start"].startswith(f"{first.folder.path}: what it has learnt")
    third = run(
        data, 1, **PRIVATE, **{"checkpoint.continue-from": str(second.folder.path)}, **{"privacy.noise-multiplier": 3.0}
    )
    assert str(first.folder.path) in third.summary["privacy"]["start"]
    assert json.loads((third.folder.path / "summary.json").read_text())["privacy"]["epsilon"] > 0
    assert RunFolder(third.folder.path).read_config()["checkpoint.continue-from"] == str(second.folder.path)


def test_the_rows_of_a_parent_are_not_written_to(data: Path, without_pictures: None) -> None:
    """Two runs that continue the same one in one process begin with the same rows."""
    first = run(data, 2, num_nodes=1)
    onward = {"checkpoint.continue-from": str(first.folder.path)}
    second = run(data, 2, num_nodes=1, **onward)
    flat = {**second.folder.read_config(), **onward}
    third = simulate(flat, 1)
    assert third.summary["test"] == second.summary["test"]


def test_a_parent_whose_ledger_lost_its_end_is_refused(data: Path, without_pictures: None) -> None:
    private = {
        "privacy.unit": "user", "privacy.noise-multiplier": 1.0, "privacy.public-catalog": True, "model.name": "mf",
        "model.options": "{}", "train.learning-rate": "auto",
    }  # fmt: skip
    first = run(data, 3, **private)
    path = first.folder.path / LEDGER
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(StateError, match="charges are missing from its end"):
        run(data, 3, **private, **{"checkpoint.continue-from": str(first.folder.path)})
