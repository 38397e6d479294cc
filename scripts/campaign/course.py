"""One run of a campaign: started, hurt once, continued as often as it takes."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign import faults
from campaign.faults import Fault
from campaign.place import SERVER_APP, Place
from fedrec_app.artifacts import METRICS, SUMMARY, RunFolder
from fedrec_app.checkpoint import FOLDER, Checkpoint, Checkpoints
from fedrec_app.config import Scalar, to_toml
from fedrec_app.errors import FedrecError
from fedrec_app.flower_process import end_tree, executable
from fedrec_app.privacy.ledger import LEDGER

_LONGEST = 900.0
_MOST_STARTS = 4
_GONE = 60.0


@dataclass
class Course:
    """What happened to one run.

    Attributes:
        folder: of the run; None where it never had one. One without a checkpoint is left, for that of a new run.
        starts: how often it was started or continued.
        seconds: from its start to its end.
        recovery: seconds from the fault to the first round that was written after it; None where there was none.
        done: what the fault did, in words.
        errors: the last line of each start that failed.
        seen: every round that was ever seen in metrics.jsonl.
        before: for each continuation: the round of the checkpoint that it must go on from, and the rounds up to it.
        charged: lines of the ledger that were seen while the run went on.
        ended: "completed", "resumed" from a checkpoint, "begun anew" where there was none yet, or why none of these.
        left: folders of runs that ended before they had a checkpoint.
    """

    folder: Path | None = None
    starts: int = 0
    seconds: float = 0.0
    recovery: float | None = None
    done: str = ""
    errors: list[str] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    before: list[tuple[int, list[dict[str, Any]]]] = field(default_factory=list)
    charged: list[bytes] = field(default_factory=list)
    ended: str = ""
    left: set[Path] = field(default_factory=set)


def take(place: Place, settings: dict[str, Scalar], fault: Fault | None, say: Callable[[str], None]) -> Course:
    """Returns the course of a run that a fault struck.

    Args:
        place: the deployment, whole.
        settings: of the run; its output-dir is the run's own.
        fault: None: it is not disturbed.
        say: is told what happens.
    """
    course, began = Course(), time.monotonic()
    struck: float | None = None
    corrupted = anew = False
    flat: dict[str, Scalar] = settings
    while course.starts < _MOST_STARTS:
        course.starts += 1
        code, when, error = _one_start(place, flat, None if struck else fault, course, say)
        struck = struck or when
        if code == 0:
            course.ended = "completed" if course.starts == 1 else "begun anew" if anew else "resumed"
            break
        course.errors.append(error)
        say(f"start {course.starts} ended with {code}: {error[-200:]}")
        if code == _HUNG:
            course.ended = f"not within {_LONGEST:.0f} s"
            break
        if course.folder is None:
            continue
        if not (course.folder / FOLDER).is_dir():
            course.left.add(course.folder)
            course.folder, course.charged, anew = None, [], True
            _await_end(place)
            continue
        flat = {**settings, "checkpoint.resume-from": str(course.folder)}
        _await_end(place)
        if fault is not None and fault.kind == "corrupt" and not corrupted:
            corrupted = True
            lineage = str(Checkpoints(course.folder / FOLDER).read_newest().facts["lineage"])
            newest = Checkpoints(course.folder / FOLDER).rounds()[-1]
            course.done += "; " + faults.corrupt(fault, place, course.folder, lineage, newest)
        course.before.append(_to_go_on_from(course.folder))
    course.ended = course.ended or f"not after {_MOST_STARTS} starts"
    course.seconds = time.monotonic() - began
    if struck is not None and course.recovery is not None:
        course.recovery -= struck
    return course


_HUNG = -1000


def _one_start(
    place: Place, flat: dict[str, Scalar], fault: Fault | None, course: Course, say: Callable[[str], None]
) -> tuple[int, float | None, str]:
    """Returns the exit code of a run, when the fault struck it, and the end of what it said."""
    began, struck, output_dir = time.monotonic(), None, Path(str(flat["output-dir"]))
    after = len(course.seen)
    with tempfile.TemporaryDirectory(prefix="f-") as scratch, (Path(scratch) / "log").open("w+b") as log:
        file = Path(scratch) / "run.toml"
        file.write_text(to_toml(flat))
        process = subprocess.Popen(
            [executable("fedrec"), "run", place.loopback.connection, "-c", str(file)],
            env=place.loopback.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            due: float | None = None
            while process.poll() is None and time.monotonic() - began < _LONGEST:
                rounds = _look(output_dir, course)
                if struck is not None and course.recovery is None and len(course.seen) > after:
                    course.recovery = time.monotonic()
                if fault is not None and struck is None and course.folder is not None and rounds >= fault.round - 1:
                    due = due or time.monotonic() + fault.moment
                    if time.monotonic() >= due:
                        struck = time.monotonic()
                        course.done = faults.strike(fault, place)
                        say(f"{fault.kind} {fault.what()}: {course.done}")
                        _look(output_dir, course)
                        after = len(course.seen)
                time.sleep(0.1)
            code = process.poll()
            if code is None:
                code = _HUNG
            _look(output_dir, course)
        finally:
            end_tree(process.pid)
        log.seek(0)
        text = log.read().decode(errors="replace")
    if course.recovery is None and course.starts > 1 and len(course.seen) > after:
        course.recovery = time.monotonic()
    return code, struck, " ".join(text.split())[-600:]


def _look(output_dir: Path, course: Course) -> int:
    """Notes what is new in the folder of the run; returns how many rounds it has."""
    if course.folder is None:
        course.folder = next(iter(sorted(set(output_dir.glob("????-??-??/*/")) - course.left)), None)
    if course.folder is None:
        return 0
    records = RunFolder(course.folder).read_metrics() if (course.folder / METRICS).is_file() else []
    for record in records:
        if record not in course.seen:
            course.seen.append(record)
    ledger = course.folder / LEDGER
    for line in ledger.read_bytes().splitlines(keepends=True) if ledger.is_file() else ():
        if line.endswith(b"\n") and line not in course.charged:
            course.charged.append(line)
    return len(records)


def _await_end(place: Place) -> None:
    """Waits until no ServerApp writes to the folder any more."""
    end = time.monotonic() + _GONE
    while place.process(place.loopback.superlink, SERVER_APP) is not None:
        if time.monotonic() > end:
            raise FedrecError(f"the ServerApp of a failed run is still there after {_GONE:.0f} s")
        time.sleep(0.2)


def _to_go_on_from(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """Returns the round of the newest checkpoint that can be read, and the records of the rounds up to it."""
    found: Checkpoint = Checkpoints(folder / FOLDER).read_newest()
    return found.round, [record for record in RunFolder(folder).read_metrics() if record["round"] <= found.round]


def summary_of(course: Course) -> dict[str, Any]:
    """Returns the summary of a run, {} where it wrote none."""
    if course.folder is None or not (course.folder / SUMMARY).is_file():
        return {}
    return RunFolder(course.folder).read_summary()
