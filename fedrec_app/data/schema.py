"""Validated data: what happened, to which items, of which users, and what was set aside on the way."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.validation import CONTEXT, STANDARD, Quarantine, check, merge_duplicates
from fedrec_app.errors import DataError

__all__ = ["Catalog", "Dataset", "Interactions", "LoadReport", "NoInteractions", "Quarantine"]


@dataclass(frozen=True)
class Interactions:
    """One validated table of what users did; file order is kept and breaks ties between equal timestamps.

    Attributes:
        table: columns user_id and item_id (categories of text), optionally rating (float32), timestamp (float64 seconds
            since 1970), label (int8, 1 for a click, 0 for an impression without one) and context_* (float32 or
            categories).
        duplicates_merged: rows that were folded into another one of the same user and item.
    """

    table: pd.DataFrame
    duplicates_merged: int = 0

    def __post_init__(self) -> None:
        for name in self.table.columns:
            if name not in STANDARD and not str(name).startswith(CONTEXT):
                raise DataError(f"interactions cannot have a column {name!r}")
        for name in ("user_id", "item_id"):
            if name not in self.table or not isinstance(self.table[name].dtype, pd.CategoricalDtype):
                raise DataError(f"interactions need a categorical column {name!r}")

    @classmethod
    def validate(
        cls,
        raw: pd.DataFrame,
        lines: NDArray[np.int64] | None = None,
        catalog_ids: Collection[str] | None = None,
    ) -> tuple[Interactions, Quarantine]:
        """Returns the usable interactions, and the rows set aside with the reason.

        Rows of the same user and item become one: the earliest stays and takes the rating of the latest. Rows with a
        label are impressions, which may repeat, and are never merged.

        Args:
            raw: columns user_id and item_id, optionally rating, timestamp, label and context_*; others are ignored.
            lines: (num_rows,) line of each row in its source; 1, 2, ... without it.
            catalog_ids: the items that exist; a row of another item is set aside.

        Raises:
            DataError: user_id or item_id is missing.
        """
        table, quarantine = check(raw, lines, catalog_ids)
        merged = 0
        if "label" not in table:
            table, merged = merge_duplicates(table)
        for name in ("user_id", "item_id"):
            table[name] = table[name].cat.remove_unused_categories()
        return cls(table, merged), quarantine

    def __len__(self) -> int:
        return len(self.table)

    @property
    def has_timestamps(self) -> bool:
        """Whether the order of a user's interactions is known."""
        return "timestamp" in self.table

    @property
    def has_labels(self) -> bool:
        """Whether rows are impressions with a click label (CTR data)."""
        return "label" in self.table


@dataclass(frozen=True)
class LoadReport:
    """What loading did: rows_read = rows_kept + quarantined + duplicates_merged + rows_dropped.

    Attributes:
        rows_read: rows of the source.
        rows_kept: rows of the data set.
        quarantined: rows set aside, by reason.
        duplicates_merged: rows folded into another one of the same user and item.
        users_dropped: users that cleaning removed.
        rows_dropped: rows that cleaning removed.
    """

    rows_read: int
    rows_kept: int
    quarantined: dict[str, int] = field(default_factory=dict)
    duplicates_merged: int = 0
    users_dropped: int = 0
    rows_dropped: int = 0

    def with_nothing_left(self, num_users: int) -> LoadReport:
        """Returns the report of data whose users, so many, were all dropped."""
        return replace(
            self,
            rows_kept=0,
            users_dropped=self.users_dropped + num_users,
            rows_dropped=self.rows_dropped + self.rows_kept,
        )

    def lines(self) -> list[str]:
        """Returns the report for people, one fact a line; what did not happen is left out."""
        text = [f"{self.rows_kept:,} of {self.rows_read:,} rows kept"]
        text += [f"{count:,} rows set aside: {reason}" for reason, count in self.quarantined.items()]
        if self.duplicates_merged:
            text.append(f"{self.duplicates_merged:,} repeated rows of the same user and item merged")
        if self.users_dropped:
            text.append(f"{self.users_dropped:,} users with too few interactions dropped ({self.rows_dropped:,} rows)")
        return text


class NoInteractions(DataError):
    """Data that can be read and of which nothing is left.

    Attributes:
        report: what loading and cleaning did.
        quarantine: the rows set aside.
    """

    def __init__(self, text: str, report: LoadReport | None = None, quarantine: Quarantine | None = None) -> None:
        super().__init__(text)
        self.report = report or LoadReport(0, 0)
        self.quarantine = quarantine or Quarantine()


@dataclass(frozen=True)
class Dataset:
    """A loaded data set: everything that a node, or a simulation of all nodes, knows.

    The categories of `interactions.table` are `users.index` and `catalog.item_ids`, in that order, so that their codes
    are the positions of users and items.

    Attributes:
        interactions: what users did.
        catalog: the items, those included that nobody touched.
        users: (num_users rows) index user_id; attributes such as region, gender and age; its order is the data order.
        friends: columns user_id and friend_id, an edge a row, or None; both ends are users of the data set.
        report: what loading did.
        quarantine: the rows set aside.
    """

    interactions: Interactions
    catalog: Catalog
    users: pd.DataFrame
    friends: pd.DataFrame | None
    report: LoadReport
    quarantine: Quarantine

    @classmethod
    def assemble(
        cls,
        raw: pd.DataFrame,
        lines: NDArray[np.int64] | None = None,
        catalog: Catalog | None = None,
        users: pd.DataFrame | None = None,
        friends: pd.DataFrame | None = None,
        malformed: Quarantine | None = None,
    ) -> Dataset:
        """Returns the data set of raw rows.

        Args:
            raw: raw interactions, see `Interactions.validate`.
            lines: (num_rows,) line of each row in its source.
            catalog: the items; without it, the sorted ids of the valid rows.
            users: attributes by user id; users come in its order, then those that it does not list in the order in
                which they appear. Users without interactions are left out.
            friends: columns user_id and friend_id; edges of users without interactions are left out.
            malformed: rows that could not even be read, to be reported with the others.

        Raises:
            NoInteractions: no row can be used.
        """
        malformed = malformed or Quarantine()
        interactions, quarantine = Interactions.validate(raw, lines, catalog.item_ids if catalog else None)
        quarantine = quarantine.joined(malformed)
        if not len(interactions):
            reasons = "; ".join(f"{count} x {reason}" for reason, count in quarantine.counts.items())
            read = LoadReport(len(quarantine), 0, quarantine.counts)
            text = f"no usable interaction in {len(quarantine)} rows{': ' if reasons else ''}{reasons}"
            raise NoInteractions(text, read, quarantine)
        report = LoadReport(
            rows_read=len(raw) + len(malformed),
            rows_kept=len(interactions),
            quarantined=quarantine.counts,
            duplicates_merged=interactions.duplicates_merged,
        )
        if catalog is None:
            catalog = Catalog.of_ids(interactions.table["item_id"].cat.categories)
        seen = interactions.table["user_id"].cat.categories
        return cls.of(interactions, catalog, _users_in_order(seen, users), friends, report, quarantine)

    @classmethod
    def of(
        cls,
        interactions: Interactions,
        catalog: Catalog,
        users: pd.DataFrame,
        friends: pd.DataFrame | None,
        report: LoadReport,
        quarantine: Quarantine | None = None,
    ) -> Dataset:
        """Returns the data set of validated parts, with codes and friends aligned to its users and items."""
        table = interactions.table.copy(deep=False)
        table["user_id"] = table["user_id"].cat.set_categories(users.index)
        table["item_id"] = table["item_id"].cat.set_categories(pd.Index(catalog.item_ids, dtype="str"))
        if friends is not None:
            friends = _edges_inside(friends, users.index)
        return cls(replace(interactions, table=table), catalog, users, friends, report, quarantine or Quarantine())

    @classmethod
    def empty(cls, catalog: Catalog, report: LoadReport, quarantine: Quarantine, labels: bool = False) -> Dataset:
        """Returns the data set of a node that has no users: a catalog, and what was set aside.

        Args:
            catalog: the items.
            report: what loading and cleaning did.
            quarantine: the rows set aside.
            labels: rows would be impressions.
        """
        nobody = pd.Categorical([], categories=pd.Index([], dtype="str"))
        table = pd.DataFrame({"user_id": nobody, "item_id": nobody, "timestamp": np.zeros(0)})
        if labels:
            table["label"] = np.zeros(0, dtype=np.int8)
        users = pd.DataFrame(index=pd.Index([], dtype="str", name="user_id"))
        return cls.of(Interactions(table), catalog, users, None, report, quarantine)

    def followed_by(self, raw: pd.DataFrame, lines: NDArray[np.int64] | None = None) -> Dataset:
        """Returns the data set with more interactions at its end, which are validated as those of a file are.

        Args:
            raw: see `Interactions.validate`; a rating is optional in every row. Columns that only one of the two has
                are left out.
            lines: (num_rows,) line of each row in its source.
        """
        if not len(raw):
            return self
        if "rating" in raw and bool(raw["rating"].isna().any()):
            raw = raw.drop(columns="rating")
        if self.interactions.has_labels:
            raw = raw.assign(label=1)
        valid, quarantine = Interactions.validate(raw, lines, self.catalog.item_ids)
        aside = self.quarantine.joined(quarantine)
        read = replace(self.report, rows_read=self.report.rows_read + len(raw), quarantined=aside.counts)
        if not len(valid):
            return replace(self, report=read, quarantine=aside)
        parts = [part.astype({"user_id": "str", "item_id": "str"}) for part in (self.interactions.table, valid.table)]
        both = pd.concat([part for part in parts if len(part)], join="inner", ignore_index=True)
        joined = Dataset.assemble(both, None, self.catalog, self.users, self.friends)
        merged = read.duplicates_merged + valid.duplicates_merged + joined.report.duplicates_merged
        report = replace(read, rows_kept=joined.report.rows_kept, duplicates_merged=merged)
        return replace(joined, report=report, quarantine=aside)

    @property
    def num_users(self) -> int:
        """How many users the data set has."""
        return len(self.users)

    @property
    def num_items(self) -> int:
        """How many items the catalog has."""
        return len(self.catalog)

    @cached_property
    def user_codes(self) -> NDArray[np.int64]:
        """(num_rows,) position of each row's user in `users`."""
        return self.interactions.table["user_id"].cat.codes.to_numpy().astype(np.int64)

    @cached_property
    def item_codes(self) -> NDArray[np.int64]:
        """(num_rows,) position of each row's item in the catalog."""
        return self.interactions.table["item_id"].cat.codes.to_numpy().astype(np.int64)

    def with_min_interactions(self, minimum: int) -> Dataset:
        """Returns the data set without the users who have fewer than `minimum` rows; the catalog stays whole.

        Raises:
            NoInteractions: no user is left.
        """
        counts = np.bincount(self.user_codes, minlength=self.num_users)
        keep = counts >= minimum
        if keep.all():
            return self
        if not keep.any():
            text = f"no user has {minimum} interactions: the most is {int(counts.max(initial=0))}"
            raise NoInteractions(text, self.report.with_nothing_left(self.num_users), self.quarantine)
        return self.restricted(keep, keep[self.user_codes], self.catalog)

    def restricted(self, users: NDArray[np.bool_], rows: NDArray[np.bool_], catalog: Catalog) -> Dataset:
        """Returns the data set of some users and rows; the report counts what went.

        Args:
            users: (num_users,) who stays: everybody whose rows do.
            rows: (num_rows,) which interactions stay.
            catalog: the items that stay: all whose rows do.
        """
        table = self.interactions.table.loc[rows].reset_index(drop=True)
        report = replace(
            self.report,
            rows_kept=len(table),
            users_dropped=self.report.users_dropped + int((~users).sum()),
            rows_dropped=self.report.rows_dropped + int((~rows).sum()),
        )
        interactions = replace(self.interactions, table=table)
        return Dataset.of(interactions, catalog, self.users.loc[users], self.friends, report, self.quarantine)


def _edges_inside(friends: pd.DataFrame, user_ids: pd.Index) -> pd.DataFrame:
    left, right = (friends[name].astype("str").to_numpy() for name in ("user_id", "friend_id"))
    inside = (user_ids.get_indexer(left) >= 0) & (user_ids.get_indexer(right) >= 0) & (left != right)
    return pd.DataFrame({"user_id": left[inside], "friend_id": right[inside]}).drop_duplicates(ignore_index=True)


def _users_in_order(seen: pd.Index, users: pd.DataFrame | None) -> pd.DataFrame:
    if users is None:
        return pd.DataFrame(index=pd.Index(seen, name="user_id"))
    users = users.set_axis(pd.Index(users.index.astype("str"), name="user_id"))
    repeated = users.index[users.index.duplicated()]
    if len(repeated):
        raise DataError(f"the users table repeats user {repeated[0]!r}")
    listed = users.index[users.index.isin(seen)]
    others = seen[~seen.isin(listed)]
    return users.reindex(pd.Index(listed.append(others), name="user_id"))
