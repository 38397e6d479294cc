"""Runs through Flower itself: SuperLink, simulation engine and Ray; nothing stands in for anything.

Each of these runs takes 15 to 40 s, most of it Ray's start, so several tests look at one run: `ml_run` is ML-100K on 8
nodes by `fedrec run`, `bare_run` a `flwr run .` with a stock strategy.
"""

from __future__ import annotations

import json
import signal
import socket
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrec_app.artifacts import CONFIG, METRICS, MODEL, REPORT, SUMMARY, RunFolder
from fedrec_app.config import RunConfig, Scalar, parse_overrides
from fedrec_app.flower_run import run_with_flower
from fedrec_app.server_app import RunResult
from fedrec_app.simulate import simulate
from tests.conftest import REPO
from tests.e2e.helpers import SMALL, Sandbox, assert_same_arrays, assert_same_numbers, sandbox, wait_until

ROUNDS = 3
# Private rows, which two nodes keep on disk while Ray moves them between its processes.
POOLED: dict[str, Scalar] = {**SMALL, "model.name": "neumf", "train.unit": "node"}
STOCK: dict[str, Scalar] = {**POOLED, "strategy.name": "flwr.serverapp.strategy:FedAvg"}
SUMMARY_KEYS = {
    "status", "rounds", "best_round", "test", "validation", "sampled", "seconds_per_round", "bytes_up", "bytes_down",
    "dropped_updates", "seed",
}  # fmt: skip
QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Finished:
    """A command that has ended, and what it left."""

    code: int
    stdout: str
    stderr: str
    processes: list[str]
    files: list[str]
    outputs: Path

    @property
    def folder(self) -> RunFolder:
        """The folder of its run."""
        (path,) = self.outputs.glob("????-??-??/*")
        return RunFolder(path)


def finish(place: Sandbox, settings: dict[str, Scalar], *more: str, stop: signal.Signals | None = None) -> Finished:
    """Returns `fedrec run` after its end; with `stop` it gets that signal after its first round."""
    process = place.fedrec_run(settings, *more)
    try:
        if stop is not None:
            first_round = "????-??-??/*/" + METRICS
            wait_until(lambda: any(place.outputs.glob(first_round)) or process.poll() is not None, 200, "a round")
            assert any("ray" in line for line in place.command_lines()), "the marks of processes are not seen"
            assert any((place.folder / "t").glob("fedrec-*"))
            process.send_signal(stop)
        stdout, stderr = process.communicate(timeout=240)
    finally:
        process.kill()
    files = sorted(path.name for path in (place.folder / "t").iterdir())
    return Finished(process.returncode, stdout, stderr, place.command_lines(), files, place.outputs)


@pytest.fixture(scope="module")
def ml_settings(ml_100k: Path) -> dict[str, Scalar]:
    return {"num-server-rounds": ROUNDS, "seed": 3, "data.name": "ml-100k", "data.path": str(ml_100k)}


@pytest.fixture(scope="module")
def ml_run(ml_settings: dict[str, Scalar]) -> Iterator[Finished]:
    with sandbox() as place:
        finished = finish(place, ml_settings, "--num-nodes", "8", "--json")
        assert finished.code == 0, finished.stderr[-3000:]
        yield finished


@pytest.fixture(scope="module")
def ml_simulated(ml_settings: dict[str, Scalar], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return simulate({**ml_settings, "output-dir": str(tmp_path_factory.mktemp("out"))}, 8)


def test_fedrec_run_and_simulate_give_the_same_metrics(ml_run: Finished, ml_simulated: RunResult) -> None:
    one, other = ml_run.folder.read_summary(), ml_simulated.summary
    assert one["num_nodes"] == 8
    assert one["test"]["num_users"] == 943
    assert {"hr@10", "ndcg@10", "recall@20", "mrr@10", "coverage@10", "ci"} <= set(one["test"])
    assert {"hr@10", "ndcg@10"} <= set(one["sampled"])
    for part in ("test", "sampled", "validation", "validation_sampled"):
        assert_same_numbers(one[part], other[part], where=part)
    for key in ("rounds", "best_round", "bytes_up", "bytes_down", "dropped_updates", "seed"):
        assert one[key] == other[key], key


def test_fedrec_run_and_simulate_train_the_same_shared_parameters(ml_run: Finished, ml_simulated: RunResult) -> None:
    one, one_is, one_popularity = ml_run.folder.read_model()
    other, other_is, other_popularity = ml_simulated.folder.read_model()
    assert_same_arrays(one, other)
    assert one["item_embedding"].shape == (1682, 32)
    assert one_popularity is not None
    assert other_popularity is not None
    np.testing.assert_array_equal(one_popularity, other_popularity)
    assert replace(one_is, lineage="") == replace(other_is, lineage="")


def test_a_run_writes_every_artefact(ml_run: Finished) -> None:
    folder = ml_run.folder
    assert {CONFIG, METRICS, SUMMARY, MODEL, REPORT} <= {path.name for path in folder.path.iterdir()}
    summary = folder.read_summary()
    assert set(summary) >= SUMMARY_KEYS
    assert summary["status"] == "completed"
    assert summary["rounds"] == ROUNDS
    lines = [json.loads(line) for line in (folder.path / METRICS).read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert summary["bytes_up"] == sum(line["bytes_up"] for line in lines)
    best = lines[summary["best_round"] - 1]
    assert_same_numbers(summary["validation"]["ndcg@10"], best["validation"]["ndcg@10"], 0)
    settings = tomllib.loads((folder.path / CONFIG).read_text())
    assert settings["data"]["name"] == "ml-100k"
    assert f"{summary['test']['ndcg@10']:.4f}" in (folder.path / REPORT).read_text()


def test_json_prints_the_summary_as_the_last_line_and_nothing_else(ml_run: Finished) -> None:
    assert ml_run.stdout.count("\n") == 1
    assert json.loads(ml_run.stdout) == ml_run.folder.read_summary()


def test_the_config_of_a_run_repeats_it(ml_run: Finished, tmp_path: Path) -> None:
    config = parse_overrides([str(ml_run.folder.path / CONFIG)])
    assert "auto" not in RunConfig.from_flat(config).flat().values()
    with sandbox() as place:
        text = (ml_run.folder.path / CONFIG).read_text().replace(str(ml_run.outputs), str(place.outputs))
        path = tmp_path / CONFIG
        path.write_text(text)
        done = place.call("fedrec", "simulate", "-c", str(path), "--num-nodes", "8", "--json")
        assert done.returncode == 0, done.stderr[-3000:]
        repeated = json.loads(done.stdout.splitlines()[-1])
    original = ml_run.folder.read_summary()
    assert_same_numbers(repeated["test"], original["test"])
    assert_same_numbers(repeated["sampled"], original["sampled"])


def test_a_finished_run_leaves_no_process_and_no_temporary_file(ml_run: Finished) -> None:
    assert ml_run.processes == []
    assert ml_run.files == []


@pytest.mark.slow
def test_pooled_nodes_with_private_state_give_the_same_through_ray_and_in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)
    settings = {**POOLED, "strategy.name": "fedadam", "strategy.options": '{"learning_rate": 0.02}'}
    lines: list[str] = []
    rounds: list[dict[str, Any]] = []
    folder = run_with_flower(settings, tmp_path / "it's here", 2, on_log=lines.append, on_round=rounds.append)
    simulated = simulate({**settings, "output-dir": str(tmp_path / "simulated")}, 2)

    summary = folder.read_summary()
    assert summary["unit"] == "node"
    for part in ("test", "sampled", "validation", "validation_sampled"):
        assert_same_numbers(summary[part], simulated.summary[part], where=part)
    assert_same_arrays(folder.read_model()[0], simulated.folder.read_model()[0])
    assert [record["round"] for record in rounds] == [1, 2, 3]
    assert any("Successfully started run" in line for line in lines)
    assert folder.path.is_relative_to(tmp_path / "it's here")


@pytest.mark.slow
def test_asynchronous_aggregation_completes_through_ray() -> None:
    settings: dict[str, Scalar] = {
        **POOLED, "strategy.name": "fedbuff", "strategy.options": '{"buffer_size": 2}', "num-server-rounds": 4,
    }  # fmt: skip
    with sandbox() as place:
        finished = finish(place, settings, "--num-nodes", "4")
        assert finished.code == 0, finished.stderr[-3000:]
        assert finished.folder.read_summary()["dropped_updates"] == {}
        trained = [record["train"] for record in finished.folder.read_metrics()]
        assert [record["num-updates"] for record in trained] == [2, 2, 2, 2]
        assert [record["num-outstanding"] for record in trained] == [2, 2, 2, 2]
        assert finished.processes == []


@dataclass(frozen=True)
class Bare:
    """`flwr run . --stream` after its end: its code and text, what `flwr ls` then says, and its run folder."""

    code: int
    text: str
    listed: dict[str, Any]
    folder: RunFolder
    superlinks: list[str]


@pytest.fixture(scope="module")
def bare_run(flower_home: Path) -> Iterator[Bare]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    with sandbox(**QUIET, FLWR_LOCAL_SUPERLINK_HTTP_API_PORT=port) as place:
        place.environment["FLWR_HOME"] = str(flower_home)
        done = place.call("flwr", "run", ".", "--stream", *place.settings(STOCK))
        listed = place.call("flwr", "ls", "--format", "json")
        assert listed.returncode == 0, done.stdout + listed.stdout + listed.stderr
        superlinks = [line for line in place.command_lines() if "flower-superlink" in line and port in line]
        yield Bare(
            done.returncode, done.stdout + done.stderr, json.loads(listed.stdout), place.run_folder(), superlinks
        )


@pytest.mark.slow
def test_a_bare_flwr_run_completes(bare_run: Bare) -> None:
    assert bare_run.code == 0, bare_run.text[-3000:]
    (run,) = bare_run.listed["runs"]
    assert run["status"] == "finished:completed", bare_run.text[-3000:]
    summary = bare_run.folder.read_summary()
    assert summary["status"] == "completed"
    assert len(bare_run.folder.read_metrics()) == ROUNDS
    assert len(bare_run.superlinks) == 1, "Flower's own SuperLink stays up; `fedrec run` is for those who mind"


@pytest.mark.slow
def test_stock_fedavg_through_ray_gives_what_it_gives_in_process(bare_run: Bare, tmp_path: Path) -> None:
    summary = bare_run.folder.read_summary()
    assert summary["strategy"] == "flwr.serverapp.strategy:FedAvg"
    assert summary["num_nodes"] == 2
    simulated = simulate({**STOCK, "output-dir": str(tmp_path)}, 2)
    assert_same_arrays(bare_run.folder.read_model()[0], simulated.folder.read_model()[0])
    assert_same_numbers(summary["test"], simulated.summary["test"])
    assert_same_numbers(summary["sampled"], simulated.summary["sampled"])


@pytest.mark.slow
def test_a_run_that_fails_inside_says_so_in_one_line_and_in_its_exit_code() -> None:
    with sandbox() as place:
        nowhere = str(place.folder / "no" / "such" / "folder")
        finished = finish(place, {"num-server-rounds": 1, "data.name": "ml-100k", "data.path": nowhere})
        assert finished.code == 1
        summary = finished.folder.read_summary()
        assert summary["status"] == "failed"
        assert nowhere in summary["error"]
        last = finished.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert nowhere in last
        assert "Traceback" not in finished.stderr
        assert finished.stdout == ""
        assert finished.processes == []
        assert finished.files == []


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 128 + signal.SIGTERM),
        pytest.param(signal.SIGINT, 128 + signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 128 + signal.SIGHUP, marks=pytest.mark.slow),
    ],
    ids=["SIGTERM", "SIGINT", "SIGHUP"],
)
def test_a_run_that_is_stopped_takes_everything_along(number: signal.Signals, code: int) -> None:
    with sandbox() as place:
        finished = finish(place, {**SMALL, "num-server-rounds": 100_000}, stop=number)
        assert finished.code == code, finished.stderr[-3000:]
        assert finished.processes == []
        assert finished.files == []
        summary = finished.folder.read_summary()
        assert summary["status"] == "stopped"
        assert "stopped" in summary["error"]
        assert "Traceback" not in finished.stderr
