"""Parts and their supervisors, with real processes that end at once or stay."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedrec_app.deployment.part import Part
from fedrec_app.deployment.supervisor import Backoff, Supervisor
from fedrec_app.errors import ConfigError, FedrecError
from tests.e2e.helpers import wait_until

STAYS = "import time; print('here', flush=True); time.sleep(60)"
WITH_CHILD = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    "print('here', flush=True); time.sleep(60)"
)


def part(folder: Path, code: str) -> Part:
    environment = {**os.environ, "FLWR_HOME": str(folder)}
    return Part("the part", [sys.executable, "-c", code], environment, folder / "part.log")


def test_waits_double_up_to_the_cap_and_jitter_stays_within_its_share() -> None:
    backoff = Backoff(first=2.0, factor=2.0, cap=30.0, jitter=0.2)
    assert [backoff.seconds(n, 0.5) for n in range(1, 7)] == [2, 4, 8, 16, 30, 30]
    assert backoff.seconds(3, 0.0) == pytest.approx(6.4)
    assert backoff.seconds(3, 1.0) == pytest.approx(9.6)
    assert backoff.seconds(100_000, 0.5) == 30


@pytest.mark.parametrize("wrong", [{"first": 0}, {"first": 9.0, "cap": 1.0}, {"factor": 0.5}, {"jitter": 1.0}])
def test_a_backoff_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="no usable back-off"):
        Backoff(**wrong)


def test_a_part_that_ends_at_once_is_started_again_with_growing_waits_until_it_is_given_up(tmp_path: Path) -> None:
    said: list[str] = []
    keeper = Supervisor(
        part(tmp_path, "print('started', flush=True)"), Backoff(first=0.1, cap=0.3, jitter=0), 3, said.append
    )
    keeper.start()
    keeper.wait()
    assert (keeper.restarts, keeper.gave_up) == (3, True)
    assert [line.rsplit(" in ", 1)[-1] for line in said[:3]] == ["0.1 s", "0.2 s", "0.3 s"]
    assert "given up after 3 restarts" in said[3]
    assert (tmp_path / "part.log").read_text() == "started\n" * 4


def test_a_part_that_ran_long_enough_is_no_failure_in_a_row(tmp_path: Path) -> None:
    said: list[str] = []
    backoff = Backoff(first=0.05, factor=100.0, cap=5.0, jitter=0, healthy_after=0.0)
    keeper = Supervisor(part(tmp_path, "pass"), backoff, 1, said.append)
    keeper.start()
    wait_until(lambda: keeper.restarts >= 3, 20, "three restarts")
    keeper.stop()
    assert not keeper.gave_up
    assert all(line.endswith("in 0.1 s") for line in said)


def test_a_killed_part_comes_back_and_a_stopped_supervisor_leaves_nothing(tmp_path: Path) -> None:
    kept = part(tmp_path, STAYS)
    keeper = Supervisor(kept, Backoff(first=0.1, cap=0.1))
    keeper.start()
    first = kept.pid
    kept.kill()
    wait_until(lambda: keeper.restarts == 1 and kept.alive, 20, "a restart")
    second = kept.pid
    assert second != first
    keeper.stop()
    assert not psutil.pid_exists(second) or psutil.Process(second).status() == psutil.STATUS_ZOMBIE
    assert keeper.restarts == 1


def test_a_command_that_cannot_be_started_again_is_tried_until_it_is_given_up(tmp_path: Path) -> None:
    said: list[str] = []
    kept = part(tmp_path, "pass")
    keeper = Supervisor(kept, Backoff(first=0.05, cap=0.05), 2, said.append)
    kept.start()
    kept.command = [str(tmp_path / "nowhere")]
    keeper.start()
    keeper.wait()
    assert keeper.gave_up
    assert sum("does not start" in line for line in said) == 2


def test_what_a_killed_part_leaves_behind_is_found_and_ended(tmp_path: Path) -> None:
    one = part(tmp_path, WITH_CHILD)
    one.start()
    one.wait(lambda: "here" in one.logged(), 20, "it says so")
    family = one.family()
    assert len(family) == 2
    one.kill()
    (orphan,) = one.family()
    assert orphan.is_running()
    one.stop()
    assert one.family() == set()


def test_what_a_killed_part_leaves_behind_is_found_in_a_home_that_others_share_too(tmp_path: Path) -> None:
    one = part(tmp_path, WITH_CHILD)
    one.own_home = False
    one.start()
    one.wait(lambda: "here" in one.logged(), 20, "it says so")
    one.kill()
    (orphan,) = one.family()
    one.stop()
    wait_until(lambda: not orphan.is_running(), 10, "its end")


def test_a_process_that_got_the_number_of_one_that_ended_is_left_alone(tmp_path: Path) -> None:
    one, other = part(tmp_path / "one", WITH_CHILD), part(tmp_path / "other", STAYS)
    for each in (one, other):
        each.start()
    one.wait(lambda: "here" in one.logged(), 20, "it says so")
    one.kill()
    (orphan,) = one.family()
    assert one.process is not None
    one.process.pid = other.pid
    one.stop()
    assert other.alive
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    other.stop()


def test_a_paused_part_is_alive_does_nothing_and_can_be_stopped(tmp_path: Path) -> None:
    one = part(tmp_path, "import time\nwhile True: print('tick', flush=True); time.sleep(0.02)")
    one.start()
    one.wait(lambda: "tick" in one.logged(), 20, "it ticks")
    one.pause()
    time.sleep(0.1)
    before = len(one.logged())
    time.sleep(0.2)
    assert one.alive
    assert len(one.logged()) == before
    one.resume()
    one.wait(lambda: len(one.logged()) > before, 20, "it ticks again")
    one.pause()
    one.stop(patience=2)
    assert not one.alive


def test_the_log_of_a_part_is_of_its_newest_start_and_names_flowers_reason(tmp_path: Path) -> None:
    reason = r"print('\x1b[91mERROR\x1b[0m: Exit Code: 305\nIt was refused.\n\nmore\nShutting down')"
    one = part(tmp_path, reason)
    one.start()
    with pytest.raises(FedrecError, match=r"ended with code 0 before a sign: Exit Code: 305 / It was refused\.$"):
        one.wait(lambda: False, 20, "a sign")
    one.command = [sys.executable, "-c", "print('fresh')"]
    one.restart()
    wait_until(lambda: not one.alive, 20, "its end")
    assert one.logged() == "fresh\n"


def test_a_part_is_not_started_twice_and_takes_signals(tmp_path: Path) -> None:
    one = part(tmp_path, STAYS)
    one.start()
    with pytest.raises(FedrecError, match="runs already"):
        one.start()
    one.send(signal.SIGTERM)
    wait_until(lambda: not one.alive, 20, "its end")
    assert one.process is not None
    assert one.process.returncode == -signal.SIGTERM
