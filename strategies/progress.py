"""What a run has done so far, and how a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flwr.app import ArrayRecord

from fedrec_app.checkpoint import Checkpoint
from fedrec_app.errors import StateError
from fedrec_app.records import Arrays, from_record, to_record


@dataclass(frozen=True)
class RoundRecord:
    """What one round did: times in seconds, traffic in bytes of payload over all nodes."""

    round: int
    seconds: float
    train: dict[str, Any]
    validation: dict[str, Any] | None
    bytes_down: int
    bytes_up: int


@dataclass
class Progress:
    """A run so far.

    Attributes:
        arrays: the parameters after the last round.
        best_arrays: the parameters of the best round on validation; the last ones where nothing was validated, and
            where a run releases its last round whatever validation says.
        best_round: that round; 0 before any.
        best_value: its validation metric.
        best_users: how many users that was measured on; figures of other users do not compare. 0 before any.
        rounds: a record of each round.
        stopped_early: whether validation stopped improving before the last round.
        stopped_why: why the strategy allowed no further round; "" where it did not say so.
        stepped: whether any round changed the parameters.
        keep_rounds: rounds whose private state the nodes keep besides the best one's: whoever writes checkpoints names
            those that he could go on from.
    """

    arrays: ArrayRecord
    best_arrays: ArrayRecord
    best_round: int = 0
    best_value: float = float("-inf")
    best_users: int = 0
    rounds: list[RoundRecord] = field(default_factory=list)
    stopped_early: bool = False
    stopped_why: str = ""
    stepped: bool = False
    keep_rounds: Sequence[int] = ()

    @property
    def last_round(self) -> int:
        """The last round that is over; 0 before any."""
        return self.rounds[-1].round if self.rounds else 0

    def checkpoint(self, state: Arrays, facts: Mapping[str, Any]) -> Checkpoint:
        """Returns what it takes to go on from here.

        Args:
            state: of the strategy.
            facts: JSON values to keep besides.
        """
        best = from_record(self.best_arrays) if 0 < self.best_round < self.last_round else {}
        own = {
            "best-value": self.best_value,
            "best-users": self.best_users,
            "stepped": self.stepped,
            "rounds": [asdict(record) for record in self.rounds],
        }
        return Checkpoint(self.last_round, self.best_round, from_record(self.arrays), best, state, {**facts, **own})

    @classmethod
    def of(cls, checkpoint: Checkpoint, keep_rounds: Sequence[int] = ()) -> Progress:
        """Returns the run that a checkpoint was made of, ready to go on.

        Args:
            checkpoint: after a round.
            keep_rounds: see the attribute: `Checkpoints.needed_rounds()` where there will be more checkpoints.

        Raises:
            StateError: the checkpoint does not say what it says of every run.
        """
        arrays, facts = to_record(checkpoint.shared), checkpoint.facts
        try:
            return cls(
                arrays=arrays,
                best_arrays=to_record(checkpoint.best) if checkpoint.best else arrays,
                best_round=checkpoint.best_round,
                best_value=float(facts["best-value"]),
                best_users=int(facts.get("best-users", 0)),
                rounds=[RoundRecord(**fields) for fields in facts["rounds"]],
                stepped=bool(facts["stepped"]),
                keep_rounds=keep_rounds,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"the checkpoint of round {checkpoint.round} is of no run: {error!r}") from None
