"""The ledger of a node under example-level privacy: what it survives, and what it refuses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fedrec_app.errors import StateError
from fedrec_app.privacy.accounting import epsilon
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.ledger import Ledger
from fedrec_app.privacy.node_accountant import NodeAccountant, release_of_a_round, steps_a_round

ROUND = Gaussian(1.1, 0.01, 100)


def accountant(folder: Path, partition: int = 3, begun: bool = False) -> NodeAccountant:
    return NodeAccountant(folder, "line", partition, begun)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The ledger of a node after two rounds."""
    for server_round in (1, 2):
        accountant(tmp_path).charge(ROUND, server_round)
    return tmp_path / "line.privacy" / "3.jsonl"


@pytest.mark.parametrize(
    ("epochs", "rate", "steps"), [(1, 0.01, 100), (2, 0.01, 200), (1, 1.0, 1), (1, 0.3, 3), (1, 0.9, 1), (3, 0.7, 4)]
)
def test_steps_follow_from_settings_alone(epochs: int, rate: float, steps: int) -> None:
    assert steps_a_round(epochs, rate) == steps
    assert release_of_a_round(1.1, rate, epochs) == Gaussian(1.1, rate, steps)


def test_rounds_add_up_across_restarts_and_nodes_have_their_own(path: Path, tmp_path: Path) -> None:
    assert accountant(tmp_path).releases() == [ROUND, ROUND]
    accountant(tmp_path).charge(ROUND, 3)
    assert accountant(tmp_path).epsilon(1e-5) == epsilon([ROUND] * 3, 1e-5) > epsilon([ROUND], 1e-5)
    assert accountant(tmp_path, 4).releases() == []
    assert accountant(tmp_path, 4).epsilon(1e-5) == 0


def test_a_round_that_is_asked_for_twice_is_charged_twice(path: Path, tmp_path: Path) -> None:
    accountant(tmp_path).charge(ROUND, 2)
    with Ledger.open(path) as ledger:
        assert [charge.what for charge in ledger.charges] == [{"for": "round", "round": r} for r in (1, 2, 2)]


def test_looking_makes_nothing(tmp_path: Path) -> None:
    assert accountant(tmp_path).releases() == []
    assert list(tmp_path.iterdir()) == []


def test_a_charge_is_on_the_disk_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), real(fd))[1]
    )
    accountant(tmp_path).charge(ROUND, 1)
    assert synced.count("3.jsonl") == 2  # the header and the charge
    assert "line.privacy" in synced


def damage(path: Path, what: str) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    if what == "changed":
        path.write_bytes(lines[0] + lines[1].replace(b"1.1", b"9.1") + lines[2])
    elif what == "a line is missing":
        path.write_bytes(lines[0] + lines[2])
    elif what == "the last line is missing":
        path.write_bytes(lines[0] + lines[1])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "lost":
        path.unlink()
    elif what == "its folder is lost":
        shutil.rmtree(path.parent)
    elif what == "the tip is no JSON":
        path.with_suffix(".tip").write_bytes(b"{")
    elif what == "of another node":
        accountant(path.parent.parent, 4).charge(ROUND, 1)
        for suffix in (".jsonl", ".tip"):
            shutil.copy(path.with_name(f"4{suffix}"), path.with_suffix(suffix))


@pytest.mark.parametrize(
    "what",
    [
        "changed",
        "a line is missing",
        "the last line is missing",
        "empty",
        "lost",
        "its folder is lost",
        "the tip is no JSON",
        "of another node",
    ],
)
def test_a_damaged_ledger_takes_no_charge(what: str, path: Path, tmp_path: Path) -> None:
    damage(path, what)
    before = path.read_bytes() if path.exists() else None
    for use in (lambda: accountant(tmp_path).charge(ROUND, 3), lambda: accountant(tmp_path).epsilon(1e-5)):
        with pytest.raises(StateError, match=r"3\.(jsonl|tip)"):
            use()
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_crash_between_the_charge_and_its_tip_only_counts_too_much(path: Path, tmp_path: Path) -> None:
    tip = path.with_suffix(".tip").read_bytes()
    accountant(tmp_path).charge(ROUND, 3)
    path.with_suffix(".tip").write_bytes(tip)
    accountant(tmp_path).charge(ROUND, 3)
    assert accountant(tmp_path).releases() == [ROUND] * 4


def test_a_node_that_has_trained_and_has_no_ledger_trains_no_more(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"line\.privacy.3\.jsonl is lost"):
        accountant(tmp_path, begun=True).charge(ROUND, 5)


def test_a_node_takes_no_more_steps_than_its_own_settings_say_whoever_asks(tmp_path: Path) -> None:
    bounded = NodeAccountant(tmp_path, "line", 3, most_steps=250)
    for _ in range(2):
        bounded.charge(ROUND, 1)
    with pytest.raises(StateError, match="charged with 200 steps: a round of 100 more would exceed the 250"):
        bounded.charge(ROUND, 2)
    assert bounded.releases() == [ROUND, ROUND]


@pytest.mark.parametrize("lineage", ["", "../other", "a/b", ".", "..", ".hidden"])
def test_a_lineage_stays_in_the_folder(lineage: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a plain name"):
        NodeAccountant(tmp_path, lineage, 0)
