"""Checkpoints come back bit for bit, show every damage, and fall back to the one before."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrec_app.checkpoint import Checkpoint, Checkpoints, check_same
from fedrec_app.config import RunConfig
from fedrec_app.errors import ConfigError, StateError
from fedrec_app.records import Arrays

SHARED: Arrays = {
    "item_embedding": np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3).T,  # not C-contiguous
    "bias/of all": np.array(np.float32(0.1)),
    "empty": np.zeros((0, 4), dtype=np.float32),
}
STATE: Arrays = {"steps": np.array(7), "first/item_embedding": np.full((3, 20), 1 / 3), "shared/trap": np.array([1])}
FACTS: dict[str, Any] = {
    "lineage": "a-run", "best-value": -math.inf, "ledger-digest": "0" * 64, "text": 'a "sha256":"' + "0" * 64 + '"',
    "rounds": [{"round": 1, "loss": 0.1 + 0.2}], "none": None,
}  # fmt: skip


def checkpoint(number: int, best_round: int = 1) -> Checkpoint:
    best = {name: array - 1 for name, array in SHARED.items()} if best_round < number else {}
    return Checkpoint(number, best_round, {**SHARED, "round": np.array([number])}, best, STATE, FACTS)


def assert_equal(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    """Checkpoints of rounds 1 to 4, of which 3 and 4 are there."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    for number in (1, 2, 3, 4):
        checkpoints.write(checkpoint(number))
    return checkpoints


def test_everything_comes_back_bit_for_bit(kept: Checkpoints) -> None:
    found, expected = kept.read_newest(), checkpoint(4)
    assert (found.round, found.best_round, found.facts) == (4, 1, FACTS)
    assert_equal(found.shared, expected.shared)
    assert_equal(found.best, expected.best)
    assert_equal(found.state, STATE)


def test_the_last_two_are_kept_and_later_ones_of_another_course_are_not(kept: Checkpoints) -> None:
    assert kept.rounds() == [3, 4]
    kept.write(checkpoint(2))
    assert kept.rounds() == [2]
    kept.write(checkpoint(3))
    assert kept.rounds() == [2, 3]
    assert sorted(path.name for path in kept.folder.iterdir()) == ["2.safetensors", "3.safetensors"]


def test_nodes_are_to_keep_what_every_checkpoint_needs(kept: Checkpoints) -> None:
    assert kept.needed_rounds() == [1, 3, 4]
    kept.write(checkpoint(9, best_round=5))
    assert kept.needed_rounds() == [1, 4, 5, 9]


def test_any_changed_byte_falls_back_to_the_checkpoint_before_and_says_so(
    kept: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    newest = kept.folder / "4.safetensors"
    whole = newest.read_bytes()
    for place in [*range(0, 900, 41), *range(900, len(whole), 97), len(whole) - 1]:
        newest.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        caplog.clear()
        assert kept.read_newest().round == 3
        assert f"checkpoint {newest} is damaged" in caplog.text
    newest.write_bytes(whole)
    assert kept.read_newest().round == 4


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_a_checkpoint_cut_short_or_of_another_round_falls_back(kept: Checkpoints, size: int) -> None:
    newest = kept.folder / "4.safetensors"
    newest.write_bytes(newest.read_bytes()[:size])
    assert kept.read_newest().round == 3
    newest.write_bytes((kept.folder / "3.safetensors").read_bytes())
    assert kept.read_newest().round == 3
    newest.unlink()
    newest.mkdir()
    assert kept.read_newest().round == 3


def test_without_a_readable_checkpoint_the_run_does_not_go_on(kept: Checkpoints) -> None:
    for number in (3, 4):
        (kept.folder / f"{number}.safetensors").write_bytes(b"nothing")
    with pytest.raises(StateError, match=r"no readable checkpoint in .*: round 3, 4 damaged"):
        kept.read_newest()
    with pytest.raises(StateError, match=r"no checkpoint in .*: is it of a run with checkpoint.every above 0\?"):
        Checkpoints(kept.folder / "other").read_newest()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_or_is_killed_leaves_the_ones_before(
    kept: Checkpoints, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise OSError("no space left")

    (kept.folder / ".5.safetensors.abc").write_bytes(b"half of a fi")  # what a killed writer leaves
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="no space left"):
            kept.write(checkpoint(5))
    assert kept.rounds() == [3, 4]
    kept.write(checkpoint(5))
    assert sorted(path.name for path in kept.folder.iterdir()) == ["4.safetensors", "5.safetensors"]


def test_old_checkpoints_go_only_after_the_new_one_is_there(kept: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, seen = Path.unlink, []

    def watched(path: Path, missing_ok: bool = False) -> None:
        seen.append((path.name, kept.rounds()))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    kept.write(checkpoint(5))
    assert seen == [("3.safetensors", [3, 4, 5])]


def test_a_checkpoint_of_something_else_is_refused_with_both_values(kept: Checkpoints) -> None:
    found = kept.read_newest()
    found.require({"lineage": "a-run", "none": None})
    with pytest.raises(StateError, match="the checkpoint of round 4 has lineage a-run, this run has another"):
        found.require({"lineage": "another"})
    with pytest.raises(StateError, match="has catalog-hash nothing, this run has abc"):
        found.require({"catalog-hash": "abc"})


def test_settings_that_change_what_is_learnt_must_be_those_of_the_checkpoint() -> None:
    then = RunConfig().flat()
    check_same(then, {**then, "num-server-rounds": 500, "output-dir": "/elsewhere", "checkpoint.every": 7})
    check_same({key: value for key, value in then.items() if key != "train.weight-decay"}, then)
    with pytest.raises(ConfigError) as caught:
        check_same(then, {**then, "train.learning-rate": 0.2, "evaluate.metric": "hr@5", "evaluate.every": 3})
    assert str(caught.value).startswith(
        'a run goes on with the settings it began with: evaluate.metric was "ndcg@10" and is "hr@5"; '
        'train.learning-rate was "auto" and is 0.2 (only num-server-rounds, output-dir, checkpoint.*, '
    )
