"""The public item list that every node must hold alike."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedrec_app.errors import DataError

_SHOWN = 5


@dataclass(frozen=True)
class Catalog:
    """The items of a run; an item's position here is its row in every model.

    Attributes:
        item_ids: (num_items,) ids as they stand in the data, each once.
        features: (num_items rows) public features such as title, category and text, in the order of `item_ids`; its
            index is 0, 1, 2, ... Empty columns when the data set has none.
    """

    item_ids: tuple[str, ...]
    features: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        features = self.features
        if not self.item_ids:
            raise DataError("the catalog has no items")
        if features.shape[1] == 0:
            features = pd.DataFrame(index=pd.RangeIndex(len(self.item_ids)))
        if len(features) != len(self.item_ids):
            raise DataError(f"the catalog has {len(self.item_ids)} items but {len(features)} rows of features")
        repeated = self._index[self._index.duplicated()].unique()
        if len(repeated):
            raise DataError(f"the catalog repeats {_examples(repeated)}")
        object.__setattr__(self, "features", features.reset_index(drop=True))

    @classmethod
    def of_ids(cls, item_ids: Iterable[str]) -> Catalog:
        """Returns the catalog without features of these ids, each once, sorted as text."""
        return cls(tuple(sorted(set(item_ids))))

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.item_ids, dtype="str")

    @cached_property
    def hash(self) -> str:
        """SHA-256 over ids and features, order included; the same on every machine and after `to_file`."""
        digest = hashlib.sha256()
        for name, values in [("item_id", self.item_ids), *self.features.items()]:
            canonical = [str(name), [_canonical(value) for value in values]]
            digest.update(json.dumps(canonical, separators=(",", ":")).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def position(self, item_id: str) -> int:
        """Returns the model's row of an item.

        Raises:
            DataError: the catalog does not have it.
        """
        return int(self.positions([item_id])[0])

    def positions(self, item_ids: pd.Series | Sequence[str]) -> NDArray[np.int64]:
        """Returns (len(item_ids),) the model's rows of items.

        Raises:
            DataError: the catalog does not have one of them.
        """
        if isinstance(item_ids, pd.Series) and isinstance(item_ids.dtype, pd.CategoricalDtype):
            codes = item_ids.cat.codes.to_numpy()
            of_category = self._index.get_indexer(item_ids.cat.categories)
            found = np.append(of_category, -1)[codes].astype(np.int64)
        else:
            found = self._index.get_indexer(pd.Index(item_ids)).astype(np.int64)
        if (found < 0).any():
            missing = pd.Index(item_ids)[found < 0].unique()
            raise DataError(f"not among the catalog's {len(self)} items: {_examples(missing)}")
        return found

    def to_file(self, path: str | Path) -> None:
        """Writes the catalog as Parquet (a name that ends in .parquet) or else as JSON lines, one item a line."""
        Path(path).write_bytes(self.content(Path(path).suffix))

    def content(self, suffix: str = ".jsonl") -> bytes:
        """Returns what `to_file` writes.

        Args:
            suffix: ".parquet", or another for JSON lines.
        """
        table = self.features.copy()
        table.insert(0, "item_id", self._index)
        if suffix == ".parquet":
            table.to_parquet(buffer := io.BytesIO(), index=False)
            return buffer.getvalue()
        names = [str(name) for name in table.columns]
        columns = [[_canonical(value) for value in column] for _, column in table.items()]
        rows = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()

    @classmethod
    def from_file(cls, path: str | Path) -> Catalog:
        """Returns the catalog that `to_file` wrote, or a hand-written one with a key `item_id` in every line.

        Raises:
            DataError: the file is missing, empty or malformed; the line is named.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"no catalog file at {path}")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the catalog {path}: {error}") from error
        return cls.from_content(content, str(path), path.suffix)

    @classmethod
    def from_content(cls, content: bytes, origin: str, suffix: str = ".jsonl") -> Catalog:
        """Returns the catalog whose file has this content.

        Args:
            content: of the file.
            origin: its name, for errors.
            suffix: ".parquet", or another for JSON lines.

        Raises:
            DataError: it is empty or malformed; the line is named.
        """
        if suffix == ".parquet":
            try:
                table = pd.read_parquet(io.BytesIO(content))
            except (ValueError, OSError) as error:
                raise DataError(f"{origin} is not a Parquet file: {error}") from error
        else:
            table = _read_json_lines(content, origin)
        return cls.from_table(table, origin)

    @classmethod
    def from_table(cls, table: pd.DataFrame, origin: str) -> Catalog:
        """Returns the catalog whose features are the columns of `table` other than item_id.

        Args:
            table: (num_items rows) with a column item_id.
            origin: the file's name, for errors.

        Raises:
            DataError: there is no item_id column, or an id is missing or repeated.
        """
        if "item_id" not in table.columns:
            raise DataError(f"{origin} has no column 'item_id': it has {', '.join(map(str, table.columns))}")
        ids = [_canonical(value) for value in table["item_id"]]
        for row, value in enumerate(ids, start=1):
            if value is None or str(value).strip() == "":
                raise DataError(f"{origin}: item {row} has no item_id")
        return cls(tuple(str(value) for value in ids), table.drop(columns="item_id"))


def _read_json_lines(content: bytes, origin: str) -> pd.DataFrame:
    try:
        lines = io.StringIO(content.decode(), newline=None)
    except UnicodeDecodeError as error:
        raise DataError(f"{origin} is not UTF-8 text: {error}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{origin} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict) or "item_id" not in row:
            raise DataError(f"{origin} line {number} is not an object with a key 'item_id'")
        rows.append(row)
    if not rows:
        raise DataError(f"{origin} is empty")
    names = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows]) for name in names})


def _canonical(value: Any) -> Any:
    """Returns the plain JSON value that a cell stands for, so that dtypes and file formats do not show in the hash."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_canonical(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float):
        if value != value:
            return None
        return int(value) if value.is_integer() else value
    if isinstance(value, str | int):
        return value
    raise DataError(f"a catalog feature cannot be a {type(value).__name__}: {value!r}")


def _examples(ids: Iterable[object]) -> str:
    names = [repr(str(item)) for item in ids]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
