"""Interactions that come after a data set was written: feedback of a node's users."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.schema import Dataset, Quarantine

CATALOG = Catalog.of_ids(["a", "b", "c", "d"])


def dataset(**columns: list) -> Dataset:
    raw = {"user_id": ["u1", "u1", "u2"], "item_id": ["a", "b", "a"], "timestamp": [1.0, 2.0, 3.0], **columns}
    return Dataset.assemble(pd.DataFrame(raw), catalog=CATALOG)


def events(*rows: tuple[str, str, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])


def pairs(found: Dataset) -> list[tuple[str, str]]:
    table = found.interactions.table
    return list(zip(table["user_id"].astype(str), table["item_id"].astype(str), strict=True))


def adds_up(found: Dataset) -> bool:
    report = found.report
    return report.rows_read == report.rows_kept + sum(report.quarantined.values()) + report.duplicates_merged


def test_new_events_users_and_unknown_items() -> None:
    more = events(("u2", "c", np.nan, 9.0), ("u3", "d", np.nan, 9.0), ("u3", "of another shop", np.nan, 9.0))
    found = dataset().followed_by(more, np.array([7, 8, 9]))
    assert pairs(found) == [("u1", "a"), ("u1", "b"), ("u2", "a"), ("u2", "c"), ("u3", "d")]
    assert list(found.users.index) == ["u1", "u2", "u3"]
    assert found.catalog.hash == CATALOG.hash
    assert found.report.quarantined == {"item_id is not in the catalog": 1}
    assert found.quarantine.rows["line"].tolist() == [9]
    assert adds_up(found)


def test_the_same_pair_again_is_one_row_as_within_a_file() -> None:
    found = dataset().followed_by(events(("u1", "a", np.nan, 9.0), ("u1", "c", np.nan, 9.0), ("u1", "c", np.nan, 10.0)))
    assert pairs(found) == [("u1", "a"), ("u1", "b"), ("u2", "a"), ("u1", "c")]
    assert found.interactions.table["timestamp"].tolist() == [1.0, 2.0, 3.0, 9.0]
    assert found.report.duplicates_merged == 2
    assert adds_up(found)


def test_a_rating_stays_where_every_event_has_one() -> None:
    rated = dataset(rating=[3.0, 4.0, 5.0])
    with_ratings = rated.followed_by(events(("u1", "c", 2.0, 9.0)))
    assert with_ratings.interactions.table["rating"].tolist() == [3.0, 4.0, 5.0, 2.0]
    without = rated.followed_by(events(("u1", "c", 2.0, 9.0), ("u1", "d", np.nan, 9.0)))
    assert "rating" not in without.interactions.table
    assert len(without.interactions) == 5


def test_events_are_clicks_where_the_data_has_impressions() -> None:
    found = dataset(label=[1, 0, 1]).followed_by(events(("u1", "b", np.nan, 9.0)))
    assert found.interactions.table["label"].tolist() == [1, 0, 1, 1]


def test_nobody_and_then_somebody() -> None:
    nobody = Dataset.empty(CATALOG, dataset().report, Quarantine())
    assert (nobody.num_users, len(nobody.interactions), nobody.num_items) == (0, 0, 4)
    assert pairs(nobody.followed_by(events(("u9", "d", np.nan, 1.0)))) == [("u9", "d")]
    still_nobody = nobody.followed_by(events(("u9", "of another shop", np.nan, 1.0)))
    assert still_nobody.num_users == 0
    assert still_nobody.report.quarantined == {"item_id is not in the catalog": 1}
