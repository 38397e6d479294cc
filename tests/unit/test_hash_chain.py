"""Chained lines show every damage that a chain can show, and a process alone writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from fedrec_app.errors import StateError
from fedrec_app.hash_chain import START, ChainFile, in_use, line, read

Found = list[bytes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of four lines, closed."""
    file = ChainFile.open(tmp_path / "chain.jsonl")
    for number in range(4):
        file.append({"what": "test", "number": number, "value": 0.1 * number})
    file.close()
    return file.path


def test_lines_go_on_where_the_file_ended(path: Path) -> None:
    file = ChainFile.open(path)
    assert (len(file), file.digest) == (4, file.found.digest)
    file.append({"number": 4})
    file.close()
    found = read(path.read_bytes())
    assert [record["number"] for record in found.records] == [0, 1, 2, 3, 4]
    assert (found.damaged, found.torn, found.digest) == (0, b"", file.digest)
    assert found.continues(5, file.digest)
    assert not found.continues(4, file.digest)
    assert not found.continues(6, file.digest)
    assert not found.continues(0, START)


def test_anybody_can_check_them_with_a_json_parser_and_sha_256(path: Path) -> None:
    previous = START
    for number, text in enumerate(path.read_text().splitlines()):
        record = json.loads(text)
        said = record.pop("hash")
        assert (record["seq"], record["previous"]) == (number, previous)
        previous = sha256(json.dumps(record, separators=(",", ":")).encode()).hexdigest()
        assert said == previous


def changed_with_its_hash(found: Found) -> None:
    record = json.loads(found[1])
    found[1] = line({**{key: value for key, value in record.items() if key != "hash"}, "value": 7})


CHANGES: dict[str, tuple[Callable[[Found], object], int]] = {
    "changed": (lambda found: found.__setitem__(1, found[1].replace(b"test", b"rest")), 2),
    "changed with its hash": (changed_with_its_hash, 3),
    "removed": (lambda found: found.pop(1), 2),
    "first removed": (lambda found: found.pop(0), 1),
    "repeated": (lambda found: found.insert(2, found[1]), 3),
    "last repeated": (lambda found: found.append(found[3]), 5),
    "moved": (lambda found: found.insert(1, found.pop(2)), 2),
    "written differently": (lambda found: found.__setitem__(2, found[2].replace(b":", b": ", 1)), 3),
    "key twice": (lambda found: found.__setitem__(2, found[2].replace(b'"what"', b'"what":"test","what"')), 3),
    "seq as a truth value": (lambda found: found.__setitem__(1, found[1].replace(b'"seq":1', b'"seq":true')), 2),
    "no object": (lambda found: found.__setitem__(0, b"7\n"), 1),
    "empty line": (lambda found: found.insert(3, b"\n"), 4),
    "no text": (lambda found: found.__setitem__(3, b"\xff\xfe\n"), 4),
    "zeros after the end": (lambda found: found.append(b"\0" * 64), 5),
}


@pytest.mark.parametrize("which", CHANGES)
def test_a_line_that_is_not_as_it_was_written_is_named(path: Path, which: str) -> None:
    change, number = CHANGES[which]
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    found = read(b"".join(lines))
    assert (found.damaged, len(found.records)) == (number, number - 1)


def test_every_byte_counts(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(len(whole) - 1):
        changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        assert read(changed).damaged == whole[:place].count(b"\n") + 1, place


def test_a_last_line_that_a_crash_cut_short_anywhere_is_removed_and_the_rest_stays(path: Path) -> None:
    whole = path.read_bytes()
    begin = whole.rindex(b"\n", 0, -1) + 1
    for end in range(begin + 1, len(whole), 9):
        path.write_bytes(whole[:end])
        file = ChainFile.open(path)
        assert (len(file), file.found.torn, file.set_aside) == (3, whole[begin:end], {})
        file.append({"number": "new"})
        file.close()
        assert [record["number"] for record in read(path.read_bytes()).records] == [0, 1, 2, "new"]


def test_a_damaged_file_is_kept_under_another_name_and_a_new_one_begun(path: Path) -> None:
    for attempt in (1, 2):
        damaged = path.read_bytes().replace(b'"seq":0', b'"seq":7')
        path.write_bytes(damaged)
        file = ChainFile.open(path)
        file.append({"number": attempt})
        file.close()
        kept = path.with_name(f"chain.damaged-{attempt}.jsonl")
        assert kept.read_bytes() == damaged
        assert file.set_aside == {
            "file": kept.name, "sha256": sha256(damaged).hexdigest(), "why": "line 1 is damaged"
        }  # fmt: skip
        assert [record["number"] for record in read(path.read_bytes()).records] == [attempt]


def test_no_two_write_a_file_and_who_looks_can_tell(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_use(path) is False
    assert in_use(path.with_name("other.jsonl")) is None
    file = ChainFile.open(path)
    assert in_use(path) is True
    monkeypatch.setattr("fedrec_app.hash_chain._PATIENCE", 0.05)
    with pytest.raises(StateError, match="is in use by another process"):
        ChainFile.open(path)
    file.close()
    assert in_use(path) is False
    with pytest.raises(StateError, match="is closed"):
        file.append({})


def test_a_line_is_on_the_disk_when_append_returns_and_one_that_is_not_ends_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    write, sync = os.write, os.fsync
    file = ChainFile.open(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *given: (calls.append("write"), write(*given))[1])
        patch.setattr(os, "fsync", lambda *given: (calls.append("fsync"), sync(*given))[1])
        file.append({"number": 4})
        assert calls == ["write", "fsync"]
        patch.setattr(os, "write", lambda descriptor, text: write(descriptor, text[:40]))
        with pytest.raises(StateError, match="only a part"):
            file.append({"number": 5})
    again = ChainFile.open(path)
    assert len(again) == 5
    again.close()
