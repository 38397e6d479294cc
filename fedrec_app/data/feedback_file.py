"""Reading many feedback events from a file of the operator's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedrec_app.data.feedback import MOST_EVENTS
from fedrec_app.data.sources.csv_file import parse_columns
from fedrec_app.data.sources.files import header_of, read_text
from fedrec_app.errors import DataError, did_you_mean

_NAMES = ("user_id", "item_id", "rating", "timestamp")
_MOST_BYTES = 1 << 30


def read_events(path: Path, columns: str = "") -> pd.DataFrame:
    """Returns the events of a file, as they stand there: "line", and those of user_id, item_id, rating and timestamp
    that it has.

    Args:
        path: .csv or .tsv with a header, or .jsonl with an object a line.
        columns: mapping such as "user_id=user,item_id=film".

    Raises:
        DataError: there is no such file, it cannot be read, or it lacks a column.
        ConfigError: the mapping is wrong.
    """
    mapping = parse_columns(columns)
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.stat().st_size > _MOST_BYTES:
        raise DataError(f"{path} has more than {_MOST_BYTES >> 30} GiB: split it")
    if path.suffix not in (".csv", ".tsv", ".jsonl"):
        raise DataError(f"{path} is of an unknown kind: .csv, .tsv or .jsonl is expected")
    used = {name: mapping.get(name, name) for name in _NAMES}
    if path.suffix == ".jsonl":
        table, lines = _json_lines(path)
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        header = header_of(path, separator)
        ids = [used[name] for name in _NAMES[:2] if used[name] in header]
        raw = read_text(path, separator, as_text=ids)
        if len(raw.malformed):
            first = raw.malformed.rows.iloc[0]
            raise DataError(f"{path} line {first['line']} has {first['reason']}; nothing was added")
        table, lines = raw.rows, raw.lines
    there = [str(name) for name in table.columns]
    for name, column in used.items():
        if column not in there and (name in mapping or name in _NAMES[:2]):
            raise DataError(
                f"{path} has no column {column!r} for {name}: it has {', '.join(there) or 'none'}"
                f"{did_you_mean(column, there)}"
            )
    found = pd.DataFrame({name: table[column] for name, column in used.items() if column in there})
    found.insert(0, "line", lines)
    return found


def _json_lines(path: Path) -> tuple[pd.DataFrame, np.ndarray]:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path} line {number} is not JSON: {str(error)[:100]}") from None
            if not isinstance(row, dict) or any(isinstance(value, dict | list) for value in row.values()):
                raise DataError(f"{path} line {number} is not an object of texts and numbers")
            if len(rows) == MOST_EVENTS:
                raise DataError(f"{path} has more than {MOST_EVENTS:,} events: split it")
            rows.append(row)
            lines.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    table = pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype="object") for name in names})
    return table, np.array(lines, dtype=np.int64)
