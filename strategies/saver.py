"""A hook that writes checkpoints while a run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import ArrayRecord

from fedrec_app.checkpoint import Checkpoints
from fedrec_app.records import Arrays
from strategies.progress import Progress, RoundRecord


class HasState(Protocol):
    """What a checkpoint keeps of a strategy."""

    def state(self) -> Arrays:
        """Returns what the next round depends on besides the parameters, by name."""
        ...


@dataclass(frozen=True)
class Saver:
    """Writes a checkpoint after each n-th round, and tells the nodes what they must keep for it.

    Args:
        checkpoints: of the run.
        every: n.
        strategy: whose state is kept.
        facts: gives JSON values that the checkpoint keeps besides, as they are at that moment.
    """

    checkpoints: Checkpoints
    every: int
    strategy: HasState
    facts: Callable[[], Mapping[str, Any]]

    def begin(self, initial: ArrayRecord) -> None:
        """Writes the checkpoint that a run goes on from which is killed in its first round."""
        self.checkpoints.write(Progress(initial, initial).checkpoint(self.strategy.state(), self.facts()))

    def on_round(self, record: RoundRecord, progress: Progress) -> None:
        """Writes a checkpoint where one is due."""
        if record.round % self.every == 0:
            self.checkpoints.write(progress.checkpoint(self.strategy.state(), self.facts()))
            progress.keep_rounds = self.checkpoints.needed_rounds()
