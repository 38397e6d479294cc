"""TensorBoard and W&B are told what metrics.jsonl tells, offline, and nothing is left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fedrec_app.artifacts import RunFolder
from fedrec_app.errors import ConfigError
from fedrec_app.operation import tracking
from fedrec_app.operation.tracking import figures
from tests.unit.operation.test_audit_log import PRIVATE, SETTINGS, run

pytest.importorskip("tensorboard")
TENSORBOARD = {"tracking.backend": "tensorboard"}


def events(folder: Path) -> list[tuple[str, int, float, float]]:
    """Returns tag, step, value and time of every number in the event files of a run."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = []
    for file in sorted((folder / "tensorboard").iterdir()):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag != "settings/text_summary":
                    found.append((value.tag, event.step, value.tensor.float_val[0], event.wall_time))
    return found


def test_tensorboard_is_told_each_round_and_the_end(tmp_path: Path) -> None:
    folder = run(tmp_path, **TENSORBOARD)
    told, summary = RunFolder(folder).read_metrics(), RunFolder(folder).read_summary()
    found = {(tag, step): value for tag, step, value, _ in events(folder)}
    for record in told:
        for name, value in figures(record):
            assert found.pop((name, record["round"])) == pytest.approx(value)
    assert found.pop(("final/test/ndcg@10", 5)) == pytest.approx(summary["test"]["ndcg@10"])
    assert all(tag.startswith("final/") for tag, _ in found)
    names = {name for name, _ in figures(told[0])}
    assert names >= {"train/loss", "validation/ndcg@10", "bytes_up", "bytes_down", "seconds", "best_round"}


def test_drops_are_told() -> None:
    told = {"round": 1, "train": {"dropped/no-reply": 2, "epsilon": 0.5}, "validation": None, "best_round": 1}
    assert dict(figures(told)) == {"train/dropped/no-reply": 2.0, "train/epsilon": 0.5, "best_round": 1.0}


def test_under_privacy_tensorboard_has_one_time_for_all_and_no_more_than_metrics(tmp_path: Path) -> None:
    folder = run(tmp_path, **PRIVATE, **TENSORBOARD)
    found = events(folder)
    assert len({time for *_, time in found}) == 1
    rounds = {tag for tag, *_ in found if not tag.startswith("final/")}
    allowed = {name for record in RunFolder(folder).read_metrics() for name, _ in figures(record)}
    assert rounds == allowed
    assert "train/epsilon" in rounds
    assert not {"seconds", "train/loss", "train/num-examples"} & rounds


def test_a_run_that_fails_leaves_what_was_told_until_then(tmp_path: Path) -> None:
    folder = run(tmp_path, stop_after=2, **TENSORBOARD)
    assert {step for tag, step, *_ in events(folder) if tag == "train/loss"} == {1, 2}


def test_wandb_does_not_go_with_privacy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"W&B stamps every round with its time, which privacy withholds"):
        run(tmp_path, **PRIVATE, **{"tracking.backend": "wandb"})


@pytest.mark.parametrize("backend", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"needs the package '{backend}' .* pip install 'fedrec\[track\]'"):
        run(tmp_path, **{"tracking.backend": backend})
    (folder,) = tmp_path.glob("*-*-*/*")
    assert not (folder / "metrics.jsonl").exists()


WANDB = """
import json, os, sys
import psutil
from fedrec_app.simulate import simulate

def watch(record, progress, num_rounds):
    if record.round == 3 and how == "fails":
        raise ValueError("stop")
    if record.round == 3 and how == "is killed":
        print([child.pid for child in psutil.Process().children()], flush=True)
        os.kill(os.getpid(), 9)

settings, ways = json.loads(sys.argv[1])
for how in ways:
    try:
        simulate({**settings, "output-dir": f"{settings['output-dir']}/{how}"}, 2, watchers=[watch])
    except ValueError:
        pass
    print([child.pid for child in psutil.Process().children()])
"""


def tracked(output_dir: Path, *ways: str) -> list[list[int]]:
    """Returns the processes that are left after a run that completes, fails or is killed."""
    settings = {**SETTINGS, "output-dir": str(output_dir), "tracking.backend": "wandb"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", WANDB, json.dumps([settings, ways])],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    return [json.loads(text) for text in done.stdout.splitlines()]


def test_wandb_works_offline_and_ends_its_process_also_when_the_run_fails(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    assert tracked(tmp_path, "completes", "fails") == [[], []]
    for how, rounds in (("completes", [1, 2, 3, 4, 5]), ("fails", [1, 2, 3])):
        (file,) = tmp_path.glob(f"{how}/*-*-*/*/wandb/offline-run-*/run-*.wandb")
        content = whole(file)
        told = RunFolder(file.parents[2]).read_metrics()
        found = [content.count(json.dumps(record["train"]["loss"]).encode()) for record in told]
        assert [record["round"] for record in told] == rounds
        assert all(found)
        assert (b"final/test/ndcg@10" in content) is (how == "completes")
        assert str(tmp_path).encode() not in content


@pytest.mark.slow
def test_the_process_of_wandb_ends_when_the_run_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    ((pid,),) = tracked(tmp_path, "is killed")
    left = [psutil.Process(pid)] if psutil.pid_exists(pid) else []
    assert not psutil.wait_procs(left, timeout=30)[1]


def whole(file: Path) -> bytes:
    """Returns the records in a file that W&B would upload: LevelDB's log format after 7 bytes of its own."""
    content, found, at = file.read_bytes(), b"", 7
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size = int.from_bytes(content[at + 4 : at + 6], "little")
        found += content[at + 7 : at + 7 + size]
        at += 7 + size
    return found
