"""Lines of JSON of which each is bound to the one before: what the privacy ledger and the audit log are made of.

    {"seq":0,"previous":"000...", ...,"hash":"..."}
    {"seq":1,"previous":"<hash of line 0>", ...,"hash":"..."}

`hash` is the SHA-256 of the line without its `hash`, written as JSON without spaces, keys in their order. It covers
`previous`, so that a line that is changed, removed, repeated or moved breaks the chain. What a chain cannot show is
that whole lines are missing at its end, or that somebody wrote all of it anew: whoever wants to see that keeps its
length and digest somewhere else.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedrec_app.errors import StateError

START = "0" * 64
"""What the first line has in the place of the hash of the line before."""
_PATIENCE = 1.0
"""Seconds that a chain may be in use: whoever looks whether it is takes its lock for a moment."""


def line(record: Mapping[str, Any]) -> bytes:
    """Returns a record with its hash as a line of the file.

    Args:
        record: JSON values, "seq" and "previous" among them.

    Raises:
        TypeError, ValueError: it is not made of JSON values.
    """
    return (to_json({**record, "hash": sha256(to_json(record).encode()).hexdigest()}) + "\n").encode()


def verified(text: bytes, number: int, previous: str) -> dict[str, Any] | None:
    """Returns the record of a line, or None where it is not byte for byte what was written there.

    Args:
        text: the line without its newline.
        number: its place, from 0.
        previous: the hash of the line before.
    """
    try:
        record = json.loads(text)
        unsigned = {key: value for key, value in record.items() if key != "hash"}
        intact = line(unsigned) == text + b"\n"
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    # A seq that is true or 1.0 equals 1, but is not what was written.
    fits = unsigned.get("seq") == number and type(unsigned["seq"]) is int and unsigned.get("previous") == previous
    return record if intact and fits else None


def to_json(record: Mapping[str, Any]) -> str:
    """Returns a record as the JSON that is hashed."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False)


def now(timespec: str = "seconds") -> str:
    """Returns the time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec=timespec)


@dataclass
class Lines:
    """What a file of chained lines holds.

    Attributes:
        records: of the whole lines, each verified, up to the first one that is damaged.
        damaged: the number of that one, from 1; 0 where there is none.
        torn: what stands after the last newline: a line that a crash cut short.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    damaged: int = 0
    torn: bytes = b""

    @property
    def digest(self) -> str:
        """The hash of the last line, which stands for all of them."""
        return self.records[-1]["hash"] if self.records else START

    def continues(self, length: int, digest: str) -> bool:
        """Returns whether these are the lines that there once were, and those after them."""
        return 0 < length <= len(self.records) and self.records[length - 1]["hash"] == digest


def read(content: bytes) -> Lines:
    """Returns what stands in a file, verified."""
    *whole, torn = content.split(b"\n")
    found = Lines(torn=torn)
    for number, text in enumerate(whole):
        record = verified(text, number, found.digest)
        if record is None:
            found.damaged = number + 1
            return found
        found.records.append(record)
    if torn and not _begins(torn, len(found.records), found.digest):
        found.damaged = len(found.records) + 1  # no crash leaves that behind
    return found


def _begins(torn: bytes, number: int, previous: str) -> bool:
    start = f'{{"seq":{number},"previous":"{previous}",'.encode()
    return torn.startswith(start) or start.startswith(torn)


@dataclass
class ChainFile:
    """A file of chained lines that this process alone may write, until it is closed; use `ChainFile.open`.

    Attributes:
        path: the file.
        found: what it held when it was opened.
        set_aside: a file that could not be gone on with: its new name, its SHA-256 and why; empty where it could.
    """

    path: Path
    found: Lines
    set_aside: Mapping[str, str]
    _lock: FileLock
    _descriptor: int
    _length: int
    _digest: str

    @classmethod
    def open(cls, path: Path, doubt: Callable[[Lines], str] = lambda found: "") -> ChainFile:
        """Returns the file, made where it is not there; a last line that a crash cut short is removed.

        A file with a damaged line is kept under another name, and a new one begun.

        Args:
            path: the file.
            doubt: says why one without damage cannot be gone on with either, or "".

        Raises:
            StateError: another process writes it, or the disk does not allow it.
        """
        with alone(path, str(path), _PATIENCE) as lock:
            content = path.read_bytes() if path.is_file() else b""
            found, aside = read(content), {}
            why = f"line {found.damaged} is damaged" if found.damaged else doubt(found)
            if why:
                aside = {"file": "", "sha256": sha256(content).hexdigest(), "why": why}
                if path.is_file():
                    aside["file"] = _free_name(path).name
                    path.rename(path.with_name(aside["file"]))
                found = Lines()
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
            try:
                if found.torn:
                    os.ftruncate(descriptor, len(content) - len(found.torn))
                os.fsync(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        return cls(path, found, aside, lock, descriptor, len(found.records), found.digest)

    def append(self, fields: Mapping[str, Any]) -> None:
        """Appends a line; when this returns it is on the disk.

        Args:
            fields: JSON values.

        Raises:
            StateError: it could not be written; this file takes no more lines then.
            TypeError, ValueError: these are no JSON values.
        """
        text = line({"seq": self._length, "previous": self._digest, **fields})
        if self._descriptor < 0:
            raise StateError(f"{self.path} is closed: it takes no more lines")
        try:
            append_line(self._descriptor, text)
        except OSError as error:
            self.close()
            raise StateError(f"cannot write {self.path}: {error}") from None
        self._length, self._digest = self._length + 1, json.loads(text)["hash"]

    @property
    def digest(self) -> str:
        """The hash of the last line, which stands for all of them."""
        return self._digest

    def __len__(self) -> int:
        """Returns the number of lines."""
        return self._length

    def close(self) -> None:
        """Lets other processes write it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._lock.release()


def in_use(path: Path) -> bool | None:
    """Returns whether a process on this machine writes a file of chained lines; None where nobody can tell."""
    lock_path = _lock_path(path)
    if not lock_path.is_file():
        return None
    lock = FileLock(lock_path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:
        return None
    lock.release()
    return False


def _free_name(path: Path) -> Path:
    """Returns where a damaged file is kept."""
    names = (path.with_name(f"{path.stem}.damaged-{number}{path.suffix}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def append_line(descriptor: int, text: bytes) -> None:
    """Writes a line to the disk, by one call so that a crash can hardly cut it.

    Raises:
        OSError: the disk does not take it, or took only a part of it.
    """
    if os.write(descriptor, text) != len(text):
        raise OSError("the disk took only a part of the line")
    os.fsync(descriptor)


@contextmanager
def alone(path: Path, named: str, patience: float) -> Iterator[FileLock]:
    """Gives the lock of a file, taken; whatever is raised inside gives it back.

    Args:
        path: the file; its folder is made.
        named: what errors call it.
        patience: seconds to wait for somebody else.

    Raises:
        StateError: somebody else has it, or the disk does not do what is asked of it inside.
    """
    lock = FileLock(_lock_path(path), timeout=patience, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        yield lock
    except Timeout:
        raise StateError(f"{named} is in use by another process") from None
    except BaseException as error:
        lock.release()
        if not isinstance(error, OSError):
            raise
        raise StateError(f"cannot open {named}: {error}") from None
