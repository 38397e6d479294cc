"""The lines of a privacy ledger, each bound to the one before (see `hash_chain.py`).

The first line is the header, each further line one charge:

    {"seq":0,"previous":"000...","format":"fedrec-ledger/1","header":{...},"time":"...","hash":"..."}
    {"seq":1,"previous":"<hash of line 0>","event":{...},"what":{"for":"round","round":1},"time":"...","hash":"..."}

That whole lines are missing at the end no chain can show: a checkpoint keeps the ledger's length and digest, and
`Ledger.require` compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedrec_app import hash_chain
from fedrec_app.errors import FedrecError, StateError
from fedrec_app.privacy.events import Gaussian

FORMAT = "fedrec-ledger/1"
_HEADER = ("seq", "previous", "format", "header", "time")
_CHARGE = ("seq", "previous", "event", "what", "time")


@dataclass(frozen=True)
class Charge:
    """One line of a ledger.

    Attributes:
        event: what happened.
        what: what it was for, such as {"for": "round", "round": 3}.
        time: the day, ISO 8601 in UTC.
    """

    event: Gaussian
    what: Mapping[str, Any]
    time: str


@dataclass
class Chain:
    """What the lines of a ledger say.

    Attributes:
        header: of the first line.
        charges: of the lines after it.
        hashes: of all of them.
    """

    header: Mapping[str, Any] = field(default_factory=dict)
    charges: list[Charge] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)

    def next(self, event: Gaussian, what: Mapping[str, Any]) -> bytes:
        """Returns the line that charges an event now."""
        fields = {"event": asdict(event), "what": dict(what), "time": _today()}
        return hash_chain.line({"seq": len(self.hashes), "previous": self.hashes[-1], **fields})

    def add(self, line: bytes) -> None:
        """Takes in a line that charges something.

        Raises:
            FedrecError, TypeError, ValueError: it is no charge.
        """
        record = json.loads(line)
        self.charges.append(Charge(Gaussian(**record["event"]), dict(record["what"]), str(record["time"])))
        self.hashes.append(record["hash"])

    def require(self, path: Path, length: int, digest: str) -> None:
        """Raises StateError unless the ledger goes on from what it once was.

        Args:
            path: of the ledger, for errors.
            length: how many lines it had then.
            digest: hash of the last one of them.
        """
        if len(self.hashes) < length:
            raise StateError(
                f"the privacy ledger {path} has {len(self.hashes)} lines, the checkpoint knows of {length}"
            )
        if length < 1 or self.hashes[length - 1] != digest:
            raise StateError(f"line {length} of the privacy ledger {path} is not the one that the checkpoint knows")


def header_line(header: Mapping[str, Any]) -> bytes:
    """Returns the first line of a ledger."""
    said = {"format": FORMAT, "header": dict(header), "time": _today()}
    return hash_chain.line({"seq": 0, "previous": hash_chain.START, **said})


def read_lines(path: Path, content: bytes) -> Chain:
    """Returns what whole lines say, every one of them verified.

    Args:
        path: of the ledger, for errors.
        content: the lines, each with its newline.

    Raises:
        StateError: a line is damaged; it is named.
    """
    chain = Chain()
    for number, line in enumerate(content.split(b"\n")[:-1]):
        previous = chain.hashes[-1] if chain.hashes else hash_chain.START
        record = _verified(line, number, previous)
        if record is None:
            raise StateError(
                f"line {number + 1} of the privacy ledger {path} is damaged, or lines before it are missing"
            )
        try:
            if number:
                chain.add(line)
            else:
                chain.header = dict(record["header"])
                chain.hashes.append(record["hash"])
        except (ValueError, TypeError, FedrecError) as error:
            raise StateError(f"line {number + 1} of the privacy ledger {path} does not fit: {error}") from None
    if not chain.hashes:
        raise StateError(f"the privacy ledger {path} has no header: the run that made it had not begun")
    return chain


def _verified(line: bytes, number: int, previous: str) -> dict[str, Any] | None:
    """Returns a line that follows another one, or None where it is not byte for byte what was written there."""
    record = hash_chain.verified(line, number, previous)
    if record is None:
        return None
    keys = (*(_CHARGE if number else _HEADER), "hash")
    return record if tuple(record) == keys and (number or record["format"] == FORMAT) else None


def torn_event(path: Path, chain: Chain, torn: bytes) -> Gaussian | None:
    """Returns the event of a line that a crash cut short, or None where it cut off the event too.

    Args:
        path: of the ledger, for errors.
        chain: the lines before.
        torn: what is there of the line.

    Raises:
        StateError: no such line begins so.
    """
    start = f'{{"seq":{len(chain.hashes)},"previous":"{chain.hashes[-1]}","event":'.encode()
    found, closed, _ = torn[len(start) :].partition(b"}")
    try:
        if not (torn.startswith(start) or start.startswith(torn)):
            raise ValueError("it is not the beginning of that line")
        return Gaussian(**json.loads(found + closed)) if closed else None
    except (ValueError, TypeError, FedrecError) as error:
        raise StateError(f"line {len(chain.hashes) + 1} of the privacy ledger {path} is damaged: {error}") from None


def _today() -> str:
    """Returns the day, in UTC: how long a round took would tell whether a user of many rows took part."""
    return datetime.now(UTC).date().isoformat()
