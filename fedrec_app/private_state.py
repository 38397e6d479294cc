"""Private rows on the node's disk: `<state-dir>/<lineage>/<partition>/<round>.safetensors`.

A message names a round, and the node serves the newest version that is not newer than it, so that shared and
private parameters always match. Kept are the last version, the one before, and those that the rounds named in
`keep` need.

A lineage may have a parent: a round of an earlier lineage, whose rows its users begin with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from logging import WARNING
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from flwr.supercore import log
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedrec_app.checksum import NO_SUM, require_sum, said_by, summed
from fedrec_app.errors import StateError
from fedrec_app.files import write_atomically
from fedrec_app.records import Arrays, checked_lineage

LOCK_TIMEOUT = 60.0
"""Seconds to wait for another process of the node."""
_KEYS = "user-keys"


@dataclass(frozen=True)
class Parent:
    """A round of an earlier lineage.

    Attributes:
        lineage: its name.
        round: whose rows go on.
    """

    lineage: str
    round: int

    @classmethod
    def parse(cls, text: str) -> Parent:
        """Returns what `str` wrote: "<lineage>:<round>".

        Raises:
            ValueError: the lineage is not a plain name, or the round no number.
        """
        lineage, _, number = text.rpartition(":")
        if not (number.isdecimal() and len(number) < 10):
            raise ValueError(f"parent {text[:120]!r}: <lineage>:<round> is expected")
        return cls(checked_lineage(lineage), int(number))

    def __str__(self) -> str:
        return f"{self.lineage}:{self.round}"


def inherited(state_dir: Path, parent: Parent, keys: NDArray[np.uint64], initial: Arrays) -> Arrays:
    """Returns the rows that users begin a lineage with: those of its parent, whoever it does not know his initial ones.

    All partitions of the parent on this machine are looked through: a simulation deals its users anew when there are
    more of them. Where a partition's versions are all damaged its users begin anew, which the log counts.

    Args:
        state_dir: where the node keeps state.
        parent: of the lineage.
        keys: (num_users,) who is asked for.
        initial: rows that users start with, by name, with optimiser states where those of the parent are to go on.

    Raises:
        StateError: the parent's rows are of another model.
    """
    saved = _rows_of(state_dir, parent)
    if not saved:
        return dict(initial)
    for name, rows in initial.items():
        if name in saved and saved[name].shape[1:] != rows.shape[1:]:
            raise StateError(f"the private state of {parent} is of another model: its {name!r} is not like this one's")
    found = _aligned(dict(saved), keys, initial)
    return {name: found[name].copy() if name in found else start for name, start in initial.items()}


@lru_cache(maxsize=2)
def _rows_of(state_dir: Path, parent: Parent) -> Arrays:
    """Returns the rows of all users of a parent on this machine, with their keys, not to be written to."""
    found, lost = [], 0
    partitions = sorted(int(path.name) for path in (state_dir / parent.lineage).glob("*") if path.name.isdecimal())
    for partition in partitions:
        try:
            if (rows := PrivateState(state_dir, parent.lineage, partition).newest(parent.round)) is not None:
                found.append(rows)
        except StateError as error:
            lost += 1
            log(WARNING, "%s", error)
    if lost:
        log(WARNING, "%s of %s private states of %s are damaged: their users begin anew", lost, len(partitions), parent)
    names = sorted(set.intersection(*map(set, found))) if found else []
    try:
        return {name: np.concatenate([rows[name] for rows in found]) for name in names}
    except ValueError as error:
        raise StateError(f"the private states of {parent} do not fit together: {error}") from None


class PrivateState:
    """Versions of the private rows of one node.

    Args:
        state_dir: where the node keeps state.
        lineage: the line of versions that a run starts or continues.
        partition_id: of the node.
        durable: flush each version to the disk (deployments; a simulation that dies starts over).

    Raises:
        ValueError: the lineage is not a plain name.
    """

    def __init__(self, state_dir: Path, lineage: str, partition_id: int, durable: bool = True) -> None:
        self.folder = state_dir / checked_lineage(lineage) / str(partition_id)
        self.durable = durable

    def rounds(self) -> list[int]:
        """Returns the rounds that there are versions of, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.stem) for p in self.folder.glob("*.safetensors") if p.stem.isdecimal() and p.is_file())

    def load(self, at_round: int, keys: NDArray[np.uint64], initial: Arrays) -> Arrays:
        """Returns the rows of users, from the newest version that is not newer than a round.

        Args:
            at_round: the round that shared parameters are of.
            keys: (num_users,) who is asked for; users that the version does not know get their initial rows.
            initial: rows that users start with, by name; what a version holds beyond these names (optimiser states) is
                returned too, zero for users it does not know.

        Raises:
            StateError: every version that would do is damaged, or it is of another model.
        """
        saved = self.newest(at_round)
        if saved is None:
            return dict(initial)
        for name, rows in initial.items():
            if name not in saved or saved[name].shape[1:] != rows.shape[1:]:
                raise StateError(
                    f"the private state in {self.folder} is of another model: it has no {name!r} like this one's"
                )
        return _aligned(saved, keys, initial)

    def find(self, at_round: int, keys: NDArray[np.uint64]) -> Arrays | None:
        """Returns the rows of users as `load` would, or None where this node does not hold every one of them.

        Args:
            at_round: the round that shared parameters are of.
            keys: (num_users,) who is asked for.

        Raises:
            StateError: every version that would do is damaged.
        """
        saved = self.newest(at_round)
        if saved is None or not np.isin(keys, saved[_KEYS]).all():
            return None
        return _aligned(saved, keys, {})

    def newest(self, at_round: int) -> Arrays | None:
        """Returns the newest version that is not newer than a round, with the users' keys; None where there is none.

        Raises:
            StateError: every version that would do is damaged.
        """
        # Nothing is newer than the version of the round itself, so it needs no listing and no lock: files come whole.
        with suppress(SafetensorError, OSError, ValueError):
            return _read(self.folder / f"{at_round}.safetensors")
        if not self.folder.is_dir():
            return None
        # Under the lock: a folder that is listed while a writer renames and removes files may seem to lack the newest.
        with self._locked():
            candidates = [r for r in self.rounds() if r <= at_round]
            for candidate in reversed(candidates):
                path = self.folder / f"{candidate}.safetensors"
                try:
                    return _read(path)
                except (SafetensorError, OSError, ValueError) as error:
                    log(WARNING, "private state %s is damaged (%s): trying the version before", path, error)
        if candidates:
            raise StateError(f"no readable private state up to round {at_round} in {self.folder}")
        return None

    def save(self, at_round: int, keys: NDArray[np.uint64], rows: Arrays, keep: Iterable[int] = ()) -> None:
        """Writes the version of a round and removes those that nobody needs any more.

        Args:
            at_round: the round that was trained.
            keys: (num_users,) whose rows these are.
            rows: private rows and optimiser states by name.
            keep: rounds whose versions must stay, besides the last and the one before.
        """
        arrays = {**{n: np.ascontiguousarray(a) for n, a in rows.items()}, _KEYS: np.ascontiguousarray(keys)}
        content = summed(save(arrays, metadata={"sha256": NO_SUM}))
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            for abandoned in self.folder.glob(".*.safetensors.*"):
                abandoned.unlink(missing_ok=True)  # of a writer that was killed: whoever writes holds the lock
            write_atomically(self.folder / f"{at_round}.safetensors", content, self.durable)
            versions = self.rounds()
            # A round that is trained again must find the version it starts from, though newer ones are there.
            needed = {*versions[-2:], *[r for r in versions if r <= at_round][-2:]}
            for named in keep:
                needed.update([r for r in versions if r <= named][-1:])
            for version in set(versions) - needed:
                (self.folder / f"{version}.safetensors").unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with FileLock(self.folder / "lock", timeout=LOCK_TIMEOUT):
                yield
        except Timeout:
            raise StateError(f"{self.folder} was locked by another process for {LOCK_TIMEOUT:.0f} s") from None


def _read(path: Path) -> Arrays:
    content = path.read_bytes()
    saved = load(content)
    if said := said_by(content).get("sha256"):  # files of earlier versions have none
        require_sum(content, said)
    if _KEYS not in saved or any(len(array) != len(saved[_KEYS]) for array in saved.values()):
        raise ValueError("it does not hold one row a user")
    return saved


def _aligned(saved: Arrays, keys: NDArray[np.uint64], initial: Arrays) -> Arrays:
    saved_keys = saved.pop(_KEYS)
    if np.array_equal(saved_keys, keys):
        return saved
    order = np.argsort(saved_keys)
    place = np.searchsorted(saved_keys, keys, sorter=order).clip(max=max(len(saved_keys) - 1, 0))
    source = order[place] if len(saved_keys) else np.zeros(len(keys), dtype=np.int64)
    known = saved_keys[source] == keys if len(saved_keys) else np.zeros(len(keys), dtype=bool)
    result: Arrays = {}
    for name, array in saved.items():
        start = initial.get(name, np.zeros((len(keys), *array.shape[1:]), dtype=array.dtype))
        result[name] = start.copy()
        result[name][known] = array[source[known]]
    return result
