#!/usr/bin/env python3
"""Long runs, to see whether a process grows: docs/faults.md says what came out.

    python scripts/soak.py simulation --rounds 500 --nodes 8
    python scripts/soak.py deployment --rounds 50 --nodes 2

Memory, file descriptors and threads of every process are looked at all along. After the first tenth of the rounds,
which fills caches, memory must not rise by more than 1 % and by more than chance, and descriptors not at all. The exit
code is 1 where something grows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedrec_app.console import stamped
from fedrec_app.flower_process import ends_through_finally, one_thread_each

commands = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
stderr = Console(stderr=True)

Nodes = Annotated[int, typer.Option(min=1, help="How many nodes.")]
AsJson = Annotated[Path | None, typer.Option("--json", help="File for the figures and all samples.")]
Png = Annotated[Path | None, typer.Option(help="File for a picture of the memory of each process.")]
_DATA = '{"num_users": 200, "num_items": 300, "mean_interactions": 20, "min_interactions": 8}'


@commands.command()
def simulation(
    rounds: Annotated[int, typer.Option(min=1, help="How many.")] = 500,
    nodes: Nodes = 8,
    as_json: AsJson = None,
    png: Png = None,
) -> None:
    """A run in one process (`fedrec simulate`), which holds server and nodes for as long as the run lasts."""
    import psutil
    from campaign.samples import Sampler

    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as folder:
        settings = _settings(rounds, Path(folder), {"data.options": _DATA, "evaluate.every": 1})
        # Python's own file, so that the process which is looked at is the one that works.
        command = [sys.executable, "-m", "fedrec_app.cli", "simulate", "--num-nodes", str(nodes), "-c", settings]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        watched = {"server and nodes": psutil.Process(process.pid)}
        with Sampler(lambda: watched, lambda: _rounds(Path(folder)), 0.1) as sampler:
            done = _wait(process, Path(folder), rounds)
    _show(f"simulation, {nodes} nodes, {done} rounds", sampler.series, done, as_json, png)


@commands.command()
def deployment(
    rounds: Annotated[int, typer.Option(min=1, help="How many.")] = 50,
    nodes: Nodes = 2,
    as_json: AsJson = None,
    png: Png = None,
) -> None:
    """A run on a SuperLink with TLS and authentication, and its SuperNodes. ClientApps live for one message each."""
    import psutil
    from campaign.place import SERVER_APP, place
    from campaign.samples import Sampler

    from fedrec_app.errors import FedrecError
    from fedrec_app.flower_process import executable

    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as folder, place(Path(folder), nodes, stamped) as up:
        more = {**up.settings, "evaluate.every": rounds, "checkpoint.every": 5}
        settings = _settings(rounds, Path(folder), more)
        command = [executable("fedrec"), "run", up.loopback.connection, "-c", settings]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                command, env=up.loopback.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

        def watched() -> Mapping[str, psutil.Process]:
            found = {"fedrec run": psutil.Process(process.pid)} if process.poll() is None else {}
            for part in up.parts:
                name = part.name.removeprefix("the ")
                with suppress(psutil.Error, FedrecError):
                    found[name] = psutil.Process(part.pid)
                    for child in found[name].children(recursive=True):
                        for command, kind in (("flower-superexec", f"executor of {name}"), (SERVER_APP, "ServerApp")):
                            if any(Path(word).name == command for word in child.cmdline()):
                                found[kind] = child
            return found

        with Sampler(watched, lambda: _rounds(Path(folder)), 3.0) as sampler:
            done = _wait(process, Path(folder), rounds)
    _show(f"deployment, {nodes} nodes, {done} rounds", sampler.series, done, as_json, png)


def _settings(rounds: int, folder: Path, more: Mapping[str, Any]) -> str:
    from campaign.place import SETTINGS

    from fedrec_app.config import to_toml

    one_thread_each()
    path = folder / "run.toml"
    own = {"num-server-rounds": rounds, "output-dir": str(folder / "out"), "strategy.round-timeout": 120.0}
    path.write_text(to_toml({**SETTINGS, **more, **own}))
    return str(path)


def _rounds(folder: Path) -> int:
    for path in (folder / "out").glob("????-??-??/*/metrics.jsonl"):
        return path.read_bytes().count(b"\n")
    return 0


def _wait(process: subprocess.Popen[bytes], folder: Path, rounds: int) -> int:
    """Returns how many rounds there are when the run has ended, or a Ctrl-C has ended it."""
    told = 0
    try:
        while process.poll() is None:
            if (done := _rounds(folder)) >= told + max(rounds // 10, 1):
                told = done
                stamped(f"{done} of {rounds} rounds")
            time.sleep(0.5)
        if process.returncode:
            raise SystemExit((folder / "log").read_text()[-2000:])
    except KeyboardInterrupt:
        stamped("ended early: what there is so far")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=30)
    return _rounds(folder)


def _show(title: str, series: Mapping[str, Any], rounds: int, as_json: Path | None, png: Path | None) -> None:
    from dataclasses import asdict

    from campaign.samples import findings

    rows = findings(series, rounds)
    if not rows:
        raise SystemExit("no process was there for long enough to be judged: more rounds are needed")
    table = Table(title=title)
    table.add_column("process")
    for name in ("MB", "kB a round", "± (1 s.e.)", "growth", "files", "most", "threads"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for row in rows:
        grows = row["grows"]
        table.add_row(
            row["process"], f"{row['mb']:.1f}", f"{row['kb_a_round']:+.2f}", f"{row['kb_error']:.2f}",
            f"{row['growth']:+.2%}", f"{row['files']:.0f}", f"{row['most_files']:.0f}", f"{row['threads']:.0f}",
            f"[red]{', '.join(grows)} grow[/red]" if grows else "flat",
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 140).print(table)
    if as_json is not None:
        samples = {name: asdict(one) for name, one in series.items()}
        as_json.write_text(json.dumps({"title": title, "processes": rows, "samples": samples}) + "\n")
    if png is not None:
        _picture(title, series, [row["process"] for row in rows], png)
    if any(row["grows"] for row in rows):
        raise typer.Exit(1)


def _picture(title: str, series: Mapping[str, Any], names: list[str], png: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name in names:
        axes.plot(series[name].rounds, [value / 1e6 for value in series[name].memory], label=name, linewidth=1)
    axes.set(title=title, xlabel="round", ylabel="resident MB", ylim=(0, None))
    axes.legend(fontsize=7)
    figure.savefig(png, dpi=120)


if __name__ == "__main__":
    with ends_through_finally():  # or SIGTERM would leave a deployment behind
        commands()
