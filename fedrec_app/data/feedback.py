"""What users of a node did since its data was written: `<state-dir>/feedback.jsonl`, which the next run trains on too.

One JSON object a line, only ever appended:

    {"user_id":"u1","item_id":"i7","rating":null,"timestamp":1700000000.0,"left":0}

`left` is how many lines of the same call follow. A call is there when its last line, with 0, is: what a writer that was
killed left behind is not counted, and the next writer moves it to `feedback-torn.jsonl`. An item that the catalog does
not know is kept: it waits for a catalog that knows it. Nothing of this leaves the node.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from fedrec_app.data.validation import as_ids, as_numbers, as_seconds
from fedrec_app.errors import DataError, StateError
from fedrec_app.files import sync_folder, write_atomically

FILE, TORN = "feedback.jsonl", "feedback-torn.jsonl"
LONGEST_ID = 256
"""Characters of an id."""
MOST_EVENTS = 1_000_000
"""Events of one call."""
_LOCK_TIMEOUT = 60.0
_LATEST = 253_402_300_799.0  # the end of year 9999: milliseconds are taken for what they are, a mistake
_COLUMNS = ("user_id", "item_id", "rating", "timestamp")


class Feedback:
    """The events of one node.

    Args:
        state_dir: where the node keeps state.

    Attributes:
        torn: lines that the last `append` found of a call that was cut short.
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE
        self.torn = 0

    def append(self, events: pd.DataFrame) -> int:
        """Returns how many events are there with these, which are on the disk then, all of them or none.

        Args:
            events: columns user_id and item_id, optionally rating and timestamp (seconds, dates, or ISO 8601 text;
                without it: now); others are ignored.

        Raises:
            DataError: an event is not what it should be; the first one is named, and nothing is added.
            StateError: the file cannot be written.
        """
        content = _lines(checked(events))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                before = self._mend()
                _append(self.path, content)
                return before.count(b"\n") + content.count(b"\n")
        except OSError as error:
            raise StateError(f"cannot write {self.path}: {error}") from None

    def count(self) -> int:
        """Returns how many events are there: whole lines of whole calls."""
        return self._whole().count(b"\n")

    def rows(self, lines: int) -> pd.DataFrame:
        """Returns the first events: line (1 for the first), user_id, item_id, rating (NaN without one), timestamp.

        A line that somebody damaged has no ids, so that validation sets it aside.

        Args:
            lines: how many.

        Raises:
            StateError: fewer are there.
        """
        found = self._whole().split(b"\n")[:-1]
        if len(found) < lines:
            raise StateError(f"{self.path} has {len(found)} events, {lines} are expected: it was cut or replaced")
        table = pd.DataFrame([_read(line) for line in found[:lines]], columns=list(_COLUMNS))
        table["rating"], table["timestamp"] = as_numbers(table.loc[:, "rating"]), as_numbers(table.loc[:, "timestamp"])
        table.insert(0, "line", np.arange(1, lines + 1, dtype=np.int64))
        return table

    def _whole(self) -> bytes:
        if not self.path.is_file():
            return b""
        with self._locked():  # or half of a call that is being written would be seen
            return _whole_calls(self.path.read_bytes())

    def _mend(self) -> bytes:
        """Moves what a killed writer left behind the last whole call elsewhere; returns what stays. Under the lock."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        whole = _whole_calls(content)
        torn = content[len(whole) :]
        self.torn = torn.count(b"\n") + (not torn.endswith(b"\n")) if torn else 0
        if torn:
            _append(self.path.with_name(TORN), torn if torn.endswith(b"\n") else torn + b"\n")
            write_atomically(self.path, whole)
        return whole

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with FileLock(self.path.with_name(f"{FILE}.lock"), timeout=_LOCK_TIMEOUT):
                yield
        except Timeout:
            raise StateError(f"{self.path} was locked by another process for {_LOCK_TIMEOUT:.0f} s") from None


def checked(events: pd.DataFrame) -> pd.DataFrame:
    """Returns events with their final types: user_id and item_id (text), rating (NaN without one), timestamp (seconds).

    Args:
        events: see `Feedback.append`.

    Raises:
        DataError: an event is not what it should be; the first one is named.
    """
    if not 0 < len(events) <= MOST_EVENTS:
        raise DataError(f"{len(events):,} events: 1 to {MOST_EVENTS:,} at a time are allowed")
    events = events.reset_index(drop=True)
    result = pd.DataFrame(index=events.index)
    for name in ("user_id", "item_id"):
        if name not in events:
            raise DataError(f"no column {name!r}: there are {', '.join(map(str, events.columns))}")
        try:
            ids = as_ids(events.loc[:, name])
        except UnicodeEncodeError:
            raise DataError(f"a {name} is no text that UTF-8 can hold; nothing was added") from None
        _refuse(ids.codes < 0, events, name, "is missing")
        bad = np.array([_no_id(str(category)) for category in ids.categories], dtype=np.bool_)
        _refuse(bad[ids.codes], events, name, f"is not 1 to {LONGEST_ID} printable characters")
        result[name] = ids.astype("object")
    result["rating"] = np.nan
    if "rating" in events:
        raw = events.loc[:, "rating"]
        result["rating"] = as_numbers(raw)
        given = ~(raw.isna() | (raw.astype("str").str.strip() == "")).to_numpy(dtype=np.bool_)
        with np.errstate(over="ignore"):
            finite = np.isfinite(result["rating"].to_numpy().astype(np.float32))
        _refuse(given & ~finite, events, "rating", "is not a finite number")
    result["timestamp"] = time.time()
    if "timestamp" in events:
        seconds = as_seconds(events.loc[:, "timestamp"])
        fits = np.isfinite(seconds) & (seconds >= 0) & (seconds <= _LATEST)
        _refuse(~fits, events, "timestamp", "is neither seconds since 1970 nor an ISO 8601 date")
        result["timestamp"] = seconds
    return result


def _no_id(text: str) -> bool:
    try:
        text.encode()  # refuses half of a surrogate pair
    except UnicodeEncodeError:
        return True
    return not (0 < len(text) <= LONGEST_ID and text.isprintable())


def _refuse(bad: np.ndarray, events: pd.DataFrame, name: str, why: str) -> None:
    if not bad.any():
        return
    first = int(np.flatnonzero(bad)[0])
    line = int(events["line"].iloc[first]) if "line" in events else first + 1
    value = str(events[name].iloc[first])[:60]
    raise DataError(f"line {line}: {name} {value!r} {why} ({int(bad.sum())} such events); nothing was added")


def _lines(events: pd.DataFrame) -> bytes:
    columns = [events[name].tolist() for name in _COLUMNS]
    lines = []
    for left, (user, item, rating, seconds) in zip(
        range(len(events) - 1, -1, -1), zip(*columns, strict=True), strict=True
    ):
        said = {"user_id": user, "item_id": item, "rating": None if rating != rating else rating, "timestamp": seconds}
        lines.append(json.dumps({**said, "left": left}, separators=(",", ":"), allow_nan=False) + "\n")
    return "".join(lines).encode()


def _whole_calls(content: bytes) -> bytes:
    """Returns what a file begins with, up to the end of its last whole call."""
    end = content.rfind(b"\n") + 1
    while end:
        start = content.rfind(b"\n", 0, end - 1) + 1
        left = _parsed(content[start : end - 1]).get("left", 0)
        if not (isinstance(left, int) and left > 0):
            break  # the last of a call, or no line of ours: whole lines that somebody damaged are set aside, not cut
        end = start
    return content[:end]


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(line: bytes) -> tuple[Any, ...]:
    found = _parsed(line)
    ids = [value if isinstance(value := found.get(name), str) and not _no_id(value) else None for name in _COLUMNS[:2]]
    numbers = [
        float(value) if isinstance(value := found.get(name), int | float) and not isinstance(value, bool) else np.nan
        for name in _COLUMNS[2:]
    ]
    return (*ids, *numbers) if None not in ids else (None, None, np.nan, np.nan)


def _append(path: Path, content: bytes) -> None:
    """Writes to the end of a file and to the disk; what could not be written whole is taken back."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        before = os.fstat(descriptor).st_size
        try:
            view = memoryview(content)
            while len(view):
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)
    sync_folder(path.parent)
