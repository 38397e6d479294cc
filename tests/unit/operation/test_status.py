"""`fedrec status` tells how far a run is from its files alone, and does not guess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedrec_app import cli
from fedrec_app.artifacts import RunFolder
from fedrec_app.errors import StateError
from fedrec_app.operation.audit_check import passed, verify
from fedrec_app.operation.audit_log import AUDIT
from fedrec_app.operation.status import status_of
from fedrec_app.simulate import simulate
from tests.unit.operation.test_audit_log import PRIVATE, SETTINGS, run


def test_a_run_that_completed(tmp_path: Path) -> None:
    folder = run(tmp_path)
    found, told = status_of(folder), RunFolder(folder).read_metrics()
    assert (found.state, found.round, found.rounds, found.members, found.over) == ("completed", 5, 5, "0-2", True)
    best = told[-1]["best_round"]
    assert found.metric == ("ndcg@10", told[best - 1]["validation"]["ndcg@10"], best)
    assert found.seconds_a_round == pytest.approx(sorted(r["seconds"] for r in told)[2])
    assert (found.checkpoint, found.resume, found.eta, found.epsilon, found.error) == (4, "", None, None, "")
    assert status_of(folder, time.time() + 1e6).remark == ""


def test_a_private_run_has_no_times_and_tells_what_it_spent(tmp_path: Path) -> None:
    folder = run(tmp_path, **PRIVATE)
    found, summary = status_of(folder), RunFolder(folder).read_summary()
    assert (found.seconds_a_round, found.eta, found.metric) == (None, None, None)
    assert (found.epsilon, found.target_epsilon) == (summary["privacy"]["epsilon"], 8.0)


def test_a_run_that_failed_says_why_and_how_to_go_on(tmp_path: Path) -> None:
    folder = run(tmp_path, stop_after=3)
    found = status_of(folder)
    assert (found.state, found.round, found.checkpoint, found.error) == ("failed", 3, 2, "Stopped")
    assert found.resume == f"""-c 'checkpoint.resume-from="{folder}"'"""
    shown = CliRunner().invoke(cli.commands, ["status", str(folder)])
    assert shown.exit_code == 0
    assert "Stopped" in shown.stdout
    told = json.loads(CliRunner().invoke(cli.commands, ["status", str(folder), "--json", "--watch"]).stdout)
    assert (told["state"], told["round"], told["rounds"]) == ("failed", 3, 5)


def test_drops_and_refusals_are_counted_by_reason(tmp_path: Path) -> None:
    folder = run(tmp_path)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(text) for text in lines]
    told[1]["train"]["dropped/no-reply"] = 1
    told[3]["train"].update({"dropped/no-reply": 2, "dropped/bad-weight": 1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told))
    assert status_of(folder).drops == {"bad-weight": 1, "no-reply": 3}


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"no config.toml in"):
        status_of(tmp_path)


def test_a_run_of_an_earlier_version_is_not_guessed_at(tmp_path: Path) -> None:
    folder = run(tmp_path, stop_after=3)
    for name in (AUDIT, f"{AUDIT}.lock", "summary.json"):
        (folder / name).unlink()
    found = status_of(folder, time.time() + 300)
    assert found.state == "unknown"
    assert found.remark.startswith("no sign of life for 30")


SERVES = """
import json, sys, time
from fedrec_app.simulate import simulate
simulate(json.loads(sys.argv[1]), 3, watchers=[lambda *round_: time.sleep(0.05)])
"""


def test_a_run_is_running_until_it_is_killed_and_then_stopped_and_goes_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = {**SETTINGS, "output-dir": str(tmp_path), "num-server-rounds": 400}
    process = subprocess.Popen([sys.executable, "-c", SERVES, json.dumps(settings)], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not (found := [f for f in tmp_path.glob("*-*-*/*") if len(RunFolder(f).read_metrics()) > 4]):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        (folder,) = found
        alive = status_of(folder)
        assert (alive.state, alive.rounds, alive.remark, alive.resume) == ("running", 400, "", "")
        assert alive.eta is not None
        assert alive.eta > 1
        hung = status_of(folder, time.time() + 1000)
        assert hung.state == "running"
        assert hung.remark.startswith("no sign of life for 1000 s; its rounds take ")
    finally:
        process.kill()
        process.wait()
    found_ = status_of(folder)
    assert (found_.state, found_.eta, found_.over) == ("stopped", None, True)
    assert found_.resume
    assert passed(verify(folder))
    goes_on = {"checkpoint.resume-from": str(folder), "num-server-rounds": found_.round + 2}
    simulate({**settings, **goes_on}, 3)
    assert status_of(folder).state == "completed"
    assert passed(verify(folder))


def test_the_commands_end_with_the_verdict(tmp_path: Path) -> None:
    folder = run(tmp_path)
    good = CliRunner().invoke(cli.commands, ["audit", "verify", str(folder), "--json"])
    assert (good.exit_code, json.loads(good.stdout)["passed"]) == (0, True)
    os.truncate(folder / AUDIT, 5000)
    bad = CliRunner().invoke(cli.commands, ["audit", "verify", str(folder)])
    assert bad.exit_code == 1
    assert "failed" in bad.stdout
