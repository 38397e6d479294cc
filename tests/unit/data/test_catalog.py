import hashlib
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from fedrec_app.data.catalog import Catalog
from fedrec_app.errors import DataError

FEATURES = pd.DataFrame(
    {
        "title": ["Zoë", "Line\nbreak", None],
        "year": [1995.0, np.nan, 2001.0],
        "price": np.array([0.1, 2, 3], dtype=np.float32),
        "new": [True, False, True],
        "vector": [[1.0, 2.5], [0.0, 1.0], [3.0, 4.0]],
    }
)


def catalog() -> Catalog:
    return Catalog(("b", "a", "10"), FEATURES)


def test_hash_is_pinned() -> None:
    # nodes of other versions compare this hash with theirs: its meaning must never change
    canonical = b'["item_id",["b","a"]]\n["year",[1995,null]]\n["title",["Zo\\u00eb",null]]\n'
    features = pd.DataFrame({"year": [1995.0, np.nan], "title": ["Zo\u00eb", None]})
    assert Catalog(("b", "a"), features).hash == hashlib.sha256(canonical).hexdigest()


def test_hash_is_the_same_in_another_process() -> None:
    code = "from fedrec_app.data.catalog import Catalog; print(Catalog(('b', 'a')).hash)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == Catalog(("b", "a")).hash


@pytest.mark.parametrize(
    "other",
    [
        Catalog(("a", "b", "10"), FEATURES),
        Catalog(("b", "a", "11"), FEATURES),
        Catalog(("b", "a", "10"), FEATURES.drop(columns="year")),
        Catalog(("b", "a", "10"), FEATURES.rename(columns={"year": "age"})),
        Catalog(("b", "a", "10"), FEATURES.assign(year=[1995.0, np.nan, 2002.0])),
        Catalog(("b", "a", "10")),
    ],
)
def test_hash_changes_with_anything(other: Catalog) -> None:
    assert other.hash != catalog().hash


def test_hash_does_not_see_dtypes() -> None:
    ints, floats = pd.DataFrame({"year": [1, 2]}), pd.DataFrame({"year": [1.0, 2.0]})
    assert Catalog(("a", "b"), ints).hash == Catalog(("a", "b"), floats).hash


@pytest.mark.parametrize("name", ["items.jsonl", "items.parquet"])
def test_files_keep_everything(tmp_path, name: str) -> None:
    catalog().to_file(tmp_path / name)
    read = Catalog.from_file(tmp_path / name)
    assert read.item_ids == ("b", "a", "10")
    assert list(read.features.columns) == list(FEATURES.columns)
    assert read.hash == catalog().hash


def test_positions() -> None:
    assert catalog().position("10") == 2
    assert catalog().positions(pd.Series(["a", "b", "a"])).tolist() == [1, 0, 1]
    categories = pd.Series(pd.Categorical(["a", "b", "a"], categories=["a", "unused", "b"]))
    assert catalog().positions(categories).tolist() == [1, 0, 1]
    assert catalog().positions(["a"]).dtype == np.int64


def test_unknown_items_are_named() -> None:
    with pytest.raises(DataError, match="not among the catalog's 3 items: 'zz'"):
        catalog().positions(["a", "zz"])
    with pytest.raises(DataError, match="'zz'"):
        catalog().positions(pd.Series(pd.Categorical(["a", "zz"])))


def test_repeated_missing_and_unmatched_items_are_refused() -> None:
    with pytest.raises(DataError, match="repeats 'a'"):
        Catalog(("a", "b", "a"))
    with pytest.raises(DataError, match="no items"):
        Catalog(())
    with pytest.raises(DataError, match="2 items but 3 rows"):
        Catalog(("a", "b"), FEATURES)


def test_broken_files_are_named_with_the_line(tmp_path) -> None:
    path = tmp_path / "items.jsonl"
    with pytest.raises(DataError, match="no catalog file"):
        Catalog.from_file(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        Catalog.from_file(path)
    path.write_text('{"item_id": "a"}\n{"item_id"\n')
    with pytest.raises(DataError, match="line 2 is not JSON"):
        Catalog.from_file(path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="line 1 is not JSON"):
        Catalog.from_file(path)
    path.write_bytes(b'{"item_id": "\xff"}\n')
    with pytest.raises(DataError, match="is not UTF-8 text"):
        Catalog.from_file(path)
    path.write_text(json.dumps({"item_id": "a"}) + "\n" + json.dumps({"id": "b"}) + "\n")
    with pytest.raises(DataError, match=r"line 2 .* 'item_id'"):
        Catalog.from_file(path)
    path.write_text('{"item_id": "a"}\n{"item_id": null}\n')
    with pytest.raises(DataError, match="item 2 has no item_id"):
        Catalog.from_file(path)
    bad = tmp_path / "items.parquet"
    bad.write_text("not parquet")
    with pytest.raises(DataError, match="not a Parquet file"):
        Catalog.from_file(bad)
