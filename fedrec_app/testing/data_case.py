"""What the checks of data sets are made of: a source with its arguments, and what two loads may differ in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.schema import Dataset
from fedrec_app.data.sources.base import DataSource, parse_options

SEED = 3


@dataclass(frozen=True)
class DataCase:
    """A data source and what it is loaded with.

    Attributes:
        source: the class.
        path: file or folder; "" where the data set is generated.
        columns: mapping "user_id=user,item_id=film", or "".
        options: its options by name; defaults without them.
        seed: of everything that is drawn.
    """

    source: type[DataSource[Any]]
    path: str = ""
    columns: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = SEED

    def load(self, path: str | None = None, columns: str | None = None) -> Dataset:
        """Returns the data set, loaded anew.

        Args:
            path: instead of the case's.
            columns: instead of the case's.
        """
        return self._ask("load", path, columns)

    def load_catalog(self, path: str | None = None) -> Catalog:
        """Returns the catalog by itself, loaded anew."""
        return self._ask("catalog", path, None)

    @cached_property
    def data(self) -> Dataset:
        """The data set, loaded once for the checks that only look at it."""
        return self.load()

    def _ask(self, method: str, path: str | None, columns: str | None) -> Any:
        source = self.source()
        options = parse_options(source, json.dumps(dict(self.options)))
        arguments = (self.path if path is None else path, self.columns if columns is None else columns)
        return getattr(source, method)(*arguments, options, self.seed)


def table_difference(found: pd.DataFrame, expected: pd.DataFrame) -> str:
    """Returns how tables differ in columns, rows, types or values, or ""."""
    if list(found.columns) != list(expected.columns):
        return f"the columns are {list(found.columns)}, not {list(expected.columns)}"
    if len(found) != len(expected):
        return f"there are {len(found)} rows, not {len(expected)}"
    if not found.index.equals(expected.index):
        row = int(np.flatnonzero(found.index.to_numpy() != expected.index.to_numpy())[0])
        return f"row {row} is {found.index[row]!r}, not {expected.index[row]!r}"
    for name in expected.columns:
        one, other = found[name], expected[name]
        if one.dtype != other.dtype:
            return f"column {name!r} is {one.dtype}, not {other.dtype}"
        if not one.equals(other):
            same = one.astype("object").eq(other.astype("object")) | (one.isna() & other.isna())
            row = int(np.flatnonzero(~same.to_numpy(dtype=np.bool_))[0])
            return f"column {name!r} is {one.iloc[row]!r} in row {row}, not {other.iloc[row]!r}"
    return ""


def dataset_difference(found: Dataset, expected: Dataset) -> str:
    """Returns how two loads of a data set differ, or ""."""
    if found.catalog.hash != expected.catalog.hash:
        return "the catalogs differ"
    for name in ("users", "friends"):
        one, other = getattr(found, name), getattr(expected, name)
        if (one is None) != (other is None):
            return f"{name} are there once and once not"
        if one is not None and (problem := table_difference(one, other)):
            return f"{name}: {problem}"
    if problem := table_difference(found.interactions.table, expected.interactions.table):
        return f"interactions: {problem}"
    if found.report != expected.report:
        return f"the report is {found.report}, not {expected.report}"
    problem = table_difference(found.quarantine.rows, expected.quarantine.rows)
    return f"quarantine: {problem}" if problem else ""
