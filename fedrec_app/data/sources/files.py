"""Reading text tables so that every row keeps the number of its line."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedrec_app.data.validation import Quarantine, as_numbers
from fedrec_app.errors import DataError

_BLOCK = 1 << 24


@dataclass(frozen=True)
class RawTable:
    """Rows as they stand in a file.

    Attributes:
        rows: the raw columns.
        lines: (num_rows,) line of each row in the file, 1 for the first line.
        malformed: rows with too many fields.
    """

    rows: pd.DataFrame
    lines: NDArray[np.int64]
    malformed: Quarantine


def find(path: str, dataset: str, *file_names: str) -> Path:
    """Returns the file of a data set.

    Args:
        path: the file, or the folder that holds it.
        dataset: the data set's name, for errors.
        file_names: what the file is called in a folder; the first that is there is taken.

    Raises:
        DataError: no path, nothing there, no such file in the folder, or an empty file.
    """
    called = " or ".join(file_names)
    if not path:
        raise DataError(f"dataset {dataset!r} needs a path: the folder with {called}, or that file")
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"dataset {dataset!r}: there is nothing at {place}")
    candidates = [place / name for name in file_names] if place.is_dir() else [place]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        inside = sorted(entry.name for entry in place.iterdir())[:8]
        raise DataError(f"dataset {dataset!r}: no file {called} in {place} (it has {', '.join(inside) or 'nothing'})")
    if file.stat().st_size == 0:
        raise DataError(f"dataset {dataset!r}: {file} is empty")
    return file


def header_of(path: Path, separator: str, encoding: str = "utf-8-sig") -> list[str]:
    """Returns the column names in a file's first line.

    Raises:
        DataError: the first line is blank or not text.
    """
    try:
        with path.open(encoding=encoding, newline="") as file:
            names = next(csv.reader(file, delimiter=separator, skipinitialspace=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not {encoding} text: {error}") from error
    if not any(name.strip() for name in names):
        raise DataError(f"{path}: the first line must name the columns")
    return [name.strip() for name in names]


def read_text(
    path: Path,
    separator: str,
    names: Sequence[str] | None = None,
    as_text: Sequence[str] = (),
    encoding: str = "utf-8-sig",
) -> RawTable:
    """Returns the rows of a delimited text file; blank lines are skipped.

    Args:
        path: the file.
        separator: between fields.
        names: the columns of a file without a header; with None the first line names them.
        as_text: columns that stay text even where they look like numbers.
        encoding: of the file.

    Raises:
        DataError: the file is not text.
    """
    with_header = names is None
    columns = header_of(path, separator, encoding) if with_header else list(names)
    numbers = [name for name in columns if name not in as_text]
    try:
        rows = pd.read_csv(
            path,
            sep=separator,
            header=0 if with_header else None,
            names=columns,
            index_col=False,
            dtype=dict.fromkeys((name for name in columns if name in as_text), "str"),
            keep_default_na=False,
            na_values={name: [""] for name in numbers},
            skip_blank_lines=False,
            skipinitialspace=True,
            low_memory=False,
            encoding=encoding,
        )
        fast = len(rows) + with_header == _count_lines(path)
    except (pd.errors.ParserError, pd.errors.ParserWarning):
        fast = False
    except pd.errors.EmptyDataError:
        rows, fast = pd.DataFrame(columns=columns), True
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {encoding} text: {error}") from error
    if not fast:
        return _read_slowly(path, separator, columns, with_header, as_text, encoding)
    lines = np.arange(len(rows), dtype=np.int64) + 1 + with_header
    return _without_blank(rows, lines, Quarantine())


def _count_lines(path: Path) -> int:
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


def _read_slowly(
    path: Path, separator: str, columns: list[str], with_header: bool, as_text: Sequence[str], encoding: str
) -> RawTable:
    """Reads a file with quoted line breaks or rows of too many fields, of which pandas loses the line numbers."""
    rows: list[list[str]] = []
    lines: list[int] = []
    malformed: list[tuple[int, str, str]] = []
    reason = f"more than {len(columns)} fields"
    try:
        with path.open(encoding=encoding, newline="") as file:
            reader = csv.reader(file, delimiter=separator, skipinitialspace=True)
            start = 1
            for number, row in enumerate(reader):
                if (number > 0 or not with_header) and row:
                    if len(row) > len(columns):
                        malformed.append((start, reason, separator.join(row)))
                    else:
                        rows.append(row + [""] * (len(columns) - len(row)))
                        lines.append(start)
                start = reader.line_num + 1
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read after line {lines[-1] if lines else 0}: {error}") from error
    table = pd.DataFrame(rows, columns=columns, dtype="str")
    for name in columns:
        if name not in as_text:
            given = (table[name] != "").to_numpy(dtype=np.bool_)
            parsed = as_numbers(table.loc[:, name])
            numeric = (np.isnan(parsed) != given).all()
            table[name] = parsed if numeric else table[name].where(given)
    quarantine = Quarantine(pd.DataFrame(malformed, columns=["line", "reason", "raw"]))
    return _without_blank(table, np.array(lines, dtype=np.int64), quarantine)


def _without_blank(rows: pd.DataFrame, lines: NDArray[np.int64], malformed: Quarantine) -> RawTable:
    blank = np.ones(len(rows), dtype=np.bool_)
    for name in rows.columns:
        column = rows[name]
        blank &= (column.isna() | (column == "")).to_numpy(dtype=np.bool_)
        if not blank.any():
            return RawTable(rows, lines, malformed)
    return RawTable(rows.loc[~blank].reset_index(drop=True), lines[~blank], malformed)
