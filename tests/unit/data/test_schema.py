import numpy as np
import pandas as pd
import pytest

from fedrec_app.data.schema import Catalog, Dataset, Interactions
from fedrec_app.errors import DataError


def raw(**columns: list) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_quarantine_holds_exactly_the_bad_rows_with_line_and_reason() -> None:
    table = raw(
        user_id=["a", None, "b", "c", "", "d", "e", "f", "g"],
        item_id=["x", "x", "  ", "y", "x", "z", "x", "y", "w"],
        rating=["1", "2", "3", "nan", "4", "inf", "five", "5", "4"],
        timestamp=[1.0, 2, 3, 4, 5, 6, 7, np.nan, 9],
    )
    interactions, quarantine = Interactions.validate(table, lines=np.arange(10, 19))
    assert interactions.table["user_id"].tolist() == ["a", "g"]
    assert list(zip(quarantine.rows["line"], quarantine.rows["reason"], strict=True)) == [
        (11, "user_id is missing"),
        (12, "item_id is missing"),
        (13, "rating is not a finite number"),
        (14, "user_id is missing"),
        (15, "rating is not a finite number"),
        (16, "rating is not a finite number"),
        (17, "timestamp is not a finite number of seconds or an ISO 8601 date"),
    ]
    assert quarantine.counts == {
        "item_id is missing": 1,
        "rating is not a finite number": 3,
        "timestamp is not a finite number of seconds or an ISO 8601 date": 1,
        "user_id is missing": 2,
    }


def test_quarantine_writes_line_reason_and_raw_values(tmp_path) -> None:
    _, quarantine = Interactions.validate(raw(user_id=["a", "b"], item_id=["x", "y"], rating=["3", "bad"]))
    quarantine.write(tmp_path / "q.csv")
    assert (
        tmp_path / "q.csv"
    ).read_text() == "line,reason,user_id,item_id,rating\n2,rating is not a finite number,b,y,bad\n"


def test_columns_get_their_final_types() -> None:
    table, _ = Interactions.validate(
        raw(
            user_id=[1, 2],
            item_id=[3.0, 4.0],
            rating=[1, 2],
            timestamp=[5, 6],
            context_hour=[7, 8],
            context_tv=["y", "n"],
        )
    )
    table = table.table
    assert table["user_id"].tolist() == ["1", "2"]
    assert table["item_id"].tolist() == ["3", "4"]
    kinds = {name: str(kind) for name, kind in table.dtypes.items()}
    assert kinds == {
        "user_id": "category",
        "item_id": "category",
        "rating": "float32",
        "timestamp": "float64",
        "context_hour": "float32",
        "context_tv": "category",
    }
    assert pd.api.types.is_string_dtype(table["user_id"].cat.categories)


def test_integer_ids_keep_their_text_when_another_row_has_none() -> None:
    interactions, quarantine = Interactions.validate(raw(user_id=[7, None, 8], item_id=["x", "x", "x"]))
    assert interactions.table["user_id"].tolist() == ["7", "8"]
    assert quarantine.rows["line"].tolist() == [2]


def test_duplicates_keep_the_earliest_time_and_place_and_the_last_rating() -> None:
    interactions, quarantine = Interactions.validate(
        raw(
            user_id=["a", "b", "a", "a", "b"],
            item_id=["x", "x", "y", "x", "x"],
            rating=[1, 2, 3, 4, 5],
            timestamp=[20, 30, 25, 10, 30],
        )
    )
    kept = interactions.table
    assert interactions.duplicates_merged == 2
    assert len(quarantine) == 0
    assert kept[["user_id", "item_id"]].to_numpy().tolist() == [["b", "x"], ["a", "y"], ["a", "x"]]
    assert kept["timestamp"].tolist() == [30, 25, 10]
    # b's rows have one time: the later line is the later rating; a's later time is the earlier line
    assert kept["rating"].tolist() == [5, 3, 1]


def test_impressions_may_repeat() -> None:
    interactions, quarantine = Interactions.validate(
        raw(user_id=["a", "a", "a"], item_id=["x", "x", "x"], label=[0, 1, 2], context_hour=[1.0, 2.0, 3.0])
    )
    assert interactions.table["label"].tolist() == [0, 1]
    assert interactions.table["label"].dtype == np.int8
    assert quarantine.counts == {"label is not 0 or 1": 1}
    assert interactions.duplicates_merged == 0


def test_context_without_a_number_is_set_aside() -> None:
    _, quarantine = Interactions.validate(raw(user_id=["a", "b"], item_id=["x", "x"], context_hour=[1.0, np.nan]))
    assert quarantine.counts == {"context_hour is not a finite number": 1}


@pytest.mark.parametrize("text", ["2024-01-01", "2024-01-01T00:00:00Z", "2024-01-01 01:00:00+01:00", "1704067200"])
def test_dates_become_seconds(text: str) -> None:
    interactions, _ = Interactions.validate(raw(user_id=["a"], item_id=["x"], timestamp=[text]))
    assert interactions.table["timestamp"].tolist() == [1704067200.0]


@pytest.mark.parametrize("text", ["today", "now", "yesterday", "2024-13-01", ""])
def test_what_is_no_date_is_set_aside(text: str) -> None:
    interactions, quarantine = Interactions.validate(raw(user_id=["a"], item_id=["x"], timestamp=[text]))
    assert (len(interactions), len(quarantine)) == (0, 1)


def test_a_rating_too_large_for_float32_is_not_finite() -> None:
    assert len(Interactions.validate(raw(user_id=["a"], item_id=["x"], rating=[1e300]))[1]) == 1


def test_missing_column_is_named() -> None:
    with pytest.raises(DataError, match="no column 'item_id': there are user_id, film"):
        Interactions.validate(raw(user_id=["a"], film=["x"]))


def dataset(**kwargs) -> Dataset:
    table = raw(
        user_id=["b", "a", "b", "b", "a", "c", "b", "a"],
        item_id=["y", "x", "x", "z", "z", "w", "y", ""],
    )
    return Dataset.assemble(table, **kwargs)


def test_codes_are_positions_in_users_and_catalog() -> None:
    data = dataset()
    assert data.users.index.tolist() == ["b", "a", "c"]
    assert data.catalog.item_ids == ("w", "x", "y", "z")
    assert data.user_codes.tolist() == [0, 1, 0, 0, 1, 2]
    assert data.item_codes.tolist() == [2, 1, 1, 3, 3, 0]


def test_min_interactions_drops_users_but_no_items_and_counts_everything() -> None:
    data = dataset().with_min_interactions(2)
    assert data.users.index.tolist() == ["b", "a"]
    assert data.catalog.item_ids == ("w", "x", "y", "z")
    assert data.user_codes.tolist() == [0, 1, 0, 0, 1]
    report = data.report
    assert (report.rows_read, report.rows_kept, report.duplicates_merged) == (8, 5, 1)
    assert (report.users_dropped, report.rows_dropped) == (1, 1)
    assert report.rows_read == (
        report.rows_kept + sum(report.quarantined.values()) + report.duplicates_merged + report.rows_dropped
    )
    assert report.lines() == [
        "5 of 8 rows kept",
        "1 rows set aside: item_id is missing",
        "1 repeated rows of the same user and item merged",
        "1 users with too few interactions dropped (1 rows)",
    ]


def test_no_user_left_is_an_error() -> None:
    with pytest.raises(DataError, match="no user has 4 interactions: the most is 3"):
        dataset().with_min_interactions(4)


def test_items_outside_the_catalog_are_set_aside() -> None:
    data = dataset(catalog=Catalog(("z", "unseen", "x", "y")))
    assert data.quarantine.counts == {"item_id is missing": 1, "item_id is not in the catalog": 1}
    assert data.item_codes.tolist() == [3, 2, 2, 0, 0]
    assert data.users.index.tolist() == ["b", "a"]


def test_users_come_in_the_order_of_their_table_and_friends_stay_inside() -> None:
    users = pd.DataFrame({"age": [1, 2, 3]}, index=["a", "nobody", "b"])
    friends = raw(user_id=["a", "a", "nobody", "b", "a", "b"], friend_id=["b", "c", "a", "b", "b", "a"])
    data = dataset(users=users, friends=friends)
    assert data.users.index.tolist() == ["a", "b", "c"]
    assert data.users["age"].tolist()[:2] == [1, 3]
    assert data.user_codes.tolist() == [1, 0, 1, 1, 0, 2]
    assert data.friends is not None
    assert data.friends.to_numpy().tolist() == [["a", "b"], ["a", "c"], ["b", "a"]]
    kept = data.with_min_interactions(2).friends
    assert kept is not None
    assert kept.to_numpy().tolist() == [["a", "b"], ["b", "a"]]


def test_no_usable_row_is_an_error_that_says_why() -> None:
    with pytest.raises(DataError, match="no usable interaction in 2 rows: 2 x user_id is missing"):
        Dataset.assemble(raw(user_id=["", None], item_id=["x", "y"]))


def test_one_user_and_one_item_make_a_data_set() -> None:
    data = Dataset.assemble(raw(user_id=["a"], item_id=["x"]))
    assert (data.num_users, data.num_items, len(data.interactions)) == (1, 1, 1)


def test_a_user_listed_twice_is_an_error() -> None:
    with pytest.raises(DataError, match="repeats user 'a'"):
        dataset(users=pd.DataFrame({"age": [1, 2]}, index=["a", "a"]))


def test_unknown_interaction_columns_are_refused() -> None:
    table = pd.DataFrame({"user_id": pd.Categorical(["a"]), "item_id": pd.Categorical(["x"]), "price": [1.0]})
    with pytest.raises(DataError, match="price"):
        Interactions(table)
