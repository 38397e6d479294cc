"""Private rows on disk: which version is served, what stays, and what a crash leaves behind."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray
from safetensors.numpy import save

from fedrec_app.errors import StateError
from fedrec_app.private_state import PrivateState
from fedrec_app.records import Arrays

KEYS = np.array([30, 10, 20], dtype=np.uint64)
INITIAL: Arrays = {"user_embedding": np.full((3, 2), -1, dtype=np.float32)}


def rows(value: float, num_users: int = 3) -> Arrays:
    """Rows of a version: user u has value + u / 10."""
    column = value + np.arange(num_users, dtype=np.float32)[:, None] / 10
    return {"user_embedding": np.repeat(column, 2, axis=1).astype(np.float32)}


@pytest.fixture
def state(tmp_path: Path) -> PrivateState:
    return PrivateState(tmp_path, "line", 4, durable=False)


@pytest.fixture
def flwr_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("flwr")  # does not propagate
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def saved(state: PrivateState, *rounds: int, keep: tuple[int, ...] = ()) -> PrivateState:
    for at_round in rounds:
        state.save(at_round, KEYS, rows(at_round), keep)
    return state


def first(state: PrivateState, at_round: int, keys: NDArray[np.uint64] = KEYS) -> float:
    return float(state.load(at_round, keys, INITIAL)["user_embedding"][0, 0])


def damage(state: PrivateState, at_round: int) -> None:
    path = state.folder / f"{at_round}.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def test_without_a_version_users_start_with_their_initial_rows(state: PrivateState) -> None:
    found = state.load(7, KEYS, INITIAL)
    np.testing.assert_array_equal(found["user_embedding"], INITIAL["user_embedding"])
    assert state.find(7, KEYS) is None
    assert state.rounds() == []
    assert not state.folder.exists()


def test_a_version_lies_where_the_design_says_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = PrivateState(tmp_path, "2026-run.a_b", 12)
    written = {**rows(1.5), "user_embedding:m": np.arange(6, dtype=np.float64).reshape(3, 2)}
    state.save(3, KEYS, written)
    assert (tmp_path / "2026-run.a_b" / "12" / "3.safetensors").is_file()
    found = state.load(3, KEYS, INITIAL)
    assert found.keys() == written.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        found[name][0] = 9  # what training changes in place


def test_the_newest_version_that_is_not_newer_than_the_round_is_served(state: PrivateState) -> None:
    saved(state, 2, 5, keep=(2,))
    assert [first(state, r) for r in (0, 1, 2, 3, 4, 5, 6, 99)] == [-1, -1, 2, 2, 2, 5, 5, 5]


def test_the_last_the_one_before_and_those_to_keep_stay(state: PrivateState) -> None:
    saved(state, 1, 2, 3)
    assert state.rounds() == [2, 3]
    saved(state, 4, 5, 6, keep=(3,))
    assert state.rounds() == [3, 5, 6]
    saved(state, 7, keep=(4,))  # this node did not train in round 4: what it had then is version 3
    assert state.rounds() == [3, 6, 7]
    saved(state, 8, keep=(6, 0))
    assert state.rounds() == [6, 7, 8]
    saved(state, 9)
    assert state.rounds() == [8, 9]


def test_rounds_that_are_trained_again_keep_what_they_start_from(state: PrivateState) -> None:
    saved(state, 3, 6, 7, keep=(3,))
    saved(state, 4, keep=(3,))
    assert state.rounds() == [3, 4, 6, 7]
    saved(state, 5)
    assert state.rounds() == [4, 5, 6, 7]
    assert first(state, 4) == 4


def test_a_round_that_is_saved_twice_holds_the_second(state: PrivateState) -> None:
    saved(state, 1, 2)
    state.save(2, KEYS, rows(50))
    assert first(state, 2) == 50
    assert first(state, 1) == 1


def test_a_damaged_version_falls_back_to_the_one_before_and_says_so(
    state: PrivateState, flwr_log: pytest.LogCaptureFixture
) -> None:
    saved(state, 1, 2)
    damage(state, 2)
    assert first(state, 2) == 1
    assert "2.safetensors is damaged" in flwr_log.text
    found = state.find(2, KEYS)
    assert found is not None
    assert found["user_embedding"][0, 0] == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not safetensors at all",
        save({"user_embedding": np.zeros((3, 2), dtype=np.float32)}),
        save({"user-keys": KEYS, "user_embedding": np.zeros((2, 2), dtype=np.float32)}),
    ],
    ids=["empty", "text", "no keys", "rows missing"],
)
def test_where_every_version_is_damaged_nothing_is_made_up(state: PrivateState, content: bytes) -> None:
    saved(state, 1, 2)
    for at_round in (1, 2):
        (state.folder / f"{at_round}.safetensors").write_bytes(content)
    with pytest.raises(StateError, match=f"no readable private state up to round 2 in {state.folder}"):
        state.load(2, KEYS, INITIAL)
    with pytest.raises(StateError, match="no readable private state"):
        state.find(2, KEYS)
    np.testing.assert_array_equal(state.load(0, KEYS, INITIAL)["user_embedding"], INITIAL["user_embedding"])


@pytest.mark.parametrize(
    "initial",
    [{"user_embedding": np.zeros((3, 5), dtype=np.float32)}, {"user_gmf": np.zeros((3, 2), dtype=np.float32)}],
    ids=["other width", "other name"],
)
def test_rows_of_another_model_are_refused(state: PrivateState, initial: Arrays) -> None:
    saved(state, 1)
    with pytest.raises(StateError, match="of another model"):
        state.load(1, KEYS, initial)


def test_users_are_matched_by_key_when_the_cohort_changed(state: PrivateState) -> None:
    written = {**rows(7), "user_embedding:m": np.array([[1.0], [2.0], [3.0]], dtype=np.float32)}
    state.save(1, KEYS, written)
    keys = np.array([10, 99, 30, 5], dtype=np.uint64)  # 20 left, 99 and 5 are new, the order is another one
    initial = {"user_embedding": -np.arange(8, dtype=np.float32).reshape(4, 2)}
    found = state.load(1, keys, initial)
    np.testing.assert_array_equal(
        found["user_embedding"], np.array([[7.1, 7.1], [-2, -3], [7, 7], [-6, -7]], dtype=np.float32)
    )
    np.testing.assert_array_equal(found["user_embedding:m"], np.array([[2], [0], [1], [0]], dtype=np.float32))
    np.testing.assert_array_equal(initial["user_embedding"], -np.arange(8, dtype=np.float32).reshape(4, 2))


def test_a_cohort_may_become_empty_or_grow_from_nothing(state: PrivateState) -> None:
    nobody = np.zeros(0, dtype=np.uint64)
    state.save(1, nobody, rows(1, 0))
    np.testing.assert_array_equal(state.load(1, KEYS, INITIAL)["user_embedding"], INITIAL["user_embedding"])
    saved(state, 2)
    empty = {"user_embedding": np.zeros((0, 2), dtype=np.float32)}
    assert state.load(2, nobody, empty)["user_embedding"].shape == (0, 2)


def test_find_answers_where_every_user_is_known_and_only_there(state: PrivateState) -> None:
    saved(state, 1, 2)
    found = state.find(1, np.array([20], dtype=np.uint64))
    assert found is not None
    np.testing.assert_array_equal(found["user_embedding"], rows(1)["user_embedding"][2:])
    assert state.find(2, np.array([20, 21], dtype=np.uint64)) is None
    assert state.find(0, np.array([20], dtype=np.uint64)) is None


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "/etc", "a\\b", "a..b", ".hidden", "x" * 101, "a\n", "é"]
)
def test_a_lineage_that_is_no_plain_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="lineage"):
        PrivateState(tmp_path, name, 0)


def test_other_files_in_the_folder_are_no_versions(state: PrivateState) -> None:
    saved(state, 1)
    for name in ("best.safetensors", "9.safetensors.bak", "notes.txt", "²." + "safetensors"):
        (state.folder / name).write_bytes(b"")
    (state.folder / "8.safetensors").mkdir()
    assert state.rounds() == [1]
    assert first(state, 9) == 1


def test_what_a_killed_writer_left_is_cleared_by_the_next_one(state: PrivateState) -> None:
    saved(state, 1)
    left = state.folder / ".2.safetensors.k3jx"
    left.write_bytes(b"half")
    assert first(state, 2) == 1
    saved(state, 2)
    assert not left.exists()


def test_the_version_of_the_round_itself_is_read_while_another_process_writes(
    state: PrivateState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedrec_app.private_state.LOCK_TIMEOUT", 0.05)
    saved(state, 1, 2)
    with FileLock(state.folder / "lock"):
        assert [first(state, r) for r in (1, 2)] == [1, 2]
        with pytest.raises(StateError, match="locked by another process"):
            state.load(3, KEYS, INITIAL)  # which is the newest, the folder must tell
    assert first(state, 3) == 2


# Several processes ---------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
import numpy as np
from fedrec_app.private_state import PrivateState

state = PrivateState(Path(sys.argv[1]), "line", 4, durable=False)
keys = np.arange(20_000, dtype=np.uint64)
print("ready", flush=True)
at_round, step, last = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
while at_round < last:
    value = np.full((20_000, 8), at_round, dtype=np.float32)
    state.save(at_round, keys, {"user_embedding": value, "user_embedding:m": value}, keep=[1])
    at_round += step
"""
MANY = np.arange(20_000, dtype=np.uint64)


def writer(state: PrivateState, start: int, step: int = 1, last: int = 1_000_000) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(state.folder.parent.parent), str(start), str(step), str(last)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def complete_version(state: PrivateState, at_round: int = 10**6) -> int:
    """Returns the round of the version read, after checking that it is whole and of one piece."""
    initial = {"user_embedding": np.zeros((20_000, 8), dtype=np.float32)}
    found = state.load(at_round, MANY, initial)
    value = found["user_embedding"][0, 0]
    for name in found:
        assert found[name].shape == (20_000, 8)
        assert (found[name] == value).all()
    return int(value)


def test_a_reader_sees_whole_versions_whatever_moment_a_writer_is_killed_at(
    state: PrivateState, flwr_log: pytest.LogCaptureFixture
) -> None:
    rng, reached = random.Random(1), 0
    for _ in range(5):
        process = writer(state, reached + 1)
        end = time.monotonic() + rng.uniform(0.05, 0.4)
        while time.monotonic() < end:
            now = complete_version(state)
            assert now >= reached
            reached = now
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        reached = complete_version(state)
        assert reached == max(state.rounds())
    assert reached > 5
    assert "damaged" not in flwr_log.text
    left = [path.name for path in state.folder.iterdir() if path.name.startswith(".")]
    state.save(reached + 1, MANY, {"user_embedding": np.zeros((20_000, 8), dtype=np.float32)})
    after = sorted(path.name for path in state.folder.iterdir())
    assert after == sorted(["lock", f"{reached}.safetensors", f"{reached + 1}.safetensors"]), f"killed: {left}"


def test_two_processes_that_save_at_once_leave_whole_versions(state: PrivateState) -> None:
    writers = [writer(state, 1, 2, 60), writer(state, 2, 2, 60)]
    for process in writers:
        assert process.wait(timeout=60) == 0
        assert process.stdout is not None
        process.stdout.close()
    rounds = state.rounds()
    assert rounds[-1] == 59
    assert {1, 58, 59} <= set(rounds)
    assert len(rounds) <= 5
    for at_round in rounds:
        assert complete_version(state, at_round) == at_round


def test_one_flipped_bit_in_the_rows_is_noticed_and_the_version_before_is_served(tmp_path: Path) -> None:
    state, keys = PrivateState(tmp_path, "run", 0), np.array([1, 2], dtype=np.uint64)
    for server_round in (1, 2):
        state.save(server_round, keys, {"row": np.full((2, 3), server_round, dtype=np.float32)})
    path = tmp_path / "run" / "0" / "2.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    found = state.load(2, keys, {"row": np.zeros((2, 3), dtype=np.float32)})
    np.testing.assert_array_equal(found["row"], np.ones((2, 3)))
