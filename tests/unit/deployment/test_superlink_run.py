"""What `fedrec run CONNECTION` says of a run that did not complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrec_app.artifacts import RunFolder
from fedrec_app.errors import FedrecError
from fedrec_app.flower_control import RunState
from fedrec_app.flower_watch import RunWatch
from fedrec_app.superlink_run import _check

LOST = RunState("finished:failed", "No heartbeat received from the task")


def outcome(folder: RunFolder, state: RunState, again: str = "fedrec run tls") -> str:
    """Returns what is said."""
    watch = RunWatch(folder.path.parent, lambda line: None, lambda record: None, folder=folder)
    with pytest.raises(FedrecError) as error:
        _check(state, watch, again)
    return str(error.value)


@pytest.mark.parametrize(
    ("summary", "state", "said"),
    [
        ({"status": "failed", "error": "no node fits"}, LOST, "the run failed: no node fits"),
        ({"status": "stopped", "error": "its ServerApp was interrupted"}, LOST,
         "its ServerApp was interrupted; Flower says: No heartbeat received from the task"),
        ({"status": "stopped", "error": "its ServerApp was interrupted"}, RunState("finished:stopped", ""),
         "the run was stopped: its ServerApp was interrupted"),
        (None, LOST, "Flower says: No heartbeat received from the task"),
        (None, RunState("finished:stopped", ""), "the run was stopped: Flower says: somebody stopped it"),
    ],
)  # fmt: skip
def test_who_ended_a_run_is_told(summary: dict[str, str] | None, state: RunState, said: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    if summary is not None:
        folder.write_summary(summary)
    assert said in outcome(folder, state)


def test_a_run_with_a_checkpoint_can_go_on_before_its_first_round_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    (folder.path / "checkpoints").mkdir(parents=True)
    assert f"to go on: fedrec run tls -c 'checkpoint.resume-from=\"{folder.path}\"'" in outcome(folder, LOST)
    assert "to go on" not in outcome(folder, LOST, again="")
    (folder.path / "checkpoints").rmdir()
    assert "to go on" not in outcome(folder, LOST)
