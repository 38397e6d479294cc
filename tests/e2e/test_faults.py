"""The scripts that hurt a deployment and that run for long: their parts, and two faults on real processes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from fedrec_app.deployment.touch import PATIENCE
from tests.conftest import REPO
from tests.e2e.helpers import wait_until

sys.path.insert(0, str(REPO / "scripts"))

from campaign.faults import KINDS, draw
from campaign.link import Link
from campaign.place import place
from campaign.samples import count_growth, memory_growth


def test_faults_are_drawn_by_their_seed_and_every_target_comes_before_any_comes_again() -> None:
    pairs = [(kind, target) for kind, targets in KINDS.items() for target in targets]
    drawn = draw(2 * len(pairs), 1, 3, 4)
    assert Counter((fault.kind, fault.target) for fault in drawn[: len(pairs)]) == Counter(pairs)
    assert Counter((fault.kind, fault.target) for fault in drawn) == Counter(pairs * 2)
    for number in (1, 4, len(pairs), 5 * len(pairs)):  # so that one run of a campaign can be taken again
        assert draw(number, 1, 3, 4)[: len(drawn)] == drawn[:number]
    assert drawn != draw(2 * len(pairs), 2, 3, 4)
    assert {fault.kind for fault in draw(9, 1, 3, 4, ["cut"])} == {"cut"}
    assert all(1 <= fault.round <= 4 and fault.node in (0, 1, 2) for fault in drawn)
    assert all(fault.round >= 3 for fault in drawn if fault.kind == "corrupt")
    assert all(fault.private for fault in drawn if fault.target == "ledger")


@contextmanager
def echoing() -> Iterator[Link]:
    """Yields a link to a server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                one, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(one,), daemon=True).start()

    def answer(one: socket.socket) -> None:
        with one, suppress(ConnectionError):
            while data := one.recv(100):
                one.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    link = Link(server.getsockname()[1])
    try:
        yield link
    finally:
        link.close()
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def said(link: Link) -> bytes:
    """Returns what comes back over the link; nothing where it is cut, be it while it connects."""
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", link.entry), timeout=5) as one:
        one.sendall(b"hello")
        return one.recv(100)
    return b""


def test_a_link_that_is_dropped_closes_what_is_open_and_refuses_what_comes() -> None:
    with echoing() as link:
        before = socket.create_connection(("127.0.0.1", link.entry), timeout=5)
        assert said(link) == b"hello"
        before.sendall(b"x")
        assert before.recv(1) == b"x"
        link.drop()
        with pytest.raises(ConnectionResetError):
            before.recv(1)
        before.close()
        assert said(link) == b""
        link.heal()
        assert said(link) == b"hello"


def test_a_link_can_also_end_in_an_orderly_way() -> None:
    with echoing() as link, socket.create_connection(("127.0.0.1", link.entry), timeout=5) as one:
        one.sendall(b"x")
        assert one.recv(1) == b"x"
        link.drop(orderly=True)
        assert one.recv(1) == b""
        with socket.create_connection(("127.0.0.1", link.entry), timeout=5) as other:
            other.sendall(b"hello")
            assert other.recv(1) == b""


def test_a_link_that_is_stalled_holds_back_what_it_gets() -> None:
    with echoing() as link, socket.create_connection(("127.0.0.1", link.entry), timeout=5) as one:
        link.stall()
        one.settimeout(0.3)
        one.sendall(b"late")
        with pytest.raises(TimeoutError):
            one.recv(4)
        link.heal()
        one.settimeout(5)
        assert one.recv(4) == b"late"


def memory(slope: float, noise: float, rounds: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Returns 3 samples a round of 400 MB: a cache fills in the first tenth, then it grows by `slope` bytes a round."""
    at = np.arange(3 * rounds) / 3
    cache = 5e7 * np.minimum(at / (0.1 * rounds), 1)
    return at, 3.5e8 + cache + slope * at + np.random.default_rng(3).normal(0, noise, len(at))


@pytest.mark.parametrize(
    ("slope", "noise", "grows"),
    [
        (0, 1e6, False),
        (5e3, 1e6, False),  # 2.25 MB of 400 over the whole run
        (2e4, 1e6, True),
        (2e4, 0, True),
        (0, 0, False),
        (-1e5, 1e6, False),
        (1e4, 1e8, False),  # more noise than growth
    ],
)
def test_memory_grows_where_it_rises_by_more_than_a_hundredth_and_more_than_chance(
    slope: float, noise: float, grows: bool
) -> None:
    at, values = memory(slope, noise)
    found = memory_growth(list(at), list(values), 500)
    assert found is not None
    assert found.grows is grows
    if noise <= 1e6:
        assert found.slope == pytest.approx(slope, abs=1e3)
    assert memory_growth(list(at[:300]), list(values[:300]), 500) is None


def test_descriptors_grow_by_one_and_neither_by_a_moment_nor_by_a_pool_that_breathes() -> None:
    at = list(np.arange(1500) / 3)
    spike = [9.0 if 700 <= index < 720 else 5.0 for index in range(1500)]
    pool = [*np.random.default_rng(3).integers(8, 12, 1500).astype(float)]
    for flat in (spike, pool, [5.0] * 1500, pool[::-1]):
        found = count_growth(at, flat, 500)
        assert found is not None
        assert not found.grows
    leaks = ([5.0 + index // 700 for index in range(1500)], [5.0 + (index > 1000) for index in range(1500)])
    for leak in (*leaks, [many + index // 700 for index, many in enumerate(pool)]):
        assert (found := count_growth(at, leak, 500)) is not None
        assert found.grows


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_faults_on_a_real_deployment_leave_two_whole_runs(tmp_path: Path) -> None:
    """One kills, one corrupts; the exit code is 0 only if every check of both holds."""
    file = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "scripts/faults.py", "--runs", "2", "--seed", "5", "--only", "corrupt", "--json", str(file)],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    runs = json.loads(file.read_text())["runs"]
    assert [run["ended"] for run in runs] == ["resumed", "resumed"]
    assert not any(run["failed"] for run in runs)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_lives_and_does_nothing_is_started_again() -> None:
    """Flower's SuperNode takes a TLS connection that ends in an orderly way for the end of everything, and stays."""
    folder = Path(tempfile.mkdtemp(prefix="e2e-", dir="/tmp"))
    said: list[str] = []
    try:
        with place(folder, 1, said.append) as up:
            (node,), (link,) = up.loopback.supernodes, up.links
            first = node.pid
            link.drop(orderly=True)
            wait_until(lambda: "UNEXPECTED_EOF" in node.logged(), 60, "its loop ends")
            link.heal()
            time.sleep(30)  # it has tried again by now, if it does
            assert node.pid == first
            assert node.alive
            assert link.entry not in [
                one.raddr.port for one in psutil.Process(first).net_connections("tcp") if one.raddr
            ]
            wait_until(lambda: node.pid != first, 2 * PATIENCE, "its supervisor starts it again")
            assert any("has had no connection" in line for line in said), said
            up.loopback.await_supernode(node, 2 * PATIENCE)
            assert up.heal()[1] == []
    finally:
        shutil.rmtree(folder, ignore_errors=True)
