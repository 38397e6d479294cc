"""The write-ahead ledger: every noisy sum is charged and on the disk before anybody sees it.

What a line looks like, and what the hashes show, says `ledger_lines.py`.

A last line without its newline is what a crash leaves behind. `charge` had not returned, so nothing was released under
it, and a ledger without it would not be too short. It is charged all the same wherever the event can be read (the event
comes early in the line): too much is counted rather than too little. Where the crash cut off the event too, the rest of
the line is removed. What could not have come from a crash, because it is not the beginning of the line that comes next,
is damage.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from fedrec_app.errors import StateError
from fedrec_app.files import sync_folder
from fedrec_app.hash_chain import alone, append_line
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.ledger_lines import Chain, Charge, header_line, read_lines, torn_event

LEDGER = "privacy-ledger.jsonl"
"""Name of the server's ledger in the folder of a run."""
SPENT_BEFORE, TEST_METRICS = "the run that this one continues", "test metrics"
"""What charges are for that are no rounds."""


class Ledger:
    """A ledger that this process alone may write, until it is closed; use `Ledger.create` or `Ledger.open`.

    Attributes:
        path: the file.
        mended: what `open` did about a line that a crash cut short; "" where there was none.
    """

    def __init__(self, path: Path, lock: FileLock, descriptor: int, chain: Chain, mended: str = "") -> None:
        self.path = path
        self.mended = mended
        self._lock = lock
        self._descriptor = descriptor
        self._chain = chain

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Ledger:
        """Returns a new ledger without charges, on the disk.

        Args:
            path: a file that does not exist; its folder is made.
            header: JSON values: what the charges are about, such as the lineage, the unit, delta and the users.

        Raises:
            StateError: the file exists or cannot be made, or another process writes it.
            TypeError, ValueError: the header is not made of JSON values.
        """
        line = header_line(header)
        with alone(path, f"the privacy ledger {path}", patience=0) as lock:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
            try:
                append_line(descriptor, line)
                sync_folder(path.parent)
            except BaseException:
                os.close(descriptor)
                raise
        return cls(path, lock, descriptor, read_lines(path, line))

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Returns the ledger of a file, which was read and verified to its last line.

        Raises:
            StateError: there is no such file, another process writes it, or a line is damaged; it names the line.
        """
        if not path.is_file():
            raise StateError(f"no privacy ledger {path}: without it nobody knows what the run has released")
        with alone(path, f"the privacy ledger {path}", patience=0) as lock:
            content = path.read_bytes()
            end = content.rfind(b"\n") + 1
            chain, torn = read_lines(path, content[:end]), content[end:]
            mended = _mend(path, chain, end, torn) if torn else ""
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        return cls(path, lock, descriptor, chain, mended)

    def charge(self, event: Gaussian, what: Mapping[str, Any]) -> None:
        """Appends a charge; when this returns it is on the disk, and what it pays for may be released.

        Args:
            event: what is about to happen.
            what: JSON values: what it is for, such as {"for": "round", "round": 3}.

        Raises:
            StateError: it could not be written: nothing may be released, and this ledger takes no more charges.
            TypeError, ValueError: `what` is not made of JSON values.
        """
        line = self._chain.next(event, what)
        if self._descriptor < 0:
            raise StateError(f"the privacy ledger {self.path} is closed: it takes no more charges")
        try:
            append_line(self._descriptor, line)
        except BaseException as error:
            self.close()  # how much of the line is there only `open` finds out
            if not isinstance(error, OSError):
                raise
            raise StateError(f"cannot write the privacy ledger {self.path}: {error}") from None
        self._chain.add(line)

    def require(self, length: int, digest: str) -> None:
        """Raises StateError unless the ledger goes on from what it once was.

        Args:
            length: `len(ledger)` then.
            digest: `ledger.digest` then.
        """
        self._chain.require(self.path, length, digest)

    @property
    def header(self) -> Mapping[str, Any]:
        """What the ledger was created with."""
        return self._chain.header

    @property
    def charges(self) -> Sequence[Charge]:
        """Every charge, oldest first."""
        return tuple(self._chain.charges)

    @property
    def events(self) -> list[Gaussian]:
        """Everything that was charged, oldest first."""
        return [charge.event for charge in self._chain.charges]

    @property
    def digest(self) -> str:
        """The hash of the last line, which stands for all of them."""
        return self._chain.hashes[-1]

    def __len__(self) -> int:
        """Returns the number of lines, the header among them."""
        return len(self._chain.hashes)

    def close(self) -> None:
        """Lets other processes write it; a closed ledger can still be read."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._lock.release()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _mend(path: Path, chain: Chain, end: int, torn: bytes) -> str:
    """Completes or removes what a crash left after the last newline, which is at `end`; returns what was done."""
    number = len(chain.hashes) + 1
    event = torn_event(path, chain, torn)
    line = b"" if event is None else chain.next(event, {"for": "a charge that a crash cut short"})
    # In place: a crash in the middle of this leaves the bytes that tell the event where they are.
    with path.open("r+b") as stream:
        stream.seek(end)
        stream.write(line)
        stream.truncate()
        stream.flush()
        os.fsync(stream.fileno())
    if event is not None:
        chain.add(line)
    done = "before its event, it is removed" if event is None else "it counts as charged"
    return f"a crash cut line {number} of the privacy ledger {path} short: {done}"
