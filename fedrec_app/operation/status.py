"""`fedrec status`: how far a run is, told from the files in its folder alone.

Whether it is alive shows in the lock of its audit log, which the server process holds as long as it lives, on the
machine where it runs. That it does something shows in how long ago it last wrote a file. Nothing more is concluded:
a server that waits for slow nodes and one that hangs look the same.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedrec_app.artifacts import CONFIG, METRICS, SUMMARY, RunFolder
from fedrec_app.checkpoint import FOLDER, Checkpoints
from fedrec_app.errors import StateError
from fedrec_app.hash_chain import in_use, read
from fedrec_app.operation.audit_log import AUDIT

SILENT_AFTER = 60.0
"""Seconds without a sign of life that are worth a remark, at least; else ten usual rounds."""
OVER = ("completed", "failed", "stopped")


@dataclass(frozen=True)
class Status:
    """A run as its files show it.

    Attributes:
        folder: of the run.
        state: "running": a process on this machine serves it; "completed" or "failed": it said so; "stopped": no
            process on this machine does, and it never said how it ended; "unknown": nobody can tell.
        round, rounds: the last round, and how many it may have.
        silent_for: seconds since it last wrote anything.
        seconds_a_round: median of the last ten; None under privacy, which withholds them, and before the first.
        eta: seconds that the rounds left take at that pace, of a run that is running.
        metric: name, value and round of the best validation; None where nothing was validated, or nothing is told.
        members: partitions of the nodes, as of the last line about them.
        refused: reason -> nodes refused since the server started.
        drops: reason -> replies dropped.
        epsilon, target_epsilon: spent so far, and the most that may be; None without privacy.
        checkpoint: round of the newest checkpoint; None where there is none.
        resume: how to go on, of a run that is not over.
        error: why it failed.
        audit: "" where every line of the audit log follows the one before, else what is wrong with it.
    """

    folder: str
    state: str
    round: int = 0
    rounds: int = 0
    silent_for: float = 0.0
    seconds_a_round: float | None = None
    eta: float | None = None
    metric: tuple[str, float, int] | None = None
    members: str = ""
    refused: Mapping[str, int] = field(default_factory=dict)
    drops: Mapping[str, int] = field(default_factory=dict)
    epsilon: float | None = None
    target_epsilon: float | None = None
    checkpoint: int | None = None
    resume: str = ""
    error: str = ""
    audit: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more is going to happen by itself."""
        return self.state in OVER

    @property
    def remark(self) -> str:
        """What is to be said of its silence, or ""."""
        usual = self.seconds_a_round
        if self.state in ("completed", "failed") or self.silent_for < max(SILENT_AFTER, 10 * (usual or 0)):
            return ""
        pace = f"; its rounds take {usual:.1f} s" if usual else ""
        return f"no sign of life for {self.silent_for:.0f} s{pace}"

    def to_json(self) -> dict[str, Any]:
        """Returns it as a JSON object."""
        return {**asdict(self), "remark": self.remark}


def status_of(path: Path, now: float | None = None) -> Status:
    """Returns the status of a run.

    Args:
        path: its folder.
        now: the time, in seconds since 1970; the clock's where it is left out.

    Raises:
        StateError: it is not the folder of a run.
    """
    folder = RunFolder(path)
    if not (path / CONFIG).is_file():
        raise StateError(f"no {CONFIG} in {path}: is it the folder of a run?")
    settings, metrics = folder.read_config(), folder.read_metrics()
    summary = folder.read_summary() if (path / SUMMARY).is_file() else {}
    lines = read((path / AUDIT).read_bytes() if (path / AUDIT).is_file() else b"")
    state = _state(path, summary)
    private = settings.get("privacy.unit", "none") != "none"
    pace = None if private or not metrics else statistics.median(record["seconds"] for record in metrics[-10:])
    last = int(metrics[-1]["round"]) if metrics else 0
    rounds = _rounds(lines.records, int(settings.get("num-server-rounds", 0)))
    newest = max(Checkpoints(path / FOLDER).rounds(), default=None)
    goes_on = newest is not None and state in ("failed", "stopped", "unknown")
    spent = metrics[-1]["train"].get("epsilon") if metrics else None
    return Status(
        folder=str(path), state=state, round=last, rounds=rounds,
        silent_for=max((now or time.time()) - _last_sign(path), 0.0),
        seconds_a_round=pace, eta=pace * (rounds - last) if pace is not None and state == "running" else None,
        metric=_best(metrics, str(settings.get("evaluate.metric", ""))),
        members=next((line["members"] for line in reversed(lines.records) if "members" in line), ""),
        refused=_refused(lines.records), drops=_drops(metrics),
        epsilon=(summary.get("privacy") or {}).get("epsilon", spent) if private else None,
        target_epsilon=float(settings.get("privacy.target-epsilon", 0)) or None if private else None,
        checkpoint=newest, error=str(summary.get("error", "")),
        resume=f"""-c 'checkpoint.resume-from="{path.absolute()}"'""" if goes_on else "",
        audit=f"line {lines.damaged} is damaged" if lines.damaged else "",
    )  # fmt: skip


def _state(path: Path, summary: Mapping[str, Any]) -> str:
    if said := summary.get("status"):
        return str(said)
    held = in_use(path / AUDIT)
    return "unknown" if held is None else "running" if held else "stopped"


def _last_sign(path: Path) -> float:
    """Returns when the run last wrote a file."""
    named = [path / name for name in (CONFIG, METRICS, SUMMARY, AUDIT)]
    files = (file for file in (*named, path / FOLDER) if file.exists())
    return max(file.stat().st_mtime for file in files)


def _rounds(records: Sequence[Mapping[str, Any]], asked: int) -> int:
    """Returns how many rounds the run may have: fewer than asked for where a budget ends before."""
    return next((int(line["rounds"]) for line in reversed(records) if "rounds" in line), asked)


def _best(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[str, float, int] | None:
    best = metrics[-1].get("best_round") if metrics else None
    values = next((record.get("validation") or {} for record in metrics if record["round"] == best), {})
    return (name, float(values[name]), int(best or 0)) if name in values else None


def _refused(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns who was refused since the last start."""
    found: Counter[str] = Counter()
    for line in records:
        if line["what"] == "began":
            found.clear()
        found.update(line.get("refused") or {})
    return dict(found)


def _drops(metrics: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for record in metrics:
        found.update(
            {k.removeprefix("dropped/"): int(n) for k, n in record["train"].items() if k.startswith("dropped/")}
        )
    return dict(sorted(found.items()))
