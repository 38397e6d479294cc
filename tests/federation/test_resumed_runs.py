"""Whole runs that were stopped and go on from their checkpoint."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedrec_app import cli, node_data
from fedrec_app.artifacts import RunFolder
from fedrec_app.config import to_toml
from fedrec_app.errors import ConfigError, StateError
from fedrec_app.privacy.accounting import epsilon
from fedrec_app.privacy.ledger import Ledger
from fedrec_app.server_app import RunResult
from fedrec_app.simulate import simulate
from strategies.rounds import Progress, RoundRecord
from tests.small import SMALL

SETTINGS: dict[str, Any] = {
    "data.options": SMALL, "num-server-rounds": 6, "checkpoint.every": 1, "model.options": '{"loss": "bce"}',
    "train.num-negatives": 2, "strategy.options": '{"tau": 1e-4}',
}  # fmt: skip
PRIVATE = {"privacy.unit": "user", "privacy.target-epsilon": 8.0, "strategy.options": "{}"}


class Stopped(Exception):
    """Ends a run from outside."""


def run(output_dir: Path, stop_after: int = 0, **settings: Any) -> RunResult:
    def watch(record: RoundRecord, progress: Progress, num_rounds: int) -> None:
        if record.round == stop_after:
            raise Stopped

    return simulate({"output-dir": str(output_dir), **SETTINGS, **settings}, 3, watchers=[watch])


def stopped(output_dir: Path, after: int, **settings: Any) -> Path:
    """Returns the folder of a run that was stopped after a round."""
    with pytest.raises(Stopped):
        run(output_dir, after, **settings)
    (folder,) = output_dir.glob("*-*-*/*")
    return folder


def content(result: RunResult) -> tuple[dict[str, bytes], list[Any], dict[str, Any]]:
    """What a run ends with, but for times and names."""
    arrays, _, _ = result.folder.read_model()
    rounds = [(r["round"], r["train"], r["validation"], r["best_round"]) for r in result.folder.read_metrics()]
    summary = json.loads(json.dumps(result.folder.read_summary()))
    for key in ("lineage", "seconds_per_round", "bytes_down", "bytes_up"):
        summary.pop(key)
    return {name: array.tobytes() for name, array in arrays.items()}, rounds, summary


SERVED = {"strategy.name": "median", "strategy.options": '{"server_optimizer": "subspace"}'}
"""What is judged and released is not what training goes on from."""


@pytest.mark.parametrize("settings", [{}, {"checkpoint.every": 2}, SERVED], ids=["every", "every other", "served"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = run(tmp_path / "whole", **settings)
    folder = stopped(tmp_path / "stopped", 3, **settings)
    resumed = run(tmp_path / "stopped", **{**settings, "checkpoint.resume-from": str(folder)})
    assert resumed.folder.path == folder
    assert content(resumed) == content(whole)


def test_a_run_that_was_killed_after_its_last_round_ends_the_same(tmp_path: Path) -> None:
    """Killed after its last round: what was served of it must be found again."""
    settings = {**SERVED, "evaluate.every": 6}
    whole = run(tmp_path / "whole", **settings)
    folder = stopped(tmp_path / "stopped", 6, **settings)
    resumed = run(tmp_path / "stopped", **settings, **{"checkpoint.resume-from": str(folder)})
    assert content(resumed) == content(whole)


@pytest.mark.parametrize("settings", [{}, PRIVATE, {**PRIVATE, "num-server-rounds": 9}], ids=["", "private", "longer"])
def test_a_run_that_is_over_and_has_no_round_left_stays_as_it_is(tmp_path: Path, settings: dict[str, Any]) -> None:
    over = run(tmp_path, **{**settings, "num-server-rounds": 6})
    before = over.folder.read_summary()
    with pytest.raises(StateError, match="no round is left to it: it has 6"):
        run(tmp_path, **{**settings, "checkpoint.resume-from": str(over.folder.path)})
    assert over.folder.read_summary() == before


def test_a_private_run_does_not_go_on_with_more_users_than_it_began_with(tmp_path: Path) -> None:
    file = tmp_path / "clicks.csv"
    catalog = tmp_path / "items.csv"
    catalog.write_text("item_id\n" + "".join(f"i{n}\n" for n in range(30)))

    def write(users: int) -> None:
        rows = [f"u{u},i{(u + n) % 30},{n}\n" for u in range(users) for n in range(8)]
        file.write_text("user_id,item_id,timestamp\n" + "".join(rows))

    settings = {
        **PRIVATE, "data.name": "csv", "data.path": str(file), "data.options": json.dumps({"catalog": str(catalog)})
    }  # fmt: skip
    write(20)
    folder = stopped(tmp_path / "runs", 3, **settings)
    write(25)
    for kept in vars(node_data).values():  # as in a new process
        if isinstance(kept, node_data.Kept):
            kept.cache_clear()
    with pytest.raises(StateError, match="began with 20 users and the nodes have 25 now"):
        run(tmp_path / "runs", **settings, **{"checkpoint.resume-from": str(folder)})


def test_the_command_takes_the_settings_of_the_run_that_goes_on(tmp_path: Path) -> None:
    folder = stopped(tmp_path, 3, **PRIVATE)
    done = CliRunner().invoke(
        cli.commands, ["simulate", "--num-nodes", "3", "-c", f'checkpoint.resume-from="{folder}"', "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["rounds"] == 6


def test_a_run_that_fails_says_what_it_has_cost(tmp_path: Path) -> None:
    """Also one that was over, and is made longer."""
    private = {**PRIVATE, "privacy.target-epsilon": 0.0, "privacy.noise-multiplier": 2.0}
    over = run(tmp_path, **private, **{"num-server-rounds": 2})
    with pytest.raises(Stopped):
        run(tmp_path, 4, **private, **{"checkpoint.resume-from": str(over.folder.path)})
    summary = over.folder.read_summary()
    assert summary["status"] == "failed"
    events = Ledger.open(over.folder.path / "privacy-ledger.jsonl").events
    assert len(events) == 2 + 1 + 2  # the figures of the test part were told after the second round
    assert summary["privacy"]["epsilon"] == pytest.approx(epsilon(events, 40**-1.1), rel=1e-3)
    assert summary["privacy"]["epsilon"] > over.summary["privacy"]["epsilon"]


def test_nodes_that_add_noise_by_the_number_of_rounds_hold_a_run_to_it(tmp_path: Path) -> None:
    examples = {
        "privacy.unit": "example", "privacy.target-epsilon": 2.0, "privacy.delta": 1e-4, "strategy.options": "{}",
        "privacy.sampling-rate": 0.5,
    }  # fmt: skip
    folder = stopped(tmp_path, 2, **examples)
    with pytest.raises(ConfigError, match="num-server-rounds was 6 and is 9"):
        run(tmp_path, **examples, **{"num-server-rounds": 9, "checkpoint.resume-from": str(folder)})
    again = run(tmp_path, **examples, **{"checkpoint.resume-from": str(folder)})
    assert 1.8 < again.summary["privacy"]["epsilon"] <= 2.0


def test_a_run_that_is_over_can_be_made_longer(tmp_path: Path) -> None:
    over = run(tmp_path)
    longer = {"num-server-rounds": 8, "checkpoint.resume-from": str(over.folder.path)}
    assert run(tmp_path, **longer).summary["rounds"] == 8


def test_a_private_run_that_goes_on_continues_its_ledger(tmp_path: Path) -> None:
    folder = stopped(tmp_path, 3, **PRIVATE)
    ledger = folder / "privacy-ledger.jsonl"
    before = ledger.read_text()
    assert before.count("\n") == 1 + 3
    resumed = run(tmp_path, **PRIVATE, **{"checkpoint.resume-from": str(folder)})
    assert ledger.read_text().startswith(before)
    assert resumed.summary["rounds"] == 6
    privacy = resumed.summary["privacy"]
    assert 7.9 < privacy["epsilon"] <= 8.0
    told = [record["train"]["epsilon"] for record in resumed.folder.read_metrics()]
    assert told == sorted(told)


def test_a_round_that_is_taken_again_is_charged_again_and_the_run_is_shorter_for_it(tmp_path: Path) -> None:
    folder = stopped(tmp_path, 4, **PRIVATE)
    (folder / "checkpoints" / "4.safetensors").unlink()
    resumed = run(tmp_path, **PRIVATE, **{"checkpoint.resume-from": str(folder)})
    charges = [json.loads(line)["what"] for line in (folder / "privacy-ledger.jsonl").read_text().splitlines()[1:]]
    assert [c.get("round") for c in charges] == [1, 2, 3, 4, 4, 5, None]
    assert resumed.summary["rounds"] == 5
    assert resumed.summary["privacy"]["epsilon"] <= 8.0


@pytest.mark.parametrize("damage", ["lost", "shorter", "altered"])
def test_without_its_ledger_a_private_run_does_not_go_on(tmp_path: Path, damage: str) -> None:
    folder = stopped(tmp_path, 3, **PRIVATE)
    ledger = folder / "privacy-ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    if damage == "lost":
        ledger.unlink()
    elif damage == "shorter":
        ledger.write_text("".join(lines[:-1]))
    else:
        ledger.write_text("".join(lines).replace('"noise_multiplier":', '"noise_multiplier":1', 1))
    with pytest.raises(StateError, match="privacy ledger"):
        run(tmp_path, **PRIVATE, **{"checkpoint.resume-from": str(folder)})


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    folder = stopped(tmp_path / "stopped", 4)
    newest = folder / "checkpoints" / "4.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3])
    assert content(run(tmp_path / "stopped", **{"checkpoint.resume-from": str(folder)})) == content(whole)


@pytest.mark.parametrize(
    ("settings", "error", "expected"),
    [
        ({"train.learning-rate": 0.5}, ConfigError, "train.learning-rate was 1.0 and is 0.5"),
        ({"strategy.name": "fedavg", "strategy.options": "{}"}, ConfigError, "strategy.name"),
        ({"checkpoint.resume-from": "/nowhere"}, StateError, "no folder /nowhere"),
    ],
)
def test_what_cannot_go_on_says_why(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], expected: str
) -> None:
    folder = stopped(tmp_path, 2)
    with pytest.raises(error) as found:
        run(tmp_path, **{"checkpoint.resume-from": str(folder), **settings})
    assert expected in str(found.value)


def test_runs_without_checkpoints_cannot_go_on(tmp_path: Path) -> None:
    folder = stopped(tmp_path, 2, **{"checkpoint.every": 0})
    with pytest.raises(StateError, match=r"checkpoint\.every"):
        run(tmp_path, **{"checkpoint.resume-from": str(folder)})


@pytest.mark.slow
def test_killed_at_random_points_a_private_run_completes_and_never_costs_less(tmp_path: Path) -> None:
    """kill -9 of the whole process, wherever it happens to be."""
    chance = random.Random(0)
    flat = {"output-dir": str(tmp_path), **SETTINGS, **PRIVATE, "num-server-rounds": 300}
    settings = tmp_path / "settings.toml"
    spent, kills, folder = 0, 0, None
    for attempt in range(30):
        resume = {"checkpoint.resume-from": str(folder)} if folder else {}
        settings.write_text(to_toml({**flat, **resume}))
        process = subprocess.Popen(
            [sys.executable, "-m", "fedrec_app.cli", "simulate", "--num-nodes", "3", "-c", str(settings)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        ledger = None
        end = time.monotonic() + 120
        wait = chance.uniform(0.02, 0.4)
        while process.poll() is None and time.monotonic() < end:
            ledger = next(iter(tmp_path.glob("*-*-*/*/privacy-ledger.jsonl")), None)
            if ledger is not None and len(ledger.read_text().splitlines()) > spent + 1 and attempt < 8:
                time.sleep(wait)
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        _, said = process.communicate(timeout=60)
        assert ledger is not None, said
        folder = ledger.parent
        now = len(ledger.read_text().splitlines())
        assert now >= spent
        spent = now
        with Ledger.open(ledger) as book:
            assert epsilon(book.events, 40**-1.1) <= 8.0
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said
    assert kills >= 5
    summary = RunFolder(folder).read_summary()  # type: ignore[arg-type]
    assert summary["status"] == "completed"
    with Ledger.open(folder / "privacy-ledger.jsonl") as book:  # type: ignore[operator]
        assert summary["privacy"]["epsilon"] == pytest.approx(epsilon(book.events, 40**-1.1), rel=1e-6)
    told = [record["train"]["epsilon"] for record in RunFolder(folder).read_metrics()]  # type: ignore[arg-type]
    assert told == sorted(told)
