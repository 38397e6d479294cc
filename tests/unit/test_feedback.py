"""New events on a node: what is taken, what is refused, and what a killed writer leaves behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.extended import extend_file, extended
from fedrec_app.data.feedback import FILE, TORN, Feedback
from fedrec_app.errors import DataError, StateError


def events(*pairs: tuple[str, str], **columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({"user_id": [user for user, _ in pairs], "item_id": [item for _, item in pairs], **columns})


def test_events_come_back_in_the_order_in_which_they_were_added(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    assert feedback.count() == 0
    assert not list(tmp_path.iterdir())  # whoever only asks leaves nothing behind
    assert feedback.append(events(("u1", "i1"), ("u2", "i2"), rating=[4, ""], timestamp=[10.5, 11])) == 2
    assert feedback.append(events(("u1", "é"), timestamp=["1970-01-02T00:00:00Z"])) == 3
    found = Feedback(tmp_path).rows(3)
    assert found[["line", "user_id", "item_id", "timestamp"]].to_numpy().tolist() == [
        [1, "u1", "i1", 10.5], [2, "u2", "i2", 11.0], [3, "u1", "é", 86400.0],
    ]  # fmt: skip
    np.testing.assert_array_equal(found["rating"], [4.0, np.nan, np.nan])
    assert Feedback(tmp_path).rows(1)["user_id"].tolist() == ["u1"]
    assert os.stat(tmp_path / FILE).st_mode & 0o077 == 0  # what users did is nobody else's business


def test_more_events_than_there_are_cannot_be_asked_for(tmp_path: Path) -> None:
    Feedback(tmp_path).append(events(("u", "i")))
    with pytest.raises(StateError, match="has 1 events, 2 are expected: it was cut or replaced"):
        Feedback(tmp_path).rows(2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (events(("u", "i"), ("", "i")), "line 2: user_id '' is missing \\(1 such events\\); nothing was added"),
        (events(("u", "i" * 257)), "line 1: item_id 'i.* is not 1 to 256 printable characters"),
        (events(("u", "a\nb")), "item_id 'a.nb' is not 1 to 256 printable"),
        (
            pd.DataFrame({"user_id": ["u"], "item_id": ["\ud800"]}, dtype="object"),
            "a item_id is no text that UTF-8 can hold",
        ),
        (events(("u", "i"), rating=["good"]), "rating 'good' is not a finite number"),
        (events(("u", "i"), rating=[float("inf")]), "rating 'inf' is not a finite number"),
        (events(("u", "i"), rating=[1e300]), "rating '1e\\+300' is not a finite number"),
        (events(("u", "i"), timestamp=["yesterday"]), "timestamp 'yesterday' is neither"),
        (events(("u", "i"), timestamp=[1_700_000_000_000]), "timestamp '1700000000000' is neither seconds"),
        (events(("u", "i"), timestamp=[float("nan")]), "timestamp 'nan' is neither"),
        (pd.DataFrame({"user": ["u"], "item_id": ["i"]}), "no column 'user_id': there are user, item_id"),
        (events(), "0 events: 1 to 1,000,000 at a time"),
    ],
)
def test_one_bad_event_adds_nothing(tmp_path: Path, bad: pd.DataFrame, message: str) -> None:
    feedback = Feedback(tmp_path)
    feedback.append(events(("u", "i")))
    with pytest.raises(DataError, match=message):
        feedback.append(bad)
    assert feedback.count() == 1


def test_what_a_killed_writer_left_is_never_counted_and_kept_elsewhere(tmp_path: Path) -> None:
    """At every byte of a call of three events."""
    feedback = Feedback(tmp_path)
    feedback.append(events(("u", "first"), timestamp=[1]))
    first = (tmp_path / FILE).read_bytes()
    feedback.append(events(("u", "a"), ("u", "b"), ("u", "c"), timestamp=[2, 3, 4]))
    whole = (tmp_path / FILE).read_bytes()
    for length in range(len(first) + 1, len(whole)):
        (tmp_path / FILE).write_bytes(whole[:length])
        (tmp_path / TORN).unlink(missing_ok=True)
        assert feedback.count() == 1, length
        assert feedback.append(events(("u", "next"), timestamp=[5])) == 2
        assert feedback.rows(2)["item_id"].tolist() == ["first", "next"]
        torn = whole[len(first) : length]
        assert feedback.torn == torn.count(b"\n") + (not torn.endswith(b"\n"))
        assert (tmp_path / TORN).read_bytes().rstrip(b"\n") == torn.rstrip(b"\n")
    (tmp_path / FILE).write_bytes(whole)
    assert feedback.count() == 4


@pytest.mark.parametrize(
    "damage", [b"nonsense", b"[1]", b'{"user_id":3,"item_id":"i","left":0}', b"[" * 100_000, b"\xff"]
)
def test_a_damaged_line_keeps_its_place_and_has_no_ids(tmp_path: Path, damage: bytes) -> None:
    feedback = Feedback(tmp_path)
    feedback.append(events(("u", "a"), timestamp=[1]))
    with (tmp_path / FILE).open("ab") as stream:
        stream.write(damage + b"\n")
    assert feedback.count() == 2
    feedback.append(events(("u", "b"), timestamp=[2]))
    found = feedback.rows(3)
    assert feedback.torn == 0
    assert found["item_id"].isna().tolist() == [False, True, False]
    assert found["line"].tolist() == [1, 2, 3]


def _append_some(folder: Path, writer: int) -> None:
    for number in range(20):
        Feedback(folder).append(events((f"u{writer}", f"i{number}"), (f"u{writer}", f"j{number}")))


def test_several_writers_lose_nothing_and_tear_nothing_apart(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_some, args=(tmp_path, n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = Feedback(tmp_path).rows(120)
    assert not (tmp_path / TORN).exists()
    for n in range(3):
        mine = found.loc[found["user_id"] == f"u{n}", "item_id"].tolist()
        assert mine == [f"{kind}{number}" for number in range(20) for kind in "ij"]
    assert (found["user_id"].to_numpy()[::2] == found["user_id"].to_numpy()[1::2]).all()  # calls stay together


def test_a_writer_and_a_reader_wait_for_who_writes(tmp_path: Path) -> None:
    Feedback(tmp_path).append(events(("u", "a")))
    done: list[int] = []
    with FileLock(tmp_path / f"{FILE}.lock"):
        waiting = [
            threading.Thread(target=lambda: done.append(Feedback(tmp_path).append(events(("u", "b"))))),
            threading.Thread(target=lambda: done.append(Feedback(tmp_path).count())),
        ]
        for thread in waiting:
            thread.start()
            thread.join(0.1)
        assert done == []
    for thread in waiting:
        thread.join(20)
    assert len(done) == 2
    assert Feedback(tmp_path).count() == 2


def test_new_items_go_to_the_end_of_a_catalog(tmp_path: Path) -> None:
    before = Catalog(("a", "b"), pd.DataFrame({"title": ["A", "B"], "year": [1990, 2000]}))
    before.to_file(tmp_path / "catalog.jsonl")
    (tmp_path / "new.csv").write_text("item_id,title\n007,Seven\nz,Zed\n")
    assert extend_file(tmp_path / "catalog.jsonl", tmp_path / "new.csv", tmp_path / "out.jsonl") == (4, 2)
    after = Catalog.from_file(tmp_path / "out.jsonl")
    assert after.item_ids == ("a", "b", "007", "z")
    assert after.features["title"].tolist() == ["A", "B", "Seven", "Zed"]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[0] == {"item_id": "a", "title": "A", "year": 1990}  # old items stay what they were
    assert lines[2] == {"item_id": "007", "title": "Seven", "year": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog.jsonl", "new.csv", "out.jsonl"]


def test_a_catalog_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Catalog(("a",)).to_file(tmp_path / "catalog.jsonl")
    Catalog(("b",)).to_file(tmp_path / "new.jsonl")
    before = (tmp_path / "catalog.jsonl").read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"cannot write .*catalog\.jsonl: no space left"):
        extend_file(tmp_path / "catalog.jsonl", tmp_path / "new.jsonl", tmp_path / "catalog.jsonl")
    assert (tmp_path / "catalog.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog.jsonl", "new.jsonl"]


def test_a_catalog_in_parquet_grows_as_well(tmp_path: Path) -> None:
    Catalog(("a",)).to_file(tmp_path / "new.jsonl")
    Catalog(("b",)).to_file(tmp_path / "catalog.parquet")
    (tmp_path / "catalog.parquet").chmod(0o640)
    assert extend_file(tmp_path / "catalog.parquet", tmp_path / "new.jsonl", tmp_path / "d" / "out.parquet") == (2, 1)
    assert Catalog.from_file(tmp_path / "d" / "out.parquet").item_ids == ("b", "a")
    assert os.stat(tmp_path / "d" / "out.parquet").st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (Catalog(("b", "c"), pd.DataFrame({"title": ["x", "y"]})), "already in the catalog: 'b'; leave them out"),
        (
            Catalog(("c",), pd.DataFrame({"titel": ["x"]})),
            "feature 'titel': the catalog has title .did you mean 'title'",
        ),
    ],
)
def test_items_that_do_not_fit_a_catalog_are_refused(new: Catalog, message: str) -> None:
    with pytest.raises(DataError, match=message):
        extended(Catalog(("a", "b"), pd.DataFrame({"title": ["A", "B"]})), new)
