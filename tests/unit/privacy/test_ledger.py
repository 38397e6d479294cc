"""The ledger is on the disk before anything is released, and shows every damage that a chain can show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from hashlib import sha256
from pathlib import Path

import pytest

from fedrec_app.errors import StateError
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.ledger import Ledger

HEADER = {"lineage": "a-run", "unit": "user", "delta": 1e-5, "users": 943}
EVENTS = [Gaussian(1.0, 0.1), Gaussian(0.30000000000000004, 1.0, 3), Gaussian(5.0)]
WHATS = [{"for": "round", "round": 1}, {"for": "round", "round": 2}, {"for": "metrics", "names": ["ndcg@10"]}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with a header and three charges, closed."""
    path = tmp_path / "run" / "ledger.jsonl"
    with Ledger.create(path, HEADER) as ledger:
        for event, what in zip(EVENTS, WHATS, strict=True):
            ledger.charge(event, what)
    return path


def test_what_was_charged_is_read_back_exactly_and_goes_on(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert ledger.header == HEADER
        assert ledger.events == EVENTS
        assert [charge.what for charge in ledger.charges] == WHATS
        assert all(date.fromisoformat(charge.time) for charge in ledger.charges)
        assert (len(ledger), ledger.mended) == (4, "")
        ledger.charge(Gaussian(2.0), {"for": "round", "round": 3})
        assert ledger.events == [*EVENTS, Gaussian(2.0)]
    with Ledger.open(path) as again:
        assert (again.events, again.digest) == ([*EVENTS, Gaussian(2.0)], ledger.digest)


def test_anybody_can_check_the_chain_with_a_json_parser_and_sha_256(path: Path) -> None:
    previous = "0" * 64
    for number, text in enumerate(path.read_text().splitlines()):
        line = json.loads(text)
        found = line.pop("hash")
        assert (line["seq"], line["previous"]) == (number, previous)
        previous = sha256(json.dumps(line, separators=(",", ":")).encode()).hexdigest()
        assert found == previous
    with Ledger.open(path) as ledger:
        assert ledger.digest == previous


def test_a_charge_is_on_the_disk_when_it_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    write, sync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda *given: (calls.append("write"), write(*given))[1])
    monkeypatch.setattr(os, "fsync", lambda *given: (calls.append("fsync"), sync(*given))[1])
    with Ledger.open(path) as ledger:
        ledger.charge(Gaussian(1.0), {"for": "round", "round": 3})
        assert calls == ["write", "fsync"]
    with Ledger.create(path.with_name("new.jsonl"), {}):
        assert calls == ["write", "fsync", "write", "fsync", "fsync"]  # the file, and its folder


def lines(change: Callable[[list[bytes]], None]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        found = content.splitlines(keepends=True)
        change(found)
        return b"".join(found)

    return changed


def other_noise(found: list[bytes]) -> None:
    found[2] = found[2].replace(b"0.30000000000000004", b"30000000.000000004")


def other_noise_with_its_own_hash(found: list[bytes]) -> None:
    line = json.loads(found[2])
    line["event"]["noise_multiplier"] = 100.0
    del line["hash"]
    line["hash"] = sha256(json.dumps(line, separators=(",", ":")).encode()).hexdigest()
    found[2] = json.dumps(line, separators=(",", ":")).encode() + b"\n"


DAMAGE: dict[str, tuple[Callable[[list[bytes]], None], int]] = {
    "changed": (other_noise, 3),
    "changed with its hash": (other_noise_with_its_own_hash, 4),
    "header changed": (lambda found: found.__setitem__(0, found[0].replace(b"943", b"944")), 1),
    "header of another format": (lambda found: found.__setitem__(0, found[0].replace(b"ledger/1", b"ledger/9")), 1),
    "removed": (lambda found: found.__delitem__(2), 3),
    "header removed": (lambda found: found.__delitem__(0), 1),
    "reordered": (lambda found: found.insert(1, found.pop(2)), 2),
    "duplicated": (lambda found: found.insert(2, found[2]), 4),
    "last one duplicated": (lambda found: found.append(found[3]), 5),
    "truncated": (lambda found: found.__setitem__(2, found[2][:-20] + b"\n"), 3),
    "truncated with its newline": (lambda found: found.__setitem__(2, found[2][:-20]), 3),
    "emptied": (lambda found: found.__setitem__(2, b"\n"), 3),
    "written differently": (lambda found: found.__setitem__(2, found[2].replace(b",", b", ", 1)), 3),
    "no text": (lambda found: found.__setitem__(2, b"\xff\x00" + found[2]), 3),
    "no object": (lambda found: found.__setitem__(2, b"[1]\n"), 3),
    "zeros at the end": (lambda found: found.append(b"\0" * 300), 5),
    "another line begun": (lambda found: found.append(found[3][:100]), 5),
    "impossible event": (lambda found: found.__setitem__(3, found[3].replace(b"5.0", b"-5.0")[:-60]), 4),
}


@pytest.mark.parametrize("which", DAMAGE)
def test_damage_is_refused_and_its_line_named(path: Path, which: str) -> None:
    change, number = DAMAGE[which]
    damaged = lines(change)(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(StateError, match=rf"^line {number} of the privacy ledger \S*ledger.jsonl is damaged"):
        Ledger.open(path)
    assert path.read_bytes() == damaged


def test_every_single_changed_byte_is_seen(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(StateError, match="is damaged"):
            Ledger.open(path)


def test_a_last_line_cut_short_anywhere_is_charged_where_its_event_can_be_read(path: Path) -> None:
    whole = path.read_bytes()
    begin = whole.rindex(b"\n", 0, -1) + 1
    known = whole.index(b"}", begin) + 1  # the event ends here
    for end in range(begin + 1, len(whole), 5):
        path.write_bytes(whole[:end])
        with Ledger.open(path) as ledger:
            assert ledger.events == (EVENTS if end >= known else EVENTS[:2])
            assert ledger.mended.startswith("a crash cut line 4 of the privacy ledger")
            assert ("counts as charged" in ledger.mended) is (end >= known)
            ledger.charge(Gaussian(7.0), {})
            charged = ledger.events
        with Ledger.open(path) as again:
            assert (again.events, again.mended) == (charged, "")


def test_a_header_cut_short_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(StateError, match="has no header"):
        Ledger.open(path)


def test_lines_missing_at_the_end_or_of_another_ledger_do_not_go_with_a_checkpoint(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    with Ledger.open(path) as ledger:
        length, digest = len(ledger), ledger.digest
        ledger.charge(Gaussian(1.0), {})
        ledger.require(length, digest)  # what was charged after the checkpoint does not hurt
        ledger.require(len(ledger), ledger.digest)
        with pytest.raises(
            StateError, match=r"line 3 of the privacy ledger .* is not the one that the checkpoint knows"
        ):
            ledger.require(3, digest)
        with pytest.raises(StateError, match="line 0"):
            ledger.require(0, digest)
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    with Ledger.open(path) as shorter, pytest.raises(StateError, match="has 3 lines, the checkpoint knows of 4"):
        shorter.require(length, digest)
    path.write_bytes(whole[:-30])
    with Ledger.open(path) as mended, pytest.raises(StateError, match="line 4 of the privacy ledger"):
        mended.require(length, digest)


def test_a_lost_ledger_is_refused_and_a_new_one_never_takes_the_place_of_an_old_one(path: Path) -> None:
    with pytest.raises(StateError, match="no privacy ledger"):
        Ledger.open(path.with_name("other.jsonl"))
    before = path.read_bytes()
    with pytest.raises(StateError, match="exists"):
        Ledger.create(path, HEADER)
    assert path.read_bytes() == before


def test_no_two_write_a_ledger_and_a_closed_one_charges_nothing(path: Path) -> None:
    with Ledger.open(path) as ledger, pytest.raises(StateError, match="is in use by another process"):
        Ledger.open(path)
    with pytest.raises(StateError, match="is closed"):
        ledger.charge(Gaussian(1.0), {})
    assert ledger.events == EVENTS
    Ledger.open(path).close()


@pytest.mark.parametrize("written", [0, 40, 200])
def test_a_charge_that_the_disk_did_not_take_raises_and_counts_at_most_too_much(
    path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    ledger, write = Ledger.open(path), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:written]))
        with pytest.raises(StateError, match=r"cannot write the privacy ledger .*only a part"):
            ledger.charge(Gaussian(9.0), {})
    assert ledger.events == EVENTS
    with pytest.raises(StateError, match="is closed"):
        ledger.charge(Gaussian(9.0), {})
    with Ledger.open(path) as again:
        assert again.events == EVENTS + [Gaussian(9.0)] * (written == 200)


def test_a_failing_flush_raises(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch, Ledger.open(path) as ledger:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StateError, match="no space left"):
            ledger.charge(Gaussian(9.0), {})


def test_what_is_no_json_is_refused_and_leaves_no_trace(path: Path) -> None:
    before = path.read_bytes()
    with Ledger.open(path) as ledger:
        with pytest.raises(ValueError, match="not JSON compliant"):
            ledger.charge(Gaussian(1.0), {"clip-norm": float("nan")})
        with pytest.raises(TypeError, match="not JSON serializable"):
            ledger.charge(Gaussian(1.0), {"who": {1, 2}})
    assert path.read_bytes() == before


CHARGES_FOR_EVER = """
import sys
from pathlib import Path
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.ledger import Ledger

ledger = Ledger.open(Path(sys.argv[1]))
while True:
    ledger.charge(Gaussian(1.0, 0.5), {"for": "round", "padding": "x" * 3000})
    print("released", flush=True)
"""


def test_after_a_kill_every_charge_that_had_returned_is_there(path: Path) -> None:
    returned = len(EVENTS)
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", CHARGES_FOR_EVER, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.01 * attempt)
        process.kill()
        returned += 1 + process.stdout.read().count(b"\n")
        process.wait()
        process.stdout.close()
        with Ledger.open(path) as ledger:
            assert returned <= len(ledger.events) <= returned + 1
            returned = len(ledger.events)
