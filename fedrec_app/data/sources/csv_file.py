"""One's own data: a CSV or Parquet file with a row for each interaction."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.schema import Dataset, NoInteractions
from fedrec_app.data.sources.base import DataSource, SourceOptions
from fedrec_app.data.sources.files import RawTable, find, header_of, read_text
from fedrec_app.data.validation import CONTEXT, STANDARD, Quarantine
from fedrec_app.errors import ConfigError, DataError, did_you_mean, nearest, unknown

_PARQUET = (".parquet", ".pq")
_IDS = ("user_id", "item_id")
_IN_FOLDER = ("interactions.parquet", "interactions.csv")


class CsvOptions(SourceOptions):
    """Options of `csv`; every node of a deployment needs the same catalog."""

    separator: str = Field(default="", description='between fields; "": a tab in .tsv files, a comma in others')
    catalog: str = Field(
        default="",
        description="JSON lines, Parquet or CSV of all items, from the data's folder; others are set aside",
    )
    users: str = Field(default="", description="CSV or Parquet with user_id and attributes, from the data's folder")
    friends: str = Field(default="", description="CSV or Parquet with user_id and friend_id, from the data's folder")


class CsvFile(DataSource[CsvOptions]):
    """Interactions from one file; the columns are the standard names or mapped to them."""

    name: ClassVar[str] = "csv"
    summary: ClassVar[str] = (
        "your own CSV or Parquet file: columns user_id, item_id, and optionally rating, timestamp, ..."
    )
    Options: ClassVar[type[SourceOptions]] = CsvOptions
    takes_columns: ClassVar[bool] = True

    def load(self, path: str, columns: str, options: CsvOptions, seed: int) -> Dataset:
        """Returns the file's interactions; `path` is the file, or a folder with interactions.parquet or
        interactions.csv. See `DataSource.load`."""
        file = find(path, self.name, *_IN_FOLDER)
        raw = _read(file, options.separator, parse_columns(columns))
        users = friends = None
        if options.users:
            users = _side_table(file, options.users, options.separator, ("user_id",)).set_index("user_id")
        if options.friends:
            friends = _side_table(file, options.friends, options.separator, ("user_id", "friend_id"))
        return Dataset.assemble(raw.rows, raw.lines, _catalog(file, options), users, friends, raw.malformed)

    def catalog(self, path: str, columns: str, options: CsvOptions, seed: int) -> Catalog:
        """Returns the catalog file's items if there is one, else those of the interactions. See
        `DataSource.catalog`."""
        catalog = _catalog(Path(path).expanduser(), options) if options.catalog else None
        return catalog or self.load(path, columns, options, seed).catalog

    def catalog_is_listed(self, options: CsvOptions) -> bool:
        """Returns whether there is a catalog file."""
        return bool(options.catalog)


def parse_columns(text: str) -> dict[str, str]:
    """Returns the file's column for each of our names in a mapping such as "user_id=user,item_id=film".

    Raises:
        ConfigError: a part is not name=column, or a name is unknown or given twice.
    """
    mapping: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        target, equals, column = (piece.strip() for piece in part.partition("="))
        if not (target and equals and column):
            raise ConfigError(f"column mapping {part!r} is not name=column, such as 'user_id=user'")
        if target not in STANDARD and not target.startswith(CONTEXT):
            raise ConfigError(unknown("column", target, [*STANDARD, f"{CONTEXT}..."]))
        if target in mapping:
            raise ConfigError(f"column mapping {text!r} gives {target!r} twice")
        mapping[target] = column
    return mapping


def _read(file: Path, separator: str, mapping: dict[str, str]) -> RawTable:
    parquet = file.suffix in _PARQUET
    separator = separator or ("\t" if file.suffix == ".tsv" else ",")
    table = _read_parquet(file) if parquet else None
    header = [str(name) for name in table.columns] if table is not None else header_of(file, separator)
    doubled = [name for name in header if header.count(name) > 1]
    if doubled:
        raise DataError(f"{file} has two columns {doubled[0]!r}")
    used = _columns_used(file, header, mapping)
    if table is None:
        raw = read_text(file, separator, as_text=[used[name] for name in _IDS])
        rows, lines, malformed = raw.rows, raw.lines, raw.malformed
    else:
        rows, lines, malformed = table, np.arange(1, len(table) + 1, dtype=np.int64), Quarantine()
    if not len(rows) and not len(malformed):
        raise NoInteractions(f"{file} has a header but no rows")
    return RawTable(pd.DataFrame({name: rows[column] for name, column in used.items()}), lines, malformed)


def _columns_used(file: Path, header: list[str], mapping: dict[str, str]) -> dict[str, str]:
    """Returns the file's column for each of our names: mapped ones, then those that already have our name."""
    listing = f"it has {', '.join(header)}"
    for target, column in mapping.items():
        if column not in header:
            raise DataError(f"{file} has no column {column!r} for {target}: {listing}{did_you_mean(column, header)}")
    own = [name for name in header if name in STANDARD or name.startswith(CONTEXT)]
    used = mapping | {name: name for name in own if name not in mapping and name not in mapping.values()}
    for name in _IDS:
        if name not in used:
            near = nearest(name, header) or "..."
            raise DataError(f"{file} has no column {name!r}: {listing}; name it in the mapping, as '{name}={near}'")
    return used


def _read_parquet(file: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(file)
    except (ValueError, OSError) as error:
        raise DataError(f"{file} is not a Parquet file: {error}") from error


def _beside(file: Path, name: str) -> Path:
    folder = file if file.is_dir() else file.parent
    place = folder / Path(name).expanduser()
    if not place.is_file():
        raise DataError(f"dataset 'csv': there is no file {place}")
    return place


def _side_table(file: Path, name: str, separator: str, needed: tuple[str, ...]) -> pd.DataFrame:
    place = _beside(file, name)
    if place.suffix in _PARQUET:
        table = _read_parquet(place)
    else:
        separator = separator or ("\t" if place.suffix == ".tsv" else ",")
        raw = read_text(place, separator, as_text=needed)
        if len(raw.malformed):
            row = raw.malformed.rows.iloc[0]
            raise DataError(f"{place} line {row['line']} has {row['reason']}")
        table = raw.rows
    for column in needed:
        if column not in table:
            raise DataError(f"{place} has no column {column!r}: it has {', '.join(map(str, table.columns))}")
    return table


def _catalog(file: Path, options: CsvOptions) -> Catalog | None:
    if not options.catalog:
        return None
    place = _beside(file, options.catalog)
    if place.suffix in (".csv", ".tsv"):
        return Catalog.from_table(_side_table(file, options.catalog, options.separator, ("item_id",)), str(place))
    return Catalog.from_file(place)
