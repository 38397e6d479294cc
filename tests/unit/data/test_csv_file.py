from pathlib import Path

import pandas as pd
import pytest

from fedrec_app.data import sources
from fedrec_app.data.sources.csv_file import parse_columns
from fedrec_app.errors import ConfigError, DataError


def write(folder: Path, text: str, name: str = "films.csv") -> str:
    path = folder / name
    path.write_bytes(text.encode())
    return str(path)


def test_exactly_the_planted_bad_rows_are_set_aside(tmp_path) -> None:
    path = write(
        tmp_path,
        "user_id,item_id,rating,timestamp,note\n"
        "u1,i1,4,100,ok\n"
        ",i1,4,100,no user\n"
        "u1,,4,100,no item\n"
        "\n"
        "u1,i2,nan,100,\n"
        "u1,i3,inf,100,\n"
        "u2,i1,4,soon,\n"
        "u2,i2,,100,\n"
        "u2,i3,5,200,ok\n"
        "u2,i4\n"
        "u2,i3,1,300,repeated\n"
        "NA,nan,5,1e2,ids that look like missing values\n",
    )
    data = sources.load("csv", path)
    table = data.interactions.table
    assert table.to_numpy().tolist() == [
        ["u1", "i1", 4.0, 100.0],
        ["u2", "i3", 1.0, 200.0],
        ["NA", "nan", 5.0, 100.0],
    ]
    assert data.quarantine.rows["line"].tolist() == [3, 4, 6, 7, 8, 9, 11]
    assert data.report.quarantined == {
        "item_id is missing": 1,
        "rating is not a finite number": 4,
        "timestamp is not a finite number of seconds or an ISO 8601 date": 1,
        "user_id is missing": 1,
    }
    assert (data.report.rows_read, data.report.rows_kept, data.report.duplicates_merged) == (11, 3, 1)
    data.quarantine.write(tmp_path / "bad.csv")
    written = (tmp_path / "bad.csv").read_text().splitlines()
    assert written[0] == "line,reason,user_id,item_id,rating,timestamp"
    assert written[5] == "8,timestamp is not a finite number of seconds or an ISO 8601 date,u2,i1,4,soon"


def test_lines_are_right_after_quoted_breaks_and_rows_with_too_many_fields(tmp_path) -> None:
    path = write(
        tmp_path,
        'user_id,item_id,rating\r\n"u\n1",i1,1\r\nu2,i1,2,surplus\r\n,i2,3\r\n\r\nu3,"i,3",4\r\n',
    )
    data = sources.load("csv", path)
    assert data.interactions.table.to_numpy().tolist() == [["u\n1", "i1", 1.0], ["u3", "i,3", 4.0]]
    found = data.quarantine.rows[["line", "reason"]].to_numpy().tolist()
    assert found == [[4, "more than 3 fields"], [5, "user_id is missing"]]
    assert data.report.rows_read == 4


def test_a_mapping_takes_columns_of_any_name_and_no_others(tmp_path) -> None:
    path = write(tmp_path, "who,film,item_id,rating,ts\n07,f1,x,5,10\n07,f2,y,3,20\n")
    data = sources.load("csv", path, "user_id=who, item_id=film,timestamp=ts")
    assert data.interactions.table.to_numpy().tolist() == [["07", "f1", 5.0, 10.0], ["07", "f2", 3.0, 20.0]]


def test_missing_columns_are_named_with_the_nearest_and_never_guessed(tmp_path) -> None:
    path = write(tmp_path, "user,itemid,rating\na,b,1\n")
    with pytest.raises(DataError, match=r"no column 'user_id': it has user, itemid, rating; .*'user_id=user'"):
        sources.load("csv", path)
    with pytest.raises(DataError, match=r"no column 'item_id': .*'item_id=itemid'"):
        sources.load("csv", path, "user_id=user")
    with pytest.raises(DataError, match=r"no column 'usr' for user_id: it has .* \(did you mean 'user'\?\)"):
        sources.load("csv", path, "user_id=usr")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id", "is not name=column"),
        ("=a", "is not name=column"),
        ("user_id=", "is not name=column"),
        ("usr_id=a", r"unknown column 'usr_id'.*did you mean 'user_id'"),
        ("user_id=a,user_id=b", "gives 'user_id' twice"),
    ],
)
def test_a_wrong_mapping_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_columns(text)


def test_mapping_is_parsed() -> None:
    assert parse_columns("") == {}
    assert parse_columns("user_id=a,context_hour=h") == {"user_id": "a", "context_hour": "h"}


def test_header_only_doubled_columns_and_binary_are_errors(tmp_path) -> None:
    with pytest.raises(DataError, match="has a header but no rows"):
        sources.load("csv", write(tmp_path, "user_id,item_id\n"))
    with pytest.raises(DataError, match="two columns 'user_id'"):
        sources.load("csv", write(tmp_path, "user_id,item_id,user_id\na,b,c\n"))
    with pytest.raises(DataError, match="the first line must name the columns"):
        sources.load("csv", write(tmp_path, "\nuser_id,item_id\n"))
    (tmp_path / "films.csv").write_bytes(b"user_id,item_id\n\xff\xfe,b\n")
    with pytest.raises(DataError, match="is not utf-8"):
        sources.load("csv", str(tmp_path / "films.csv"))


def test_byte_order_mark_tabs_and_spaces_are_understood(tmp_path) -> None:
    path = write(tmp_path, "\ufeffuser_id\titem_id\na\tb c\n", "films.tsv")
    assert sources.load("csv", path).catalog.item_ids == ("b c",)
    path = write(tmp_path, "user_id; item_id\na; b\n")
    assert sources.load("csv", path, options='{"separator": ";"}').catalog.item_ids == ("b",)


def test_parquet_gives_what_csv_gives(tmp_path) -> None:
    table = pd.DataFrame(
        {"user_id": [1, 2, 2], "item_id": ["x", "y", None], "timestamp": pd.to_datetime([5, 6, 7], unit="s")}
    )
    table.to_parquet(tmp_path / "films.parquet")
    data = sources.load("csv", str(tmp_path / "films.parquet"))
    assert data.interactions.table.to_numpy().tolist() == [["1", "x", 5.0], ["2", "y", 6.0]]
    assert data.quarantine.rows["line"].tolist() == [3]
    (tmp_path / "films.parquet").write_text("user_id,item_id\n")
    with pytest.raises(DataError, match="not a Parquet file"):
        sources.load("csv", str(tmp_path / "films.parquet"))


def test_side_files_bring_items_users_and_friends(tmp_path) -> None:
    path = write(tmp_path, "user_id,item_id\na,x\nb,y\nb,ghost\n")
    write(tmp_path, "item_id,title\ny,Why\nx,Ex\nz,Zed\n", "items.csv")
    write(tmp_path, "user_id,region\nb,north\na,south\n", "users.csv")
    write(tmp_path, "user_id,friend_id\na,b\n", "friends.csv")
    options = '{"catalog": "items.csv", "users": "users.csv", "friends": "friends.csv"}'
    data = sources.load("csv", path, options=options)
    assert data.catalog.item_ids == ("y", "x", "z")
    assert data.users["region"].to_dict() == {"b": "north", "a": "south"}
    assert data.friends is not None
    assert data.friends.to_numpy().tolist() == [["a", "b"]]
    assert data.quarantine.counts == {"item_id is not in the catalog": 1}
    data.catalog.to_file(tmp_path / "items.jsonl")
    # a server has the catalog and no interactions
    (tmp_path / "films.csv").unlink()
    assert sources.load_catalog("csv", str(tmp_path), options='{"catalog": "items.jsonl"}').hash == data.catalog.hash
    with pytest.raises(DataError, match=r"there is no file .*gone\.csv"):
        sources.load_catalog("csv", path, options='{"catalog": "gone.csv"}')


def test_without_an_item_file_the_catalog_is_sorted_and_older_than_the_filter(tmp_path) -> None:
    path = write(tmp_path, "user_id,item_id\na,z\na,y\nb,x\n")
    data = sources.load("csv", path, min_interactions=2)
    assert data.catalog.item_ids == ("x", "y", "z")
    assert data.users.index.tolist() == ["a"]
    assert sources.load_catalog("csv", path).hash == data.catalog.hash
