"""The kit of data sets: built-in sources pass it, and planted faults are found, each by the check meant for it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import fedrec_app.conformance
import fedrec_app.testing
from fedrec_app.conformance import ConformanceError
from fedrec_app.data import sources
from fedrec_app.data.sources.base import DataSource
from fedrec_app.testing.datasets import BASIC, CHECKS, DataCase, run_all
from tests.conformance import dataset_faults as faults

SMALL = {"num_users": 40, "num_items": 60, "mean_interactions": 15, "min_interactions": 5}
ROWS = """user_id,item_id,rating,timestamp
a,9,4,100
a,10,2,200
a,9,5,300
a,x,3,50
bb,10,1,2020-01-01
bb,9,,60
bb,x,2,70
bb,y,2,80
,x,2,90
a,,2,90
ccc,y,1,10
ccc,x,1,soon
ccc,10,1,30
"""
"""Three users; a repeat, two rows without an id, one without a rating and one without a time."""

FAULTS: dict[type[DataSource[Any]], tuple[set[str], str]] = {
    faults.HasNoSummary: ({"description"}, r"given `summary`: it is '', not a text"),
    faults.TakesAnyOption: ({"options"}, r"given the option no_such_option: it was accepted"),
    faults.SamplesUnseeded: ({"deterministic"}, r"given two loads: "),
    faults.SeedsTheWorld: ({"deterministic"}, r"given a load: it draws from the global generator of numpy, or"),
    faults.ListsItemsInAnotherOrder: ({"catalog"}, r"beside that of the whole data set: item 0 is 'y', not '10'"),
    faults.NumbersItsItems: ({"catalog", "interactions"}, r"given the item ids: 0 is no text"),
    faults.CountsMilliseconds: ({"interactions"}, r"the latest is 1577836800000: are they milliseconds\?"),
    faults.SkipsValidation: ({"interactions"}, r"to validation: it merges 2 rows of the same user and item"),
    faults.KeepsRatingsWide: ({"interactions"}, r"given column 'rating': it is float64, not float32"),
    faults.LosesWhatWasSetAside: ({"counts"}, r"the report's quarantined: it says 4, the rows set aside 0"),
    faults.DropsRowsSilently: ({"counts"}, r"the report's duplicates_merged: it says 0, the interactions 1"),
    faults.NumbersItsColumns: ({"partitions"}, r"ConfigError: unknown user attribute '0'"),
    faults.LetsErrorsThrough: (
        {"unreadable_path"},
        r"nothing there, load\(\): FileNotFoundError in place of a DataErr",
    ),
    faults.HidesThePath: ({"unreadable_path"}, r"the error does not name it: the file cannot be read"),
    faults.IgnoresItsColumns: ({"columns"}, r"columns 'user_id=no_such_column': it was accepted"),
}
Make = Callable[[str], DataCase]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    file = tmp_path / "shop.csv"
    file.write_text(ROWS)
    return file


def csv_case(file: Path, columns: str = "", **options: str) -> DataCase:
    return DataCase(type(sources.resolve("csv")), str(file), columns, options)


def renamed(file: Path) -> DataCase:
    text = file.read_text().replace("user_id,item_id,rating", "who,what,stars", 1).replace(",", ";")
    other = file.with_name("renamed.csv")
    other.write_text(text)
    return csv_case(other, "user_id=who,item_id=what,rating=stars", separator=";")


def with_side_tables(file: Path) -> DataCase:
    file.with_name("items.jsonl").write_text('{"item_id": "x", "year": 1990.0}\n{"item_id": "9"}\n{"item_id": "new"}\n')
    file.with_name("users.csv").write_text("user_id,region,age\nbb,north,3\na,,4\nnobody,south,5\n")
    file.with_name("friends.csv").write_text("user_id,friend_id\na,bb\na,nobody\n")
    return csv_case(file, catalog="items.jsonl", users="users.csv", friends="friends.csv")


def in_parquet(file: Path) -> DataCase:
    table = pd.read_csv(file, dtype="str").assign(label=1, context_hour=3.5, context_device="tv")
    table.to_parquet(file.with_suffix(".parquet"))
    return csv_case(file.with_suffix(".parquet"))


CSV: dict[str, Callable[[Path], DataCase]] = {
    "plain": csv_case,
    "renamed": renamed,
    "side tables": with_side_tables,
    "parquet": in_parquet,
}


@pytest.mark.parametrize("name", CSV)
def test_csv_conforms(shop: Path, name: str) -> None:
    report = run_all(CSV[name](shop))
    assert report.passed, str(report)
    assert list(report.results) == list(CHECKS)


@pytest.mark.parametrize("options", [{}, {"labels": True}, {"data_seed": 5, "friends_per_user": 0}], ids=str)
def test_synthetic_conforms(options: dict[str, Any]) -> None:
    report = run_all(DataCase(type(sources.resolve("synthetic")), options={**SMALL, **options}))
    assert report.passed, str(report)
    assert set(CHECKS) - set(report.results) == {"unreadable_path", "columns"}


@pytest.mark.parametrize("name", ["ml-100k", "amazon-video", "lastfm-2k"])
def test_data_sets_with_a_layout_of_their_own_conform(request: pytest.FixtureRequest, name: str) -> None:
    folder = request.getfixturevalue(name.replace("-", "_"))
    report = run_all(DataCase(type(sources.resolve(name)), str(folder)))
    assert report.passed, str(report)
    assert set(CHECKS) - set(report.results) == {"columns"}


def test_every_built_in_data_set_is_tried() -> None:
    assert set(sources.BUILT_IN) == {"csv", "synthetic", "ml-100k", "amazon-video", "lastfm-2k"}


def test_the_plain_source_that_faults_are_planted_in_conforms(shop: Path) -> None:
    report = run_all(DataCase(faults.Shop, str(shop)))
    assert report.passed, str(report)
    assert list(report.results) == list(CHECKS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found_by_its_check_alone(fault: type[DataSource[Any]], shop: Path) -> None:
    checks, message = FAULTS[fault]
    case = DataCase(fault, str(shop))
    report = run_all(case)
    assert set(report.failed) == checks, str(report)
    assert bool(report.not_run) == bool(checks & set(BASIC))
    assert re.search(message, next(iter(report.failed.values()))), str(report)
    for check in checks:
        with pytest.raises(ConformanceError) as caught:
            CHECKS[check](case)
        assert caught.value.check == check


def test_every_check_finds_a_planted_fault() -> None:
    assert {check for checks, _ in FAULTS.values() for check in checks} == set(CHECKS)


def test_a_source_that_reads_no_path_is_told_to_say_so(tmp_path: Path) -> None:
    class Generated(faults.Shop):
        def read(self, path: str, columns: str) -> pd.DataFrame:
            return pd.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["x", "y", "x"]})

    report = run_all(DataCase(Generated))
    assert "takes_path = False" in report.failed["unreadable_path"]


def test_the_kits_need_no_pytest() -> None:
    files = [Path(fedrec_app.conformance.__file__), *Path(fedrec_app.testing.__path__[0]).glob("*.py")]
    assert len(files) > 5
    for path in files:
        imports = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in imports for alias in node.names}
        names |= {str(getattr(node, "module", "")) for node in imports}
        assert not any(name.startswith(("pytest", "_pytest", "tests")) for name in names), path
