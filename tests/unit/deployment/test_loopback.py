"""A deployment's folder: one deployment at a time, and what a killed one left in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from fedrec_app.config import Scalar
from fedrec_app.deployment.loopback import Loopback
from fedrec_app.deployment.part import Part
from fedrec_app.errors import FedrecError, StateError
from fedrec_app.flower_process import living_in
from tests.e2e.helpers import sandbox

NODES: list[dict[str, Scalar]] = [{"partition-id": 0, "num-partitions": 1}]
STAYS = [sys.executable, "-c", "import time; time.sleep(60)"]
HOLDS_UP = """\
import pathlib, sys, time
from fedrec_app.deployment.loopback import Loopback
with Loopback(pathlib.Path(sys.argv[1]), [{"partition-id": 0, "num-partitions": 1}], supervised=True) as up:
    print("node", up.await_supernode(up.supernodes[0]), flush=True)
    time.sleep(300)
"""


def test_a_folder_is_of_one_deployment_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(StateError, match="another process has a deployment in")
    with FileLock(tmp_path / "lock"), refused, Loopback(tmp_path, NODES):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_what_a_killed_deployment_left_is_ended_before_another_starts_and_users_are_left_alone(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("superlink", "node-7", "flwr")]
    left = [Part(home.name, STAYS, {**os.environ, "FLWR_HOME": str(home)}, None) for home in homes]
    for home in homes:
        home.mkdir()
    for part in left:
        part.start()
    said: list[str] = []
    loopback = Loopback(tmp_path, NODES, insecure=True, say=said.append)
    loopback.superlink.command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(FedrecError, match="the SuperLink ended with code 3"):
        loopback.__enter__()
    assert [part.alive for part in left] == [False, False, True]
    assert said[:2] == [
        f"ending what an earlier deployment left in {homes[i]}: {left[i].pid}" for i in (1, 0)
    ]  # fmt: skip
    left[2].stop()
    with FileLock(tmp_path / "lock", timeout=0):
        pass


def test_a_node_that_does_not_end_keeps_neither_the_others_nor_the_superlink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise OSError("no")

    loopback = Loopback(tmp_path, NODES * 2, insecure=True)
    parts = [loopback.superlink, loopback.supernodes[1]]
    for part in parts:
        part.command = STAYS
        part.start()
    monkeypatch.setattr(loopback.supernodes[0], "stop", fails)
    with pytest.raises(OSError, match="no"):
        loopback.stop()
    assert [part.alive for part in parts] == [False, False]


@pytest.mark.slow
def test_a_deployment_that_was_killed_comes_up_again_in_its_folder_also_without_its_database() -> None:
    with sandbox() as place:
        folder = place.folder / "d"
        killed = Part("it", [sys.executable, "-c", HOLDS_UP, str(folder)], place.environment, place.folder / "log")
        killed.start()
        killed.wait(lambda: "node " in killed.logged(), 120, "it is up")
        before = int(killed.logged().split()[1])
        with pytest.raises(StateError, match="another process"):
            Loopback(folder, NODES).__enter__()
        killed.kill()
        left = living_in(str(folder / "superlink")) | living_in(str(folder / "node-0"))
        assert left
        with Loopback(folder, NODES) as up:
            assert not [
                process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
            ]
            assert up.await_supernode(up.supernodes[0]) == before
        (folder / "superlink" / "state.db").unlink()
        with Loopback(folder, NODES) as up:
            assert up.await_supernode(up.supernodes[0]) != before
