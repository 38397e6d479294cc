"""Checkpoints: what the server of a run needs to go on, as `<run>/checkpoints/<round>.safetensors`.

A file comes whole or not at all, and carries the SHA-256 of all its bytes (its own 64 digits taken as zeros). The last
two are kept, so that there is another one where the newest is damaged. Nothing of the noise of a private run is in a
checkpoint: what has been released is in the parameters, what it cost in the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from logging import WARNING
from pathlib import Path
from typing import Any

import numpy as np
from flwr.supercore import log
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from fedrec_app.checksum import NO_SUM, require_sum, said_by, summed
from fedrec_app.config import RunConfig, Scalar
from fedrec_app.errors import ConfigError, StateError
from fedrec_app.files import write_atomically
from fedrec_app.records import Arrays

FOLDER = "checkpoints"
MAY_CHANGE = (
    "num-server-rounds", "output-dir", "checkpoint.", "tracking.", "strategy.join-timeout", "strategy.round-timeout",
    "evaluate.every", "evaluate.ks", "evaluate.early-stopping-rounds", "evaluate.bootstrap",
)  # fmt: skip
"""Settings, and prefixes of settings, that a resumed run may have other values of."""
_FORMAT = "fedrec-checkpoint/1"
_KEPT = 2
_PARTS = ("shared/", "best/", "state/")
_DAMAGES = (SafetensorError, OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Checkpoint:
    """A run after one of its rounds.

    Attributes:
        round: that round.
        best_round: the best one so far; 0 before any.
        shared: the parameters by name.
        best: those of the best round; none where they are the same.
        state: of the strategy.
        facts: JSON values: whatever else the run needs, or is to be compared with.
    """

    round: int
    best_round: int
    shared: Arrays
    best: Arrays = field(default_factory=dict)
    state: Arrays = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def require(self, facts: Mapping[str, Any]) -> None:
        """Raises StateError unless the checkpoint says the same of every one of these facts."""
        for name, value in facts.items():
            if self.facts.get(name) != value:
                found = self.facts.get(name, "nothing")
                raise StateError(f"the checkpoint of round {self.round} has {name} {found}, this run has {value}")

    def to_bytes(self) -> bytes:
        """Returns the content of its file."""
        parts = zip(_PARTS, (self.shared, self.best, self.state), strict=True)
        # Not np.ascontiguousarray: it makes a 0-d array 1-d.
        arrays = {part + name: np.asarray(a, order="C") for part, named in parts for name, a in named.items()}
        metadata = {"round": str(self.round), "best-round": str(self.best_round), "facts": json.dumps(dict(self.facts))}
        return summed(save(arrays, metadata={"format": _FORMAT, "sha256": NO_SUM, **metadata}))

    @classmethod
    def from_bytes(cls, content: bytes) -> Checkpoint:
        """Returns the checkpoint in the content of a file.

        Raises:
            SafetensorError, OSError, ValueError, KeyError, TypeError: it is damaged.
        """
        said = said_by(content)
        if said["format"] != _FORMAT:
            raise ValueError(f"its format is {said['format']!r}, {_FORMAT!r} is expected")
        require_sum(content, said["sha256"])
        arrays = load(content)
        shared, best, state = (
            {name.removeprefix(part): array for name, array in arrays.items() if name.startswith(part)}
            for part in _PARTS
        )
        return cls(int(said["round"]), int(said["best-round"]), shared, best, state, json.loads(said["facts"]))


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they are.
    """

    folder: Path

    def rounds(self) -> list[int]:
        """Returns the rounds that there is a checkpoint of, oldest first."""
        return sorted(int(path.stem) for path in self.folder.glob("*.safetensors") if path.stem.isdecimal())

    def write(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint to the disk, then removes all but the last two.

        Those of later rounds are removed too: they are of another course of this run, which nobody continued.
        """
        write_atomically(self._path(checkpoint.round), checkpoint.to_bytes())
        kept = [number for number in self.rounds() if number <= checkpoint.round][-_KEPT:]
        for number in set(self.rounds()) - set(kept):
            self._path(number).unlink(missing_ok=True)
        for abandoned in self.folder.glob(".*.safetensors.*"):
            abandoned.unlink(missing_ok=True)  # of a run that was killed while it wrote

    def read_newest(self) -> Checkpoint:
        """Returns the newest checkpoint that is not damaged; each damaged one is named in the log.

        Raises:
            StateError: there is none.
        """
        rounds = self.rounds()
        for number in reversed(rounds):
            path = self._path(number)
            try:
                found = Checkpoint.from_bytes(path.read_bytes())
                if found.round != number:
                    raise ValueError(f"it is of round {found.round}")
                return found
            except _DAMAGES as error:
                log(WARNING, "checkpoint %s is damaged (%s): trying the one before", path, error)
        if rounds:
            raise StateError(f"no readable checkpoint in {self.folder}: round {', '.join(map(str, rounds))} damaged")
        raise StateError(f"no checkpoint in {self.folder}: is it of a run with checkpoint.every above 0?")

    def needed_rounds(self) -> list[int]:
        """Returns the rounds whose private state must stay on the nodes for a run to go on from any checkpoint."""
        needed: set[int] = set()
        for number in self.rounds():
            needed.add(number)
            try:
                with safe_open(self._path(number), framework="numpy") as stream:
                    needed.add(int(stream.metadata()["best-round"]))
            except _DAMAGES:
                continue  # nobody will go on from it
        return sorted(needed)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.safetensors"


def check_same(then: Mapping[str, Scalar], now: Mapping[str, Scalar], fixed: Iterable[str] = ()) -> None:
    """Raises ConfigError where settings differ that must not: all but those in `MAY_CHANGE`.

    Args:
        then: the flat settings of the checkpoint; what it does not know had its default value.
        now: those of the run that is to go on from it.
        fixed: settings in `MAY_CHANGE` that must not change in this run either.
    """
    may_change = tuple(name for name in MAY_CHANGE if name not in set(fixed))
    then = {**RunConfig().flat(), **then}
    differences = [
        f"{key} was {json.dumps(then.get(key))} and is {json.dumps(now.get(key))}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key) and not key.startswith(may_change)
    ]
    if differences:
        raise ConfigError(
            f"a run goes on with the settings it began with: {'; '.join(differences)} "
            f"(only {', '.join(_readable(may_change))} may change)"
        )


def _readable(settings: Iterable[str]) -> list[str]:
    return [f"{name}*" if name.endswith(".") else name for name in settings]
