"""Which users, items and interactions are left out of a data set before it is split, and what that removed.

Cleaning is part of what the data set is, as in the k-core data sets that are published: every interaction counts, those
included that are held out later. What it leaves is the same for every protocol, and on every node that reads the same
data.

Sources: k-core: Seidman, "Network structure and minimum degree", Social Networks 1983; on interactions as in McAuley et
al., SIGIR 2015. Sessions by pauses: Hidasi et al., "Session-based recommendations with recurrent neural networks", ICLR
2016; Quadrana et al., RecSys 2017 (30 minutes).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.schema import Dataset, LoadReport, NoInteractions
from fedrec_app.errors import ConfigError, DataError

LATEST_SECOND = 1e11
"""The year 5138: later timestamps are milliseconds."""


@dataclass(frozen=True)
class Rules:
    """What is removed; the rules are applied in this order, again and again until none removes anything.

    Attributes:
        max_interactions: users with more rows are outliers, such as bots, and go with all they did; 0: nobody does.
        session_gap: seconds; a longer pause between two rows of a user starts a session, and of each user the last
            session stays; 0: all sessions stay.
        k_core: users with fewer different items go, and items with fewer different users, which leave the catalog,
            until all that are left have so many. Of impressions, clicked ones count. 0: nothing goes. This rule alone
            looks across users.
        min_interactions: users with fewer rows go; the catalog keeps their items. From 2 on it is told as a rule.
    """

    max_interactions: int = 0
    session_gap: int = 0
    k_core: int = 0
    min_interactions: int = 1

    def __post_init__(self) -> None:
        for rule in fields(self):
            if (value := getattr(self, rule.name)) < 0:
                raise ConfigError(f"{_setting(rule.name)} is {value}: at least 0 is allowed")
        for name in ("k_core", "min_interactions"):
            if 0 < self.max_interactions < (least := getattr(self, name)):
                raise ConfigError(
                    f"data.max-interactions ({self.max_interactions}) is below {_setting(name)} ({least}): "
                    "nobody would be left"
                )

    def asked(self) -> dict[str, int]:
        """Returns the value of each rule that can remove something, by name, in the order of application."""
        values = {rule.name: int(getattr(self, rule.name)) for rule in fields(self)}
        return {name: value for name, value in values.items() if value > (name == "min_interactions")}


@dataclass(frozen=True)
class Removed:
    """What one rule removed.

    Attributes:
        value: of the rule's setting.
        counts: how many "users", "items" (of the catalog) and "interactions" (rows) went.
        rounds: how many times it went over the data and removed something.
    """

    value: int
    counts: dict[str, int]
    rounds: int = 0

    def followed_by(self, before: dict[str, int], after: dict[str, int], rounds: int) -> Removed:
        """Returns this and what went between two sizes of the data set, in so many rounds."""
        counts = {what: count + before[what] - after[what] for what, count in self.counts.items()}
        return Removed(self.value, counts, self.rounds + rounds)


@dataclass(frozen=True)
class CleaningReport(LoadReport):
    """What loading and cleaning did; `users_dropped` and `rows_dropped` are those of all rules.

    Attributes:
        before: how many "users", "items" and "interactions" were loaded.
        removed: what each rule that was asked for removed, in the order of application, by name.
    """

    before: dict[str, int] = field(default_factory=dict)
    removed: dict[str, Removed] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Returns the report for people, one fact a line; a rule that was asked for is listed whatever it removed."""
        text = LoadReport.lines(replace(self, users_dropped=0))
        for name, rule in self.removed.items():
            told = ", ".join(f"{n:,} {what} ({n / self.before[what]:.2%})" for what, n in rule.counts.items() if n)
            rounds = f"{rule.rounds} round{'s' if rule.rounds > 1 else ''}"
            told = f"{told} removed in {rounds}" if told else "nothing to remove"
            text.append(f"{_setting(name)} = {rule.value}: {told}")
        return text

    def as_dict(self) -> dict[str, Any]:
        """Returns plain numbers: "before" and "after" (users, items, interactions), and under "rules", for each rule
        that was asked for, its "value", what it removed as counts and as "share_of_...", and "rounds"."""
        rules = {
            name.replace("_", "-"): {
                "value": rule.value,
                **rule.counts,
                **{f"share_of_{what}": count / self.before[what] for what, count in rule.counts.items()},
                "rounds": rule.rounds,
            }
            for name, rule in self.removed.items()
        }
        gone = {what: sum(rule.counts[what] for rule in self.removed.values()) for what in self.before}
        after = {what: count - gone[what] for what, count in self.before.items()}
        return {"before": self.before, "after": after, "rules": rules}


def cleaning_of(dataset: Dataset) -> dict[str, Any]:
    """Returns what cleaning did to a data set, see `CleaningReport.as_dict`; empty where no rule was asked for."""
    report = dataset.report
    return report.as_dict() if isinstance(report, CleaningReport) else {}


def clean(dataset: Dataset, rules: Rules) -> Dataset:
    """Returns what the rules leave of a data set: a fixed point, so that cleaning it again removes nothing.

    Args:
        dataset: as a source loads it.
        rules: what to remove.

    Raises:
        NoInteractions: nothing would be left (the rule is named, and what went before it).
        DataError: `session_gap` meets data without timestamps in seconds.
    """
    asked = rules.asked()
    dataset = dataset.with_min_interactions(min(rules.min_interactions, 1))
    if not asked:
        return dataset
    if rules.session_gap:
        _require_seconds(dataset)
    removed = {name: Removed(value, dict.fromkeys(_size(dataset), 0)) for name, value in asked.items()}
    current, done = dataset, False
    while not done:
        done = True
        for name, value in asked.items():
            try:
                left, rounds = _RULES[name](current, value)
            except DataError as error:
                gone = dataset.report.with_nothing_left(dataset.num_users)
                text = f"{_setting(name)} = {value} leaves nothing: {error}{_story(removed)}"
                raise NoInteractions(text, gone, dataset.quarantine) from error
            if left is not current:
                removed[name] = removed[name].followed_by(_size(current), _size(left), rounds)
                current, done = left, False
    told = {part.name: getattr(current.report, part.name) for part in fields(LoadReport)}
    return replace(current, report=CleaningReport(**told, before=_size(dataset), removed=removed))


def _without_outliers(dataset: Dataset, most: int) -> tuple[Dataset, int]:
    counts = np.bincount(dataset.user_codes, minlength=dataset.num_users)
    keep = counts <= most
    if not keep.any():
        raise DataError(f"no user has at most {most} interactions: the fewest is {int(counts.min())}")
    return _restricted(dataset, keep, keep[dataset.user_codes])


def _last_sessions(dataset: Dataset, gap: int) -> tuple[Dataset, int]:
    users = dataset.user_codes
    timestamps = dataset.interactions.table["timestamp"].to_numpy()
    order = np.lexsort((timestamps, users))
    other_user = np.diff(users[order]) != 0
    session = np.cumsum(np.append(0, other_user | (np.diff(timestamps[order]) > gap)))
    ends = np.append(other_user, True)
    last = np.zeros(dataset.num_users, dtype=np.int64)
    last[users[order][ends]] = session[ends]
    rows = np.empty(len(users), dtype=np.bool_)
    rows[order] = session == last[users[order]]
    return _restricted(dataset, np.ones(dataset.num_users, dtype=np.bool_), rows)


def _core(dataset: Dataset, k: int) -> tuple[Dataset, int]:
    users, items = _pairs(dataset)
    keep_users, keep_items, rounds = _peel(users, items, dataset.num_users, dataset.num_items, k)
    if not keep_users.any():

        def is_empty(k: int) -> bool:
            return not _peel(users, items, dataset.num_users, dataset.num_items, k)[0].any()

        most = min(k, dataset.num_users + dataset.num_items)  # nobody has more
        largest = bisect_left(range(1, most), True, key=is_empty)
        raise DataError(f"there is no {k}-core: the largest is a {largest}-core")
    rows = keep_users[dataset.user_codes] & keep_items[dataset.item_codes]
    return _restricted(dataset, keep_users, rows, keep_items)[0], rounds


def _peel(
    users: NDArray[np.int64], items: NDArray[np.int64], num_users: int, num_items: int, k: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """Returns which users and which items are in the k-core of distinct pairs, and after how many rounds."""
    rounds, alive = 0, num_users + num_items
    while True:
        keep_users = np.bincount(users, minlength=num_users) >= k
        keep_items = np.bincount(items, minlength=num_items) >= k
        left = int(keep_users.sum() + keep_items.sum())
        if left == alive:
            return keep_users, keep_items, rounds
        rounds, alive = rounds + 1, left
        keep = keep_users[users] & keep_items[items]
        users, items = users[keep], items[keep]


def _pairs(dataset: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the users and items of the pairs that interact, each pair once; unclicked impressions do not."""
    users, items = dataset.user_codes, dataset.item_codes
    if not dataset.interactions.has_labels:
        return users, items
    clicked = dataset.interactions.table["label"].to_numpy() == 1
    pairs = np.unique(users[clicked] * dataset.num_items + items[clicked])
    return pairs // dataset.num_items, pairs % dataset.num_items


def _enough(dataset: Dataset, least: int) -> tuple[Dataset, int]:
    return dataset.with_min_interactions(least), 1


_RULES: dict[str, Callable[[Dataset, int], tuple[Dataset, int]]] = {
    "max_interactions": _without_outliers,
    "session_gap": _last_sessions,
    "k_core": _core,
    "min_interactions": _enough,
}


def _restricted(
    dataset: Dataset,
    users: NDArray[np.bool_],
    rows: NDArray[np.bool_],
    items: NDArray[np.bool_] | None = None,
) -> tuple[Dataset, int]:
    """Returns the data set of these users, rows and items, itself where that is all of them; and 1 round."""
    catalog = dataset.catalog
    if users.all() and rows.all() and (items is None or items.all()):
        return dataset, 0
    if items is not None and not items.all():
        kept = np.flatnonzero(items)
        catalog = Catalog(tuple(catalog.item_ids[item] for item in kept), catalog.features.iloc[kept])
    return dataset.restricted(users, rows, catalog), 1


def _require_seconds(dataset: Dataset) -> None:
    if not dataset.interactions.has_timestamps:
        raise DataError("data.session-gap needs timestamps, which this data set does not have")
    latest = dataset.interactions.table["timestamp"].to_numpy().max()
    if latest > LATEST_SECOND:
        raise DataError(
            f"data.session-gap is in seconds, which the timestamps of this data set are not (the latest is "
            f"{latest:.0f}): turn them into seconds since 1970 or dates"
        )


def _size(dataset: Dataset) -> dict[str, int]:
    return {"users": dataset.num_users, "items": dataset.num_items, "interactions": len(dataset.interactions)}


def _story(removed: dict[str, Removed]) -> str:
    told = [
        f"{_setting(name)} = {rule.value} removed {rule.counts['users']:,} users and "
        f"{rule.counts['interactions']:,} interactions"
        for name, rule in removed.items()
        if rule.rounds
    ]
    return f" (before it, {'; '.join(told)})" if told else ""


def _setting(name: str) -> str:
    return f"data.{name.replace('_', '-')}"
