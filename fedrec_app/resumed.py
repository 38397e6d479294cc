"""A run that goes on from its newest checkpoint, in the folder that it began in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from fedrec_app.artifacts import SUMMARY, RunFolder
from fedrec_app.checkpoint import FOLDER, Checkpoint, Checkpoints, check_same
from fedrec_app.config import RunConfig
from fedrec_app.errors import ConfigError, StateError
from strategies.base import RecStrategy
from strategies.progress import Progress

_CONTINUE = "checkpoint.continue-from"


class NothingLeft(StateError):
    """A run that is over and has no round left; its `summary` stays what it was."""

    def __init__(self, summary: dict[str, Any], text: str) -> None:
        super().__init__(text)
        self.summary = summary


@dataclass(frozen=True)
class Resumed:
    """A run to be continued.

    Attributes:
        folder: of the run.
        over: its summary, where it was not stopped but over.
        checkpoint: the newest one that is not damaged.
        checkpoints: all that are there.
    """

    folder: RunFolder
    over: dict[str, Any] | None
    checkpoint: Checkpoint
    checkpoints: Checkpoints

    @classmethod
    def open(cls, config: RunConfig) -> Resumed | None:
        """Returns the run that `checkpoint.resume-from` names, None where it names none.

        Raises:
            StateError: there is no checkpoint that can be read.
            ConfigError: settings differ that must not.
        """
        if not config.checkpoint.resume_from:
            return None
        path = Path(config.checkpoint.resume_from)
        if not path.is_dir():
            raise StateError(f"checkpoint.resume-from: there is no folder {path}")
        checkpoints = Checkpoints(path / FOLDER)
        checkpoint = checkpoints.read_newest()
        # Nodes find the noise of each example by the number of rounds, and their ledgers below the output folder.
        of_nodes = ("num-server-rounds", "output-dir") if config.privacy.unit == "example" else ()
        settings = checkpoint.facts.get("settings", {})
        check_same(settings, config.flat(), of_nodes)
        if (then := settings.get(_CONTINUE, "")) != config.checkpoint.continue_from:
            raise ConfigError(f"a run goes on with what it began from: {_CONTINUE} was {then!r}")
        log(INFO, "the run in %s goes on after round %s", path, checkpoint.round)
        folder = RunFolder(path)
        summary = folder.read_summary() if (path / SUMMARY).is_file() else {}
        over = summary if summary.get("status") == "completed" else None
        return cls(folder, over, checkpoint, checkpoints)

    @property
    def lineage(self) -> str:
        """The line of private states that the nodes continue."""
        lineage = self.checkpoint.facts.get("lineage")
        if not isinstance(lineage, str):
            raise StateError(f"the checkpoint of round {self.checkpoint.round} names no lineage")
        return lineage

    def require_work(self, num_rounds: int) -> None:
        """Raises NothingLeft where the run is over and has all rounds that it may have."""
        if self.over is not None and num_rounds <= self.checkpoint.round:
            raise NothingLeft(
                self.over,
                f"the run in {self.folder.path} is over, and no round is left to it: it has {self.checkpoint.round}; "
                "raise num-server-rounds to make it longer (a private run ends with its budget)",
            )

    def progress(self, facts: Mapping[str, Any]) -> Progress:
        """Returns the rounds that are over; metrics.jsonl has no others then.

        Args:
            facts: what the checkpoint must agree with.

        Raises:
            StateError: it does not.
        """
        self.checkpoint.require(facts)
        self.folder.keep_metrics(self.checkpoint.round)
        return Progress.of(self.checkpoint, self.checkpoints.needed_rounds())


def load_state(strategy: Strategy, checkpoint: Checkpoint) -> None:
    """Makes a strategy go on from a checkpoint.

    Raises:
        StateError: it has no state to go on from, or another strategy's is there.
    """
    if not isinstance(strategy, RecStrategy):
        raise StateError("stock strategies keep no state: their runs cannot go on from a checkpoint")
    try:
        strategy.load_state(checkpoint.state)
    except (KeyError, ValueError, TypeError) as error:
        raise StateError(f"the checkpoint of round {checkpoint.round} is of another strategy: {error!r}") from None
