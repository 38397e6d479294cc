"""Adapters and a start from a file in a federation: what travels, who has the base, and what is left in the end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from safetensors.numpy import load_file, save_file

from fedrec_app import base_transfer, client_app, node_data, pretrained
from fedrec_app.base_transfer import BASE, WithBase
from fedrec_app.client import ARRAYS_IN, RecommenderClient
from fedrec_app.errors import ConfigError, FedrecError
from fedrec_app.evaluation.metrics import finalise
from fedrec_app.finished import FinishedRun
from fedrec_app.fusion import fuse
from fedrec_app.local_grid import LocalGrid
from fedrec_app.models.adapted import Adapted
from fedrec_app.models.registry import resolved
from fedrec_app.node_settings import NodeSettings
from fedrec_app.recommend import recommend
from fedrec_app.records import ARRAYS, CONFIG, DELTA, Arrays, Ask, from_record, to_record
from fedrec_app.server_app import RunResult
from fedrec_app.simulate import simulate

SMALL = '{"num_users": 41, "num_items": 90, "mean_interactions": 12, "min_interactions": 3}'
MODELS: dict[str, dict[str, Any]] = {
    "sasrec": {
        "model.name": "sasrec", "model.embedding-dim": 16, "train.unit": "user", "train.optimizer": "sgd",
        "train.learning-rate": 0.3, "train.weight-decay": 0.0,
        "model.options": '{"layers": 1, "heads": 2, "max_length": 8}',
    },
    "neumf": {"model.name": "neumf"},
    "mf": {"model.embedding-dim": 16},
    "mf bce": {
        "model.options": '{"loss": "bce"}', "train.num-negatives": 2,
        "strategy.options": '{"learning_rate": 0.03, "tau": 1e-4}',
    },
}  # fmt: skip
RANK = 4


pytestmark = pytest.mark.usefixtures("without_pictures")


def settings(output_dir: Path, model: str, **more: Any) -> dict[str, Any]:
    return {
        "output-dir": str(output_dir), "data.options": SMALL, "num-server-rounds": 2, "evaluate.bootstrap": 0,
        "evaluate.every": 2, "privacy.min-cohort": 1, "train.adapter-rank": RANK, **MODELS[model], **more,
    }  # fmt: skip


def parameters(result: RunResult) -> Arrays:
    return result.folder.read_model()[0]


def start_of(flat: dict[str, Any]) -> Adapted:
    config = resolved(flat)
    model, _ = pretrained.start(config, node_data.catalog(config.data))
    assert isinstance(model, Adapted)
    return model


def replies_to_training(log: Iterable[Message]) -> list[Arrays]:
    return [
        from_record(message.content.array_records[ARRAYS])
        for message in log
        if message.metadata.message_type == MessageType.TRAIN and message.metadata.reply_to_message_id
    ]


@pytest.mark.parametrize("model", ["sasrec", "neumf", "mf"])
def test_only_factors_and_small_parameters_travel(tmp_path: Path, model: str) -> None:
    log: list[Message] = []
    flat = settings(tmp_path, model)
    result = simulate(flat, 3, taps=[log.append])
    plain = simulate({**flat, "train.adapter-rank": 0}, 3)
    adapted = start_of(flat)
    updates = replies_to_training(log)
    assert len(updates) == 6
    sent = {name.partition("/")[2] for update in updates for name in update}
    assert sent == set(adapted.shared_names())
    # A factor of an item table is to the table as the rank is to its width; fewer rows may travel.
    for name in adapted.row_names():
        width = {"item_bias": 1}.get(name, RANK)
        assert {update[DELTA + name].size // len(update[DELTA + name]) for update in updates} == {width}
    ratio = result.summary["bytes_up"] / plain.summary["bytes_up"]
    assert {"sasrec": 0.4, "neumf": 0.4, "mf": 0.25}[model] * 0.9 < ratio
    assert ratio < {"sasrec": 0.65, "neumf": 0.5, "mf": 0.5}[model]
    assert result.summary["adapters"] == {"nodes_sent_base": 0, "bytes_of_base": 0}


@pytest.mark.parametrize("model", ["sasrec", "neumf", "mf", pytest.param("mf bce", marks=pytest.mark.slow)])
def test_the_number_of_nodes_changes_nothing(tmp_path: Path, model: str) -> None:
    one = simulate(settings(tmp_path, model), 1)
    for num_nodes in (3, 7):
        other = simulate(settings(tmp_path, model), num_nodes)
        for name, array in parameters(one).items():
            np.testing.assert_allclose(parameters(other)[name], array, rtol=0, atol=1e-5, err_msg=name)
        assert other.summary["test"]["ndcg@10"] == pytest.approx(one.summary["test"]["ndcg@10"], abs=1e-5)


def judged_as_plain(run: FinishedRun) -> float:
    """Returns the test metric of what a run has written, by a node with all users and without adapters."""
    node = RecommenderClient(run.config, NodeSettings(0, 1, run.folder.path))
    names = node.model.shared_names()
    ask = {ARRAYS_IN: json.dumps(names), Ask.PART: "test"}
    return float(finalise(node.judge([run.shared[name] for name in names], ask))["ndcg@10"])


@pytest.mark.parametrize("model", ["sasrec", "neumf", "mf"])
def test_the_file_is_a_plain_model_and_what_was_evaluated(tmp_path: Path, model: str) -> None:
    flat = settings(tmp_path, model)
    result = simulate(flat, 2)
    run = FinishedRun.read(result.folder)
    assert (run.config.train.adapter_rank, run.config.model.init_from) == (0, "")
    plain = node_data.initial_model(run.config, run.catalog())
    assert list(run.shared) == sorted(plain.shared_names())
    base, moved = start_of(flat).base, 0.0
    for name, start in base.start.items():
        change = run.shared[name].astype(np.float64) - start
        assert np.linalg.matrix_rank(change, tol=1e-5) <= RANK
        moved = max(moved, float(np.abs(change).max()))
    assert moved > 1e-3
    if model != "neumf":  # whose rows stay with the nodes of the run
        assert judged_as_plain(run) == pytest.approx(result.summary["test"]["ndcg@10"], abs=1e-6)
    user = node_data.cohort(run.config.data, None, 1).user_ids[3]
    found = recommend(result.folder, user, [], 5)
    assert len(found["items"]) == 5
    assert "warnings" not in found
    assert len(recommend(result.folder, "", ["i01", "i02"], 5)["items"]) == 5


def test_adapted_runs_are_fused_as_plain_ones(tmp_path: Path) -> None:
    runs = [FinishedRun.read(simulate(settings(tmp_path, "mf", seed=seed), 2).folder) for seed in (0, 1)]
    fused = fuse(runs, tmp_path)
    assert fused.summary["status"] == "completed"
    assert parameters(fused)["item_embedding"].shape == (90, 16)


def file_of_numbers(flat: dict[str, Any], path: Path) -> Path:
    """Returns a file of shared parameters that no seed gives."""
    generator = np.random.default_rng(3)
    model = node_data.initial_model(resolved({**flat, "train.adapter-rank": 0}), node_data.catalog(resolved(flat).data))
    shapes = {name: tuple(model.get_parameter(name).shape) for name in model.shared_names()}
    save_file({n: generator.normal(scale=0.1, size=s).astype(np.float32) for n, s in shapes.items()}, path)
    return path


@pytest.mark.parametrize("model", ["sasrec", "mf"])
def test_a_run_without_adapters_sends_what_the_file_holds(tmp_path: Path, model: str) -> None:
    flat = settings(tmp_path, model, **{"train.adapter-rank": 0})
    file = file_of_numbers(flat, tmp_path / "start.safetensors")
    log: list[Message] = []
    result = simulate({**flat, "model.init-from": str(file)}, 2, taps=[log.append])
    first = next(message for message in log if message.metadata.message_type == MessageType.TRAIN)
    sent = from_record(first.content.array_records[ARRAYS])
    for name, array in load_file(file).items():
        np.testing.assert_array_equal(sent[name], array, err_msg=name)
    assert result.summary["init_from"] == {
        "file": str(file), "parameters": len(sent), "missing": [], "new_items": 0, "new_item_ids": [],
        "items_left_out": 0,
    }  # fmt: skip
    assert "adapters" not in result.summary
    # What came of the run can be started from in its turn.
    again = simulate({**flat, "model.init-from": str(result.folder.path)}, 2)
    assert again.summary["init_from"]["missing"] == []


def test_adapters_on_a_file_reach_every_node_once(tmp_path: Path) -> None:
    flat = settings(tmp_path, "sasrec")
    file = file_of_numbers(flat, tmp_path / "start.safetensors")
    flat["model.init-from"] = str(file)
    one, again, other = (simulate(flat, num_nodes) for num_nodes in (3, 3, 1))
    base = start_of(flat).base
    assert one.summary["adapters"]["nodes_sent_base"] == 3
    assert one.summary["adapters"]["bytes_of_base"] > 3 * sum(array.nbytes for array in base.arrays().values())
    assert again.summary["adapters"] == {"nodes_sent_base": 0, "bytes_of_base": 0}  # nodes have kept it
    start = load_file(file)
    for name, array in parameters(one).items():
        np.testing.assert_array_equal(parameters(again)[name], array, err_msg=name)
        np.testing.assert_allclose(parameters(other)[name], array, rtol=0, atol=1e-5, err_msg=name)
        if name in base.start:
            np.testing.assert_array_equal(base.start[name], start[name])
            assert np.linalg.matrix_rank(array.astype(np.float64) - start[name], tol=1e-5) == RANK
    assert np.abs(parameters(one)["item_embedding"] - start["item_embedding"]).max() > 1e-3
    assert judged_as_plain(FinishedRun.read(one.folder)) == pytest.approx(one.summary["test"]["ndcg@10"], abs=1e-6)


@pytest.mark.parametrize("damage", ["cut short", "other numbers"])
def test_a_damaged_base_is_sent_again(tmp_path: Path, damage: str) -> None:
    flat = settings(tmp_path, "mf")
    flat["model.init-from"] = str(file_of_numbers(flat, tmp_path / "start.safetensors"))
    before = parameters(simulate(flat, 2))
    [kept] = (tmp_path / "nodes" / "bases").iterdir()
    if damage == "cut short":
        kept.write_bytes(kept.read_bytes()[:-5])
    else:
        save_file({name: 2 * array for name, array in load_file(kept).items()}, kept)
    base_transfer._read.cache_clear()
    result = simulate(flat, 2)
    assert result.summary["adapters"]["nodes_sent_base"] == 2
    np.testing.assert_array_equal(parameters(result)["item_embedding"], before["item_embedding"])


def hostile(arrays: Arrays, kind: str) -> Arrays:
    name = "start/item_embedding"
    changed = dict(arrays)
    if kind == "missing":
        del changed[name]
    elif kind == "one too many":
        changed["start/user_embedding"] = arrays[name]
    elif kind == "another shape":
        changed[name] = arrays[name][:-1]
    elif kind == "another type":
        changed[name] = arrays[name].astype(np.float64)
    elif kind == "not finite":
        changed[name] = np.where(arrays[name] == arrays[name][0, 0], np.float32(np.inf), arrays[name])
    else:
        changed[name] = arrays[name] + np.float32(1)
    return changed


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "'start/item_embedding' is missing"),
        ("one too many", "'start/user_embedding' is not expected"),
        ("another shape", r"'start/item_embedding' is float32 \(89, 16\), float32 \(90, 16\) is expected"),
        ("another type", "is float64"),
        ("not finite", "has numbers that are not finite"),
        ("other numbers", "the message says"),
    ],
)
def test_a_base_that_is_not_the_one_named_is_refused_and_not_kept(tmp_path: Path, kind: str, message: str) -> None:
    flat = settings(tmp_path, "mf")
    flat["model.init-from"] = str(file_of_numbers(flat, tmp_path / "start.safetensors"))
    base = start_of(flat).base
    node = RecommenderClient(resolved(flat), NodeSettings(0, 2, tmp_path / "nodes"))
    with pytest.raises(FedrecError, match=message):
        node.keep_base(hostile(base.arrays(), kind), {Ask.BASE_HASH: base.digest})
    assert not (tmp_path / "nodes" / "bases").exists()
    for digest in ("../../etc", base.digest.upper(), base.digest + "0", ""):
        with pytest.raises(FedrecError, match="64 hexadecimal digits"):
            node.keep_base(base.arrays(), {Ask.BASE_HASH: digest})
    with pytest.raises(FedrecError, match=rf"does not have base {base.digest[:12]}"):
        node.fit([np.zeros((90, RANK), dtype=np.float32)], {Ask.BASE_HASH: base.digest})
    with pytest.raises(FedrecError, match="base-hash is ''"):  # the seed's is not what this run starts from
        node.fit([np.zeros((90, RANK), dtype=np.float32)], {})


def test_a_node_that_was_not_sent_the_base_answers_with_an_error_and_a_plain_node_takes_none(tmp_path: Path) -> None:
    flat = settings(tmp_path, "mf")
    model = start_of(flat)
    grid = LocalGrid(client_app.app, flat, 1)
    [node] = grid.get_node_ids()
    shared = {name: model.get_parameter(name).detach().numpy() for name in model.shared_names()}
    content = RecordDict({ARRAYS: to_record(shared), CONFIG: ConfigRecord({Ask.BASE_HASH: "0" * 64, Ask.ROUND: 1})})
    [reply] = grid.send_and_receive([Message(content, node, MessageType.TRAIN)])
    assert "this node does not have base 000000000000" in reply.error.reason
    plain = LocalGrid(client_app.app, {**flat, "train.adapter-rank": 0}, 1)
    content = RecordDict(
        {BASE: to_record(model.base.arrays()), CONFIG: ConfigRecord({Ask.BASE_HASH: model.base.digest})}
    )
    [reply] = plain.send_and_receive([Message(content, node, MessageType.QUERY)])
    assert "model 'mf' of this run has no adapters" in reply.error.reason


def test_nodes_keep_the_bases_of_the_last_runs_and_those_in_use(tmp_path: Path) -> None:
    flat = settings(tmp_path, "mf")
    node = RecommenderClient(resolved(flat), NodeSettings(0, 2, tmp_path / "nodes", durable=False))
    own, folder, digests = start_of(flat).base, tmp_path / "nodes" / "bases", []

    def keep(number: int, hours_ago: float) -> None:
        arrays = {**own.arrays(), "start/item_embedding": np.full((90, 16), number, dtype=np.float32)}
        base = type(own).from_arrays(arrays, own)
        node.keep_base(arrays, {Ask.BASE_HASH: base.digest})
        digests.append(base.digest)
        then = time.time() - 3600 * hours_ago
        os.utime(folder / f"{base.digest}.safetensors", (then, then))

    for number in range(5):
        keep(number, 40 - number)
    node.get_properties({Ask.BASE_HASH: digests[1]})  # of a run that goes on
    keep(5, 20)
    assert {path.stem for path in folder.iterdir()} == {digests[at] for at in (1, 3, 4, 5)}
    for number in range(6, 9):
        keep(number, 1)
    assert {path.stem for path in folder.iterdir()} == {digests[at] for at in (1, 5, 6, 7, 8)}, "used within a day"


def test_an_answer_to_the_roll_call_that_says_nothing_is_handed_on(tmp_path: Path) -> None:
    class Mute:
        def send_and_receive(self, messages: list[Message], timeout: float | None = None) -> list[Message]:
            return [Message(RecordDict(), reply_to=message) for message in messages]

    grid = WithBase(cast(Grid, Mute()), start_of(settings(tmp_path, "mf")).base)
    (reply,) = grid.send_and_receive([Message(RecordDict(), 7, MessageType.QUERY)])
    assert not reply.content.config_records
    assert grid.nodes == 0


def test_stock_strategies_train_adapters_too(tmp_path: Path) -> None:
    stock = {"strategy.name": "flwr.serverapp.strategy:FedAvg", "strategy.options": "{}"}
    flat = settings(tmp_path, "sasrec", **stock)
    flat["model.init-from"] = str(file_of_numbers(flat, tmp_path / "start.safetensors"))
    result = simulate(flat, 3)
    ours = simulate({**flat, "strategy.name": "fedavg", "strategy.options": '{"weighting": "examples"}'}, 3)
    for name, array in parameters(ours).items():
        np.testing.assert_allclose(parameters(result)[name], array, rtol=0, atol=1e-5, err_msg=name)


def test_a_rank_that_saves_nothing_ends_the_run_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.adapter-rank is 16: .*allowed is 0 to 15"):
        simulate(settings(tmp_path, "mf", **{"train.adapter-rank": 16}), 2)
