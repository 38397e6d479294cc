"""The audit log of a run, `<run>/audit.jsonl`: who took part in what, and what came of it, in chained lines.

`what` is the kind of a line. "began" comes with every start of the server, a resumed one's included; "nodes" after the
roll-call; "round" after each round, those that a resumed run takes again included; "ended" where the run says how it
ended, and there is none after a kill. Nodes go by the number of their partition, as Flower's ids are random.

Each line is on the disk before the round's figures and its checkpoint are, and a checkpoint keeps the length and the
digest of the log, so that lines missing at its end are found as well.

Under privacy a line of a round does not say who was asked or replied and has no digest of an update, because a digest
lets a guess of the update be confirmed, and no time, because a heavy user who takes part is seen in it.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from logging import WARNING
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from fedrec_app import __version__
from fedrec_app.artifacts import MODEL
from fedrec_app.checkpoint import Checkpoint
from fedrec_app.config import RunConfig, Scalar
from fedrec_app.hash_chain import ChainFile, Lines, now
from fedrec_app.operation.digests import of_arrays, of_file, of_json
from fedrec_app.operation.witness import Witness
from fedrec_app.records import from_record
from strategies.progress import Progress, RoundRecord
from strategies.rollcall import Roster

AUDIT = "audit.jsonl"
FORMAT = "fedrec-audit/1"
WITHHELD = ("who was asked", "who replied", "hashes of updates", "times of rounds")
"""What lines do not tell under privacy."""
_PACKAGES = ("flwr", "torch", "numpy", "pandas", "ray")
_NOT_ITS_OWN = ("checkpoint.resume-from",)


def own_settings(flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Returns the settings that a run is made of: to go on with it is no setting of it."""
    return {key: value for key, value in flat.items() if key not in _NOT_ITS_OWN}


@dataclass
class AuditLog:
    """The log of a run that this process serves; use `AuditLog.begin`."""

    folder: Path
    private: bool
    _file: ChainFile
    _roster: Roster | None = None
    _strategy: Strategy | None = None
    _witness: Witness | None = None
    _members: dict[int, int] = field(default_factory=dict)
    _refused: dict[int, str] = field(default_factory=dict)

    @classmethod
    def begin(cls, folder: Path, config: RunConfig, checkpoint: Checkpoint | None = None) -> AuditLog:
        """Returns the log of a run that begins, or goes on from a checkpoint; a line says which.

        A log that is damaged or lost does not end the run: what is there is set aside and kept, a new one says so in
        its first line, and `fedrec audit verify` reports it from then on.

        Args:
            folder: of the run.
            config: resolved.
            checkpoint: that it goes on from.

        Raises:
            StateError: another process serves this run, or the disk does not take the log.
        """
        known = checkpoint.facts.get("audit") if checkpoint is not None else None

        def doubt(found: Lines) -> str:
            if known is None or found.continues(known["length"], known["digest"]):
                return ""
            return f"it has {len(found.records)} lines, not the {known['length']} that the checkpoint knows"

        file = ChainFile.open(folder / AUDIT, doubt)
        if file.set_aside:
            log(WARNING, "the audit log of %s was set aside: %s", folder, file.set_aside["why"])
        audit = cls(folder, config.privacy.unit != "none", file)
        settings = own_settings(config.flat())
        goes_on = None if checkpoint is None else {"round": checkpoint.round, "audit": known}
        file.append({
            "format": FORMAT, "what": "began", "resumed": goes_on, "set_aside": dict(file.set_aside) or None,
            "torn": bool(file.found.torn), "config": of_json(settings), "settings": settings, "versions": versions(),
            "withheld": list(WITHHELD) if audit.private else [], "time": now("milliseconds"),
        })  # fmt: skip
        return audit

    def watch(
        self, grid: Grid, roster: Roster, strategy: Strategy, facts: Mapping[str, str], lineage: str, num_rounds: int
    ) -> Grid:
        """Returns the grid to train on, watched where the log may tell of single nodes; a line says who is there.

        Args:
            grid: how nodes are reached.
            roster: after the roll-call.
            strategy: of the run.
            facts: hashes of what nodes and server share.
            lineage: of the run.
            num_rounds: that it may have.
        """
        self._roster, self._strategy = roster, strategy
        self._members = _partitions(roster)
        self._refused = dict(roster.refused)
        self._file.append({
            "what": "nodes", "lineage": lineage, **facts, "strategy": type(strategy).__name__, "rounds": num_rounds,
            "members": ranges(self._members.values()), "refused": dict(Counter(roster.refused.values())),
            **self._time(),
        })  # fmt: skip
        if not self.private:
            grid = self._witness = Witness(grid, roster, bool(getattr(strategy, "depends_on_arrival", False)))
        return grid

    def on_round(self, record: RoundRecord, progress: Progress, told: Mapping[str, Any]) -> None:
        """Writes the line of a round.

        Args:
            record: of the round.
            progress: of the run.
            told: what metrics.jsonl will say of it.
        """
        counts = {key.removeprefix("dropped/"): int(n) for key, n in record.train.items() if key.startswith("dropped/")}
        self._file.append({
            "what": "round", "round": record.round, **self._changes(), **self._replies(), "drops": counts,
            "skipped": bool(record.train.get("skipped")), "model": of_arrays(from_record(progress.arrays)),
            "metrics": of_json(told), **self._time(),
        })  # fmt: skip

    def ended(self, summary: Mapping[str, Any]) -> None:
        """Writes how the run ended; its model file is there.

        Args:
            summary: of the run, completed or failed.
        """
        completed = summary.get("status") == "completed"
        self._file.append({
            "what": "ended", "status": summary.get("status"), "model_file": of_file(self.folder / MODEL),
            "figures": of_json(summary), "of": sorted(summary),
            **({} if completed else {"error": str(summary.get("error", ""))}), **self._time(),
        })  # fmt: skip

    def known(self) -> dict[str, Any]:
        """Returns what a checkpoint must know of the log."""
        return {"length": len(self._file), "digest": self._file.digest}

    def close(self) -> None:
        """Lets another process go on with it."""
        self._file.close()

    def _changes(self) -> dict[str, Any]:
        """Returns who is there, and who joined, left or was refused since the line before."""
        if self._roster is None:
            return {}
        before, self._members = self._members, _partitions(self._roster)
        refused = [why for node, why in self._roster.refused.items() if node not in self._refused]
        self._refused = dict(self._roster.refused)
        return {
            "members": ranges(self._members.values()),
            "joined": ranges(p for node, p in self._members.items() if node not in before),
            "left": ranges(p for node, p in before.items() if node not in self._members),
            "refused": dict(Counter(refused)),
        }

    def _replies(self) -> dict[str, Any]:
        if self._witness is None:
            return {}
        seen = self._witness.take()
        dropped = {**seen.failed, **dict(getattr(self._strategy, "rejected", ()))}
        return {
            "asked": ranges(seen.asked),
            "replies": {str(partition): seen.replies[partition] for partition in sorted(seen.replies)},
            "dropped": {str(partition): dropped[partition] for partition in sorted(dropped)},
        }

    def _time(self) -> dict[str, str]:
        return {} if self.private else {"time": now("milliseconds")}


def versions() -> dict[str, str]:
    """Returns the versions of what a run is made with; "" of what is not installed."""
    found = {"fedrec": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def ranges(numbers: Iterable[int]) -> str:
    """Returns numbers as text: `0-3,5`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _partitions(roster: Roster) -> dict[int, int]:
    return {member.node_id: member.partition_id for member in roster.members.values()}
