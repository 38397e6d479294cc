"""A plain data source that keeps the contract, and sources that each break one rule of it, as an author might by
mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from pydantic import ConfigDict

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.schema import Dataset, Interactions, LoadReport
from fedrec_app.data.sources.base import DataSource, SourceOptions
from fedrec_app.data.sources.csv_file import parse_columns
from fedrec_app.data.validation import Quarantine
from fedrec_app.errors import DataError


class Shop(DataSource[SourceOptions]):
    """Purchases in a CSV file: nothing is wrong with it."""

    name: ClassVar[str] = "shop"
    summary: ClassVar[str] = "purchases of a shop"
    takes_columns: ClassVar[bool] = True

    def load(self, path: str, columns: str, options: SourceOptions, seed: int) -> Dataset:
        raw = self.read(path, columns)
        return Dataset.assemble(raw, users=self.users(raw))

    def read(self, path: str, columns: str) -> pd.DataFrame:
        try:
            raw = pd.read_csv(path, dtype={"user_id": "str", "item_id": "str"})
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        mapping = {column: name for name, column in parse_columns(columns).items()}
        if missing := sorted(set(mapping) - set(raw.columns)):
            raise DataError(f"{path} has no column {missing[0]!r}")
        return raw.rename(columns=mapping)

    def users(self, raw: pd.DataFrame) -> pd.DataFrame:
        ids = raw["user_id"].dropna().unique()
        return pd.DataFrame({"branch": [f"branch {len(user) % 2}" for user in ids]}, index=pd.Index(ids))


class HasNoSummary(Shop):
    """Says nothing of itself."""

    summary: ClassVar[str] = ""


class TakesAnyOption(Shop):
    """Swallows options that it does not know."""

    class Options(SourceOptions):
        model_config = ConfigDict(extra="ignore", frozen=True)


class SamplesUnseeded(Shop):
    """Takes other rows each time."""

    def read(self, path: str, columns: str) -> pd.DataFrame:
        raw = super().read(path, columns)
        order = np.random.default_rng().permutation(len(raw))
        return raw.iloc[order]


class SeedsTheWorld(Shop):
    """Seeds the generator that everybody else uses too."""

    def read(self, path: str, columns: str) -> pd.DataFrame:
        raw = super().read(path, columns)
        np.random.seed(0)  # noqa: NPY002 - the fault
        return raw.iloc[np.random.permutation(len(raw))]  # noqa: NPY002 - the fault


class ListsItemsInAnotherOrder(Shop):
    """Reads the catalog faster than the data, and in the order of the file."""

    def catalog(self, path: str, columns: str, options: SourceOptions, seed: int) -> Catalog:
        seen = super().load(path, columns, options, seed).interactions.table["item_id"]
        return Catalog(tuple(reversed(seen.cat.categories)))


class NumbersItsItems(Shop):
    """Leaves ids as the numbers that they are."""

    def load(self, path: str, columns: str, options: SourceOptions, seed: int) -> Dataset:
        data = super().load(path, columns, options, seed)
        numbered = Catalog(data.catalog.item_ids)
        object.__setattr__(numbered, "item_ids", tuple(range(len(numbered))))
        return replace(data, catalog=numbered)

    def catalog(self, path: str, columns: str, options: SourceOptions, seed: int) -> Catalog:
        return self.load(path, columns, options, seed).catalog


class CountsMilliseconds(Shop):
    """Hands its log's times on as they are."""

    def load(self, path: str, columns: str, options: SourceOptions, seed: int) -> Dataset:
        data = super().load(path, columns, options, seed)
        table = data.interactions.table.assign(timestamp=1e3 * data.interactions.table["timestamp"])
        return replace(data, interactions=replace(data.interactions, table=table))


class SkipsValidation(Shop):
    """Builds the data set by hand and keeps what validation would merge."""

    def load(self, path: str, columns: str, options: SourceOptions, seed: int) -> Dataset:
        data = super().load(path, columns, options, seed)
        table = pd.concat([data.interactions.table, data.interactions.table.iloc[:2]], ignore_index=True)
        for name in ("user_id", "item_id"):
            table[name] = table[name].astype(data.interactions.table[name].dtype)
        report = replace(data.report, rows_read=data.report.rows_read + 2, rows_kept=len(table))
        merged = data.interactions.duplicates_merged
        return replace(data, interactions=Interactions(table, merged), report=report)


class KeepsRatingsWide(Shop):
    """Builds the table by hand and forgets a type."""

    def load(self, path: str, columns: str, options: SourceOptions, seed: int) -> Dataset:
        data = super().load(path, columns, options, seed)
        table = data.interactions.table.assign(rating=data.interactions.table["rating"].astype("float64"))
        return replace(data, interactions=replace(data.interactions, table=table))


class LosesWhatWasSetAside(Shop):
    """Forgets to hand the quarantine on."""

    def load(self, path: str, columns: str, options: SourceOptions, seed: int) -> Dataset:
        return replace(super().load(path, columns, options, seed), quarantine=Quarantine())


class DropsRowsSilently(Shop):
    """Filters after it counted."""

    def load(self, path: str, columns: str, options: SourceOptions, seed: int) -> Dataset:
        data = super().load(path, columns, options, seed)
        return replace(data, report=LoadReport(data.report.rows_read + 5, data.report.rows_kept))


class NumbersItsColumns(Shop):
    """Has attributes of users without names, by which nobody can ask for them."""

    def users(self, raw: pd.DataFrame) -> pd.DataFrame:
        return super().users(raw).rename(columns={"branch": 0})


class LetsErrorsThrough(Shop):
    """Leaves it to pandas to say what is wrong."""

    def read(self, path: str, columns: str) -> pd.DataFrame:
        if not Path(path).is_file():
            raise FileNotFoundError(path)
        return super().read(path, columns)


class HidesThePath(Shop):
    """Says that something is wrong, and not where."""

    def read(self, path: str, columns: str) -> pd.DataFrame:
        try:
            return super().read(path, columns)
        except DataError:
            if parse_columns(columns):
                raise
            raise DataError("the file cannot be read") from None


class IgnoresItsColumns(Shop):
    """Says that it takes a mapping, and does not look at it."""

    def read(self, path: str, columns: str) -> pd.DataFrame:
        return super().read(path, "")
