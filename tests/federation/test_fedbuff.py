"""Asynchronous runs: the same every time, with private rows and the best round, and in half the time or less."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from fedrec_app import local_grid
from fedrec_app.private_state import PrivateState
from fedrec_app.recommend import recommend
from fedrec_app.records import ARRAYS, CONFIG, METRICS, Arrays, Ask, Said, from_record
from fedrec_app.server_app import RunResult
from fedrec_app.simulate import simulate
from tests.conftest import REPO

SMALL = '{"num_users": 61, "num_items": 90, "mean_interactions": 20, "min_interactions": 5}'
NODES, SLOW = 8, {0: 10.0}
NEUMF: dict[str, Any] = {"model.name": "neumf", "model.embedding-dim": 4}


def run(
    output_dir: Path, strategy: str = "fedbuff", durations: Any = SLOW, tap: Callable[[Message], None] | None = None,
    **settings: Any,
) -> RunResult:  # fmt: skip
    options = '{"buffer_size": 4}' if strategy == "fedbuff" else "{}"
    flat = {
        "output-dir": str(output_dir), "num-server-rounds": 12, "data.options": SMALL, "evaluate.bootstrap": 0,
        "strategy.name": strategy, "strategy.options": options, **settings,
    }  # fmt: skip
    return simulate(flat, NODES, taps=[tap] if tap else (), durations=durations)


def facts(result: RunResult) -> dict[str, Any]:
    """Returns all that a run found, without its clock and its names."""
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in result.folder.read_metrics()]
    summary = {k: v for k, v in result.summary.items() if k not in ("seconds_per_round", "lineage")}
    arrays = {name: array.tobytes() for name, array in result.folder.read_model()[0].items()}
    return json.loads(json.dumps({"rounds": lines, "summary": summary})) | {"arrays": arrays}


@pytest.mark.parametrize("model", [{}, pytest.param(NEUMF, marks=pytest.mark.slow)], ids=["mf", "neumf"])
def test_an_asynchronous_run_is_the_same_every_time_whatever_the_ids_of_its_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    # Long enough for the slow node to answer.
    settings = {**model, "strategy.fraction-train": 0.75, "num-server-rounds": 6, "durations": {0: 4.0}}
    one, again = run(tmp_path, **settings), run(tmp_path, **settings)
    assert facts(one) == facts(again)
    key = local_grid.stream_key
    monkeypatch.setattr(local_grid, "stream_key", lambda *labels: 2**62 - 1 - key(*labels) % 2**62)
    assert facts(one) == facts(run(tmp_path, **settings))
    assert facts(one) != facts(run(tmp_path, **settings, seed=1))
    assert facts(one)["arrays"] != facts(run(tmp_path, **{**settings, "durations": {0: 2.0}}))["arrays"]


def test_with_a_node_ten_times_slower_the_same_number_of_steps_takes_less_than_half_the_virtual_time(
    tmp_path: Path,
) -> None:
    waits, goes_on = run(tmp_path, "fedavg"), run(tmp_path)
    assert (waits.summary["rounds"], goes_on.summary["rounds"]) == (12, 12)
    assert waits.summary["virtual_seconds"] == 120.0
    assert goes_on.summary["virtual_seconds"] == 11.0
    # Seven quick nodes fill a buffer of four 7/4 times in a unit of time; the slow one answers in the tenth unit.
    staleness = [line["train"]["staleness"] for line in goes_on.folder.read_metrics()]
    assert staleness[0] == 0.0
    assert max(staleness) > 2.0


def test_with_nodes_that_work_side_by_side_it_takes_less_than_half_the_wall_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    import bench

    level, threads = logging.getLogger("flwr").level, torch.get_num_threads()
    try:
        bench.commands(["async", "--quick", "--json"], standalone_mode=False)
    finally:
        logging.getLogger("flwr").setLevel(level)
        torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["ratios"]["async"] > 2
    result = found["results"]["async"]
    # Five rounds of 0.3 s; and three quick nodes of 0.03 s, but the validation at the end waits for the slow one.
    assert result["baseline"]["wall_seconds"]["median"] > 1.5
    assert result["ours"]["wall_seconds"]["median"] > 0.3
    assert set(result["checks"]) == {"ndcg@10 of fedavg", "ndcg@10 of fedbuff"}
    assert min(result["checks"].values()) > 0


@dataclass
class Watch:
    """What is seen of a run from its messages.

    Attributes:
        trained: partition -> rounds that it answered, in the order of its answers.
        served: config of every message that asked for an evaluation.
        arrays: round -> parameters that were evaluated.
    """

    trained: dict[int, list[int]] = field(default_factory=dict)
    served: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[int, Arrays] = field(default_factory=dict)
    partitions: dict[int, int] = field(default_factory=dict)

    def __call__(self, message: Message) -> None:
        content, kind, node = message.content, message.metadata.message_type, message.metadata.src_node_id
        is_reply = bool(message.metadata.reply_to_message_id)
        if kind == "query" and is_reply:
            self.partitions[node] = int(content.config_records[CONFIG][Said.PARTITION])  # type: ignore[arg-type]
        elif kind == "train" and is_reply:
            answered = int(content.metric_records[METRICS][Said.ROUND])  # type: ignore[arg-type]
            self.trained.setdefault(self.partitions[node], []).append(answered)
        elif kind == "evaluate" and not is_reply:
            self.served.append(dict(content.config_records[CONFIG]))
            self.arrays[self.served[-1][Ask.ROUND]] = from_record(content.array_records[ARRAYS])


def test_a_node_works_on_one_round_at_a_time_and_the_slow_one_counts_too(tmp_path: Path) -> None:
    watch = Watch()
    assert run(tmp_path, tap=watch).summary["dropped_updates"] == {}
    assert watch.trained[0] == [1]
    for partition in range(1, NODES):
        assert len(watch.trained[partition]) >= 5
        assert watch.trained[partition] == sorted(set(watch.trained[partition]))


def test_private_rows_stay_with_the_round_that_asked_for_them_and_serve_the_best_one(tmp_path: Path) -> None:
    watch = Watch()
    # Rates that are too high: the best round is not the last.
    rates = {"train.learning-rate": 4.0, "train.private-learning-rate": 4.0, "num-server-rounds": 20}
    result = run(tmp_path, durations={0: 4.0}, tap=watch, **NEUMF, **rates)
    best = result.summary["best_round"]
    assert 5 < best < 15
    tested = watch.served[-NODES:]
    assert {(config[Ask.PART], config[Ask.PRIVATE_ROUND]) for config in tested} == {("test", best)}
    for name, array in result.folder.read_model()[0].items():
        np.testing.assert_array_equal(array, watch.arrays[best][name], err_msg=name)
    for partition, trained in watch.trained.items():
        known = PrivateState(tmp_path / "nodes", result.summary["lineage"], partition).rounds()
        assert set(known) <= set(trained)
        assert known[-1] == trained[-1] > best
        # Nothing that the best round needs was removed, though nodes answer rounds that were validated long ago.
        newest = max(number for number in trained if number <= best)
        assert [number for number in known if number <= best][-1] == newest


def test_a_run_with_stored_private_rows_learns_and_recommends(tmp_path: Path) -> None:
    rates = {"train.learning-rate": 0.5, "train.private-learning-rate": 0.5, "num-server-rounds": 20}
    result = run(tmp_path, **NEUMF, **rates)
    validation = [line["validation"]["ndcg@10"] for line in result.folder.read_metrics()]
    assert result.summary["validation"]["ndcg@10"] == pytest.approx(max(validation))
    assert max(validation) > validation[0]
    losses = [line["train"]["loss"] for line in result.folder.read_metrics()]
    assert losses[-1] < losses[0]
    found = recommend(result.folder, "u01", [], 5)
    assert len({item["item_id"] for item in found["items"]}) == 5
    assert not found.get("warnings")
    print(found)
