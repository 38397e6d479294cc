"""Follows a run that Flower carries out: its lines, its rounds, and the folder that it writes to."""

from __future__ import annotations

import re
import subprocess
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedrec_app.artifacts import CONFIG, SUMMARY, RunFolder

OnLog = Callable[[str], None]
OnRound = Callable[[dict[str, Any]], None]
_ROUND = re.compile(r"INFO\b(?:\s|\x1b\[\d+m|:)*round (\d+)/\d+(?: \| (\S+) (-?[\d.]+) \(best)?")
_FOLDER = "run folder: "


@dataclass
class RunWatch:
    """Follows `flwr run --stream`, and finds the folder that its run writes to: a new one, or that of the run that is
    resumed.

    Attributes:
        output_dir: where runs go, as this machine sees it.
        on_log: called with each line that Flower prints.
        on_round: called with each new line of metrics.jsonl, as an object; where the folder is on another machine, with
            what the run's own lines tell of a round.
        resumed: folder of the run that goes on.
        folder: of the run; None until it is found, and for good where it is on another machine.
        said_folder: as the ServerApp calls it, "" until it does.
        run_id: Flower's, "" until the run began.
        seen: rounds that `on_round` was told.
        before: folders that were there before the run.
        last_lines: what Flower printed last.
    """

    output_dir: Path
    on_log: OnLog
    on_round: OnRound
    resumed: Path | None = None
    folder: RunFolder | None = None
    said_folder: str = ""
    run_id: str = ""
    seen: int = 0
    before: set[Path] = field(default_factory=set)
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=15))

    def __post_init__(self) -> None:
        self.before = set(_run_folders(self.output_dir))

    def follow(self, process: subprocess.Popen[str]) -> None:
        """Reads what the process prints until it ends."""
        for line in process.stdout or ():
            self.on_log(line.rstrip("\n"))
            self.last_lines.append(line.rstrip("\n"))
            # The first one counts: both lines come before any node is heard, and later lines quote what nodes say.
            if not self.run_id and "Successfully started run" in line:
                self.run_id = line.split("Successfully started run", 1)[1].split()[0]
            if not self.said_folder and _FOLDER in line:
                self.said_folder = line.split(_FOLDER, 1)[1].strip()
            self.look()
            if self.folder is None:
                self._take_round(line)
        process.wait()
        self.look()

    def say_ended(self, why: str, status: str = "failed") -> None:
        """Writes the summary of a run that wrote none itself.

        Args:
            why: for whoever reads it.
            status: "failed", or "stopped" where somebody ended it.
        """
        self.look()
        if self.folder is not None and not (self.folder.path / SUMMARY).is_file():
            self.folder.write_summary({"status": status, "error": why})

    def look(self) -> None:
        """Looks for the folder, and for new rounds in it."""
        if self.folder is None:
            self.folder = self._find()
        if self.folder is not None:
            records = self.folder.read_metrics()
            for record in records[self.seen :]:
                self.on_round(record)
            self.seen = max(self.seen, len(records))

    def _take_round(self, line: str) -> None:
        if (found := _ROUND.search(line)) and int(found[1]) > self.seen:
            self.seen = int(found[1])
            validation = {found[2]: float(found[3])} if found[2] else None
            self.on_round({"round": self.seen, "validation": validation, "train": {}})

    def _find(self) -> RunFolder | None:
        if not self.run_id:
            return None
        candidates = set(_run_folders(self.output_dir)) - self.before
        candidates |= {Path(path) for path in (self.resumed, self.said_folder) if path}
        for folder in sorted(candidates):
            config = folder / CONFIG
            if config.is_file() and config.read_text().startswith(f"# run-id {self.run_id}\n"):
                return RunFolder(folder)
        return None


def _run_folders(output_dir: Path) -> list[Path]:
    return list(output_dir.glob("????-??-??/*"))
