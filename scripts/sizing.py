#!/usr/bin/env python3
"""What a deployment takes, measured: the table of docs/deployment.md.

    python scripts/sizing.py --nodes 3 --rounds 4 -c 'data.name="ml-100k" data.path="data/ml-100k" seed=3'

A SuperLink with TLS and authentication and its SuperNodes run on this machine, in real processes, which share its
cores: seconds are those of a machine that does everything.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Table

from fedrec_app.config import RunConfig, Scalar, parse_overrides
from fedrec_app.console import stamped
from fedrec_app.deployment.dealt_data import DealtData
from fedrec_app.deployment.loopback import Loopback
from fedrec_app.deployment.part import Part
from fedrec_app.flower_process import ends_through_finally, one_thread_each
from fedrec_app.superlink_run import run_on_superlink

commands = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
stderr = Console(stderr=True)
EVERY = 0.3


@commands.command()
def main(
    nodes: Annotated[int, typer.Option(min=1, help="SuperNodes.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Of the run.")] = 4,
    config: Annotated[list[str] | None, typer.Option("-c", help="Settings, or a file of settings.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Brings up a deployment, trains on it, and prints what it took."""
    one_thread_each()
    given = parse_overrides(config or [])
    if given.get("privacy.unit", "none") != "none":
        raise typer.BadParameter("rounds of a private run are not timed", param_hint="-c")
    with tempfile.TemporaryDirectory(prefix="sizing-", dir="/tmp") as temporary:
        folder = Path(temporary)
        dealt = DealtData.deal(RunConfig.from_flat(given).data, nodes, folder / "shards")
        began = time.monotonic()
        with Loopback(folder / "d", dealt.nodes, say=stamped) as up:
            found: dict[str, Any] = {"seconds_to_accepted": time.monotonic() - began}
            settings: dict[str, Scalar] = {
                "num-server-rounds": rounds,
                "strategy.min-nodes": nodes,
                "output-dir": str(folder / "out"),
            }
            with Watch({"SuperLink": [up.superlink], "node": up.supernodes}) as watch:
                clock = Clock()
                done = run_on_superlink(
                    {**dealt.told(given), **settings}, up.connection, clock.line, clock.round, up.environment
                )
            if done.folder is None:
                raise SystemExit("the run's folder is not there")
            found |= clock.found() | watch.found() | _traffic(done.folder.read_metrics(), nodes)
            found["bytes_database"] = (up.folder / "superlink/state.db").stat().st_size
            found["bytes_run_folder"] = _size(done.folder.path)
            found["bytes_state_of_a_node"] = _size(up.node_folder(0) / "state")
    title = f"{nodes} nodes, {rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end"
    Console(width=None if Console().is_terminal else 120).print(_table(title, found))
    if as_json is not None:
        as_json.write_text(json.dumps({"title": title, **found}, indent=2) + "\n")


class Clock:
    """When a run has said and done what."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first_line = self._first_round = 0.0
        self._rounds: list[float] = []

    def line(self, text: str) -> None:
        """A line that was printed: the ServerApp names its folder before it does anything."""
        if "run folder" in text and not self._first_line:
            self._first_line = time.monotonic() - self._began

    def round(self, record: dict[str, Any]) -> None:
        """A round has ended."""
        self._first_round = self._first_round or time.monotonic() - self._began - float(record["seconds"])
        self._rounds.append(float(record["seconds"]))

    def found(self) -> dict[str, Any]:
        """Returns the seconds."""
        return {
            "seconds_to_first_line": self._first_line,
            "seconds_to_first_round": self._first_round,
            "seconds_of_a_round": self._rounds,
        }


class Watch:
    """The most memory that each kind of process has, and the processor time of each ClientApp.

    Args:
        parts: by whom they belong to.
    """

    def __init__(self, parts: dict[str, list[Part]]) -> None:
        self._parts = parts
        self._memory: dict[str, int] = defaultdict(int)
        self._seconds: dict[tuple[str, int, float], float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def found(self) -> dict[str, Any]:
        """Returns peaks in bytes, and seconds of a core by kind of process."""
        apps = [seconds for (kind, _, _), seconds in self._seconds.items() if kind == "node: flwr-clientapp"]
        return {
            "bytes_resident_at_most": dict(sorted(self._memory.items())),
            "core_seconds_of_a_message": statistics.mean(apps) if apps else None,
            "messages": len(apps),
        }

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            self._look()

    def _look(self) -> None:
        for owner, parts in self._parts.items():
            for part in parts:
                try:
                    root = psutil.Process(part.pid)
                    family = [root, *root.children(recursive=True)]
                except psutil.Error:
                    continue
                for process in family:
                    self._note(owner, process)

    def _note(self, owner: str, process: psutil.Process) -> None:
        try:
            kind = f"{owner}: {process.name()}"
            took = process.cpu_times()  # a child that has ended keeps its own until its parent asks
            self._seconds[kind, process.pid, process.create_time()] = took.user + took.system
            self._memory[kind] = max(self._memory[kind], process.memory_info().rss)
        except psutil.Error:
            return


def _traffic(records: list[dict[str, Any]], nodes: int) -> dict[str, Any]:
    return {
        f"bytes_{way}_of_a_round_and_node": statistics.median(record[f"bytes_{way}"] / nodes for record in records)
        for way in ("down", "up")
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _table(title: str, found: dict[str, Any]) -> Table:
    table = Table("what", "figure", title=title)
    rounds = sorted(found["seconds_of_a_round"])
    table.add_row("SuperLink and nodes, from nothing to accepted", f"{found['seconds_to_accepted']:.0f} s")
    table.add_row("`fedrec run` to the first line of its ServerApp", f"{found['seconds_to_first_line']:.0f} s")
    table.add_row("`fedrec run` to the first round", f"{found['seconds_to_first_round']:.0f} s")
    spread = f"{statistics.median(rounds):.0f} s ({rounds[0]:.0f} to {rounds[-1]:.0f})"
    table.add_row("a round: median (least to most)", spread)
    each = found["core_seconds_of_a_message"]
    table.add_row(f"a message on a node, mean of {found['messages']}", f"{each:.1f} s of a core" if each else "-")
    for way in ("down", "up"):
        table.add_row(f"bytes {way}, a round and node", f"{found[f'bytes_{way}_of_a_round_and_node'] / 1e3:,.0f} kB")
    for kind, most in found["bytes_resident_at_most"].items():
        table.add_row(f"memory, {kind}, at most", f"{most / 2**20:,.0f} MiB")
    for what in ("database", "run_folder", "state_of_a_node"):
        table.add_row(f"disk, {what.replace('_', ' ')}", f"{found[f'bytes_{what}'] / 1e3:,.0f} kB")
    return table


if __name__ == "__main__":
    with ends_through_finally():
        commands()
