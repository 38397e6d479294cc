"""A study on disk: what it is of, and a line for each trial that came to an end.

JSON lines, written whole and renamed after each trial, so that a process that is killed leaves the trials before. A
trial is a function of the study's seed and the trials before it, so a study that was killed goes on as if it had not
been. (optuna's own journal would do but for what a kill leaves in it: a lock that is waited for, and a trial that never
ends and weighs on the next ones.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedrec_app.errors import StateError
from fedrec_app.files import require_writable, write_atomically
from fedrec_app.options import readable

FORMAT = "fedrec-study/1"


class Trial(BaseModel):
    """A configuration that was tried.

    Attributes:
        number: from 0, in the order of trials.
        state: "complete"; "pruned", where it was stopped for being behind; or "failed".
        params: value by dotted key, of what was searched.
        value: the best validation metric over rounds; None where it failed.
        best_round: the round of that value; 0 where there is none.
        by_round: (round, validation metric) of the rounds that were judged.
        seconds: what it took.
        reason: why it was stopped or failed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    number: int = Field(ge=0)
    state: Literal["complete", "pruned", "failed"]
    params: dict[str, Any]
    value: float | None = None
    best_round: int = Field(default=0, ge=0)
    by_round: tuple[tuple[int, float], ...] = ()
    seconds: float = Field(ge=0)
    reason: str = ""


@dataclass
class Study:
    """The trials of a study, and the file that keeps them.

    Attributes:
        path: the file.
        about: what the study is of: whatever must be the same for trials to be comparable.
        trials: those that came to an end, in their order.
    """

    path: Path
    about: Mapping[str, Any]
    trials: list[Trial] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, about: Mapping[str, Any]) -> Study:
        """Returns the study in a file, or a new one where there is no file yet.

        Raises:
            StateError: the file is damaged, or of another study; the differences are named.
        """
        study = cls(path, about)
        if not path.exists():
            study._write()
            return study
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, RecursionError) as error:
            raise StateError(f"study {path} is damaged: {error}") from None
        if not lines or not isinstance(lines[0], dict) or lines[0].get("format") != FORMAT:
            raise StateError(f"{path} is no study: its first line does not say {FORMAT!r}")
        if differences := _differences(lines[0], {"format": FORMAT, **about}):
            raise StateError(
                f"{path} is another study: {'; '.join(differences)}. Name another file with --study, or remove this one"
            )
        study.trials = [study._trial(number, line) for number, line in enumerate(lines[1:])]
        return study

    def _trial(self, number: int, line: Any) -> Trial:
        where = f"study {self.path} is damaged: line {number + 2}"
        try:
            trial = Trial.model_validate(line)
        except ValidationError as error:
            given = line if isinstance(line, dict) else {}
            raise StateError(f"{where}: {'; '.join(readable(error, given))}") from None
        if trial.number != number or (trial.state == "complete") > (trial.value is not None):
            raise StateError(f"{where} is not a whole trial {number}")
        return trial

    @property
    def best(self) -> Trial | None:
        """The complete trial with the largest value, the first of several; None where none is complete."""
        complete = self.of_state("complete")
        return max(complete, key=lambda trial: trial.value or 0.0) if complete else None

    def of_state(self, state: str) -> list[Trial]:
        """Returns the trials that ended so."""
        return [trial for trial in self.trials if trial.state == state]

    def add(self, trial: Trial) -> None:
        """Keeps one more trial."""
        self.trials.append(trial)
        self._write()

    def _write(self) -> None:
        lines = [{"format": FORMAT, **self.about}, *(trial.model_dump(mode="json") for trial in self.trials)]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in lines).encode())


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keeps other processes from the study in a file; the lock ends with the process, however that ends.

    Raises:
        StateError: another process works on it, or nothing can be written there.
    """
    try:
        require_writable(path.parent)  # else it would read as a lock
    except OSError as error:
        raise StateError(f"cannot write study {path}: {error}") from None
    try:
        with FileLock(f"{path}.lock", timeout=0):
            yield
    except Timeout:
        raise StateError(f"another process works on study {path}") from None


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns a text for each value that is not the same, at any depth."""
    found = []
    for key in sorted({*theirs, *ours}):
        then, now = theirs.get(key), ours.get(key)
        if isinstance(then, dict) and isinstance(now, dict):
            found += _differences(then, now, f"{prefix}{key} ")
        elif then != now:
            shown = ["absent" if value is None else json.dumps(value) for value in (then, now)]
            found.append(f"{prefix}{key} is {shown[0]} there and {shown[1]} here")
    return found
