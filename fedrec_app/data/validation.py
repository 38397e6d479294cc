"""Which rows of raw interactions can be used, and why the others cannot."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedrec_app.errors import DataError

CONTEXT = "context_"
STANDARD = ("user_id", "item_id", "rating", "timestamp", "label")
_ISO_DATE = r"\d{4}-\d{2}-\d{2}"


@dataclass(frozen=True)
class Quarantine:
    """The rows that were set aside.

    Attributes:
        rows: columns line (int64, the line in the source, 1 for the first), reason (str), and the raw values.
    """

    rows: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"line": [], "reason": []}))

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by reason, in the order of the reasons' names."""
        return {str(reason): int(n) for reason, n in self.rows["reason"].value_counts().sort_index().items()}

    def __len__(self) -> int:
        return len(self.rows)

    def write(self, path: str | Path) -> None:
        """Writes a CSV file with the columns line, reason and the raw values, a row for each row set aside."""
        self.rows.to_csv(path, index=False, encoding="utf-8", lineterminator="\n")

    def joined(self, other: Quarantine) -> Quarantine:
        """Returns the rows of both, by line."""
        parts = [part.rows for part in (self, other) if len(part)]
        if len(parts) < 2:
            return other if len(other) else self
        rows = pd.concat(parts, ignore_index=True)
        return Quarantine(rows.sort_values("line", kind="stable", ignore_index=True))


def check(
    raw: pd.DataFrame,
    lines: NDArray[np.int64] | None = None,
    catalog_ids: Collection[str] | None = None,
) -> tuple[pd.DataFrame, Quarantine]:
    """Returns the usable rows with their final types, in the order of `raw`, and the rows set aside.

    Args:
        raw: columns user_id and item_id, optionally rating, timestamp (seconds, dates, or ISO 8601 text), label and
            context_*; further columns are left out of the result.
        lines: (num_rows,) line of each row in its source; 1, 2, ... without it.
        catalog_ids: the items that exist; a row of another item is set aside.

    Raises:
        DataError: a column that is always needed is missing.
    """
    for needed in ("user_id", "item_id"):
        if needed not in raw.columns:
            raise DataError(f"no column {needed!r}: there are {', '.join(map(str, raw.columns))}")
    raw = raw.reset_index(drop=True)
    reasons = [""]
    reason = np.zeros(len(raw), dtype=np.int16)

    def set_aside(bad: NDArray[np.bool_], why: str) -> None:
        reasons.append(why)
        reason[bad & (reason == 0)] = len(reasons) - 1

    columns: dict[str, NDArray[Any] | pd.Categorical] = {}

    def numbers(name: str, dtype: type[np.floating]) -> None:
        with np.errstate(over="ignore"):
            values = as_numbers(raw.loc[:, name]).astype(dtype)
        columns[name] = values
        set_aside(~np.isfinite(values), f"{name} is not a finite number")

    for name in ("user_id", "item_id"):
        ids = as_ids(raw.loc[:, name])
        columns[name] = ids
        set_aside(ids.codes < 0, f"{name} is missing")
        if name == "item_id" and catalog_ids is not None:
            known = np.append(ids.categories.isin(list(catalog_ids)), True)
            set_aside(~known[ids.codes], "item_id is not in the catalog")
    if "rating" in raw:
        numbers("rating", np.float32)
    if "timestamp" in raw:
        seconds = as_seconds(raw.loc[:, "timestamp"])
        columns["timestamp"] = seconds
        set_aside(~np.isfinite(seconds), "timestamp is not a finite number of seconds or an ISO 8601 date")
    if "label" in raw:
        label = as_numbers(raw.loc[:, "label"])
        is_label = (label == 0) | (label == 1)
        columns["label"] = np.where(is_label, label, 0).astype(np.int8)
        set_aside(~is_label, "label is not 0 or 1")
    for name in [str(name) for name in raw.columns if str(name).startswith(CONTEXT)]:
        if pd.api.types.is_numeric_dtype(raw[name]):
            numbers(name, np.float32)
        else:
            columns[name] = pd.Categorical(raw[name].astype("object").fillna("").astype(str))

    bad = reason != 0
    rows = raw.loc[bad].copy()
    line = np.arange(1, len(raw) + 1) if lines is None else np.asarray(lines)
    rows.insert(0, "line", line[bad].astype(np.int64))
    rows.insert(1, "reason", np.array(reasons)[reason[bad]])
    table = pd.DataFrame(columns, copy=False)
    if bad.any():
        table = table.loc[~bad].reset_index(drop=True)
    return table, Quarantine(rows.reset_index(drop=True))


def merge_duplicates(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Returns the table with one row for each (user, item), and how many rows that took away.

    The earliest row stays where it is (by timestamp, then by position in the file) and takes the rating of the latest.

    Args:
        table: as `check` returns it.
    """
    users = table["user_id"].cat.codes.to_numpy().astype(np.int64)
    items = table["item_id"].cat.codes.to_numpy()
    pair = users * len(table["item_id"].cat.categories) + items
    repeated = np.flatnonzero(pd.Series(pair).duplicated(keep=False).to_numpy())
    if len(repeated) == 0:
        return table, 0
    keys = [pair[repeated]]
    if "timestamp" in table:
        keys.insert(0, table["timestamp"].to_numpy()[repeated])
    repeated = repeated[np.lexsort(keys)]
    starts = np.append(True, np.diff(pair[repeated]) != 0)
    first, last = repeated[starts], repeated[np.append(starts[1:], True)]
    if "rating" in table:
        rating = table["rating"].to_numpy(copy=True)
        rating[first] = rating[last]
        table = table.assign(rating=rating)
    keep = np.ones(len(table), dtype=np.bool_)
    keep[repeated[~starts]] = False
    return table.loc[keep].reset_index(drop=True), int((~keep).sum())


def as_ids(column: pd.Series) -> pd.Categorical:
    """Returns a column as text ids, categories in order of first appearance, missing where it is empty or blank.

    Whole floats lose their ".0": a column of integers with a gap arrives as floats.
    """
    codes, values = pd.factorize(column, use_na_sentinel=True)
    text = [_id_text(value) for value in values]
    # "1" and 1, or 1.0, are one id
    again, names = pd.factorize(pd.Series(text, dtype="str"), use_na_sentinel=True)
    merged = np.append(again, -1)[codes]
    return pd.Categorical.from_codes(merged, categories=pd.Index(names, dtype="str"))


def _id_text(value: object) -> str | None:
    if isinstance(value, float | np.floating):
        if not np.isfinite(value):
            return None
        value = int(value) if float(value).is_integer() else value
    text = str(value)
    return text if text.strip() else None


def as_numbers(column: pd.Series) -> NDArray[np.float64]:
    """Returns a column as numbers, NaN where it is none."""
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.asarray(pd.to_numeric(column.astype("object"), errors="coerce"), dtype=np.float64)


def as_seconds(column: pd.Series) -> NDArray[np.float64]:
    """Returns a column of seconds, dates or ISO 8601 text as seconds since 1970 (UTC), NaN where it is none."""
    if not pd.api.types.is_datetime64_any_dtype(column):
        seconds = as_numbers(column)
        if pd.api.types.is_numeric_dtype(column):
            return seconds
        text = column.astype("object").astype(str)
        dates = text.str.match(_ISO_DATE).to_numpy(dtype=np.bool_)
        seconds = seconds.copy()
        parsed = pd.to_datetime(list(text[dates]), format="ISO8601", errors="coerce", utc=True)
        seconds[dates] = _since_1970(parsed)
        return seconds
    return _since_1970(pd.DatetimeIndex(pd.to_datetime(column, utc=True)))


def _since_1970(dates: pd.DatetimeIndex) -> NDArray[np.float64]:
    return np.asarray((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1), dtype=np.float64)
