#!/usr/bin/env python3
"""Measures fedrec against the naive way of doing the same, in one process and run: docs/performance.md says how.

    python scripts/bench.py train --data-dir DATA          local training: one torch model a user
    python scripts/bench.py aggregate                      the server's mean: Flower's FedAvg
    python scripts/bench.py evaluate                       full ranking: a loop over users
    python scripts/bench.py flower --data-dir DATA         flwr run: one node a user (some six minutes)
    python scripts/bench.py privacy --data-dir DATA        what clipping of single users costs: a round without it
    python scripts/bench.py async --data-dir DATA          one slow node: fedbuff against fedavg
    python scripts/bench.py overhead --data-dir DATA       what the app adds to a round, training taken off
    python scripts/bench.py scale                          growth with users and items, each size in its own process

`--json` prints an object as the last line; its `ratios` hold how many times as long the baseline takes, and those of
`privacy` how many times as long a round takes when users are clipped.
"""

from __future__ import annotations

import ctypes
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedrec_app.flower_process import one_thread_each

commands = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="fedrec against the naive way of doing the same; docs/performance.md says how it is measured.",
)  # fmt: skip
stderr = Console(stderr=True)

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", exists=True, file_okay=False,
        help="Folder with `ml-100k` (train, privacy, flower, async, overhead); left out: synthetic users in its size.",
    ),
]  # fmt: skip
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="How often each side is timed; the median counts.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of torch and of compiled loops.")]
Quick = Annotated[bool, typer.Option("--quick", help="Tiny sizes, to see that it runs; the figures mean nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object as the last line of standard output.")]


@commands.callback()
def _one_thread() -> None:
    # Before numpy and torch load: their libraries read these once.
    one_thread_each()


@commands.command()
def train(
    data_dir: DataDir = None,
    repeats: Repeats = 7,
    threads: Threads = 1,
    only: Annotated[str, typer.Option(help="Which of mf,neumf,vmap,threads.")] = "mf,neumf,vmap,threads",
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """A round of local training, every user a client: against one torch model a user."""
    from benchmarks.train import KEYS, measure

    keys = [key.strip() for key in only.split(",")]
    if unknown := [key for key in keys if key not in KEYS]:
        raise typer.BadParameter(f"{unknown[0]!r}: one of {', '.join(KEYS)}", param_hint="--only")
    with _progress() as say:
        report = measure(data_dir, _repeats(repeats, quick), threads, quick, keys, say)
    report.show(as_json)


@commands.command()
def privacy(
    data_dir: DataDir = None, repeats: Repeats = 7, threads: Threads = 1, quick: Quick = False, as_json: AsJson = False
) -> None:
    """A round of local training with each user's delta clipped: against one without."""
    from benchmarks.privacy import measure

    with _progress() as say:
        report = measure(data_dir, _repeats(repeats, quick), threads, quick, say)
    report.show(as_json)


@commands.command()
def aggregate(
    data_dir: DataDir = None, repeats: Repeats = 7, threads: Threads = 1, quick: Quick = False, as_json: AsJson = False
) -> None:
    """The weighted mean of sparse updates: against Flower's FedAvg. Makes its own data."""
    from benchmarks.aggregate import measure

    logging.getLogger("flwr").setLevel(logging.WARNING)  # after the import, which sets it too
    with _progress() as say:
        report = measure(_repeats(repeats, quick), threads, quick, say)
    report.show(as_json)


@commands.command()
def evaluate(
    data_dir: DataDir = None, repeats: Repeats = 7, threads: Threads = 1, quick: Quick = False, as_json: AsJson = False
) -> None:
    """Full ranking: against a loop over users. Makes its own data."""
    from benchmarks.evaluate import measure

    with _progress() as say:
        report = measure(_repeats(repeats, quick), threads, quick, say)
    report.show(as_json)


@commands.command()
def flower(
    data_dir: DataDir = None, repeats: Repeats = 4, threads: Threads = 1, quick: Quick = False, as_json: AsJson = False
) -> None:
    """Seconds a round of `flwr run`: 8 nodes with cohorts against one node a user. Repeats are rounds."""
    from benchmarks.flower import measure

    with _progress() as say:
        report = measure(data_dir, _repeats(repeats, quick), threads, quick, say)
    report.show(as_json)


@commands.command("async")
def asynchronous(
    data_dir: DataDir = None, repeats: Repeats = 3, threads: Threads = 1, quick: Quick = False, as_json: AsJson = False
) -> None:
    """Server steps with one slow node: fedbuff against fedavg, on nodes that are threads. Repeats are runs."""
    from benchmarks.asynchronous import measure

    logging.getLogger("flwr").setLevel(logging.WARNING)  # after the import, which sets it too
    with _progress() as say:
        report = measure(data_dir, _repeats(repeats, quick), threads, quick, say)
    report.show(as_json)


@commands.command()
def overhead(
    data_dir: DataDir = None,
    threads: Threads = 1,
    one_user_nodes: Annotated[
        bool, typer.Option("--one-user-nodes", help="Also 943 nodes of one user, which takes minutes.")
    ] = False,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """What the app adds to a round of a run in this process: CPU milliseconds by kind of work."""
    from benchmarks.overhead import measure, table

    logging.getLogger("flwr").setLevel(logging.WARNING)  # after the import, which sets it too
    with _progress() as say:
        report = measure(data_dir, threads, one_user_nodes, quick, say)
    (stderr if as_json else Console()).print(table(report))
    report.show(as_json)


@commands.command()
def scale(data_dir: DataDir = None, threads: Threads = 1, quick: Quick = False, as_json: AsJson = False) -> None:
    """Growth with users and items: rate and peak memory, each size in its own process. Makes its own data."""
    from benchmarks.scale import measure, tables

    with _progress() as say:
        report = measure(threads, quick, say)
    for table in tables(report):
        (stderr if as_json else Console()).print(table)
    report.show(as_json)


@commands.command(hidden=True)
def one_size(num_users: int, num_items: int, threads: int, long_enough: float) -> None:
    """One size of `scale`."""
    from benchmarks.scale import one_size as measure_one

    print(json.dumps(measure_one(num_users, num_items, threads, long_enough)))


def _repeats(asked: int, quick: bool) -> int:
    return 1 if quick else asked


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    with stderr.status("starting") as status:
        yield lambda text: status.update(text) if stderr.is_terminal else stderr.print(text, highlight=False)


def _one_arena() -> None:
    """Has the C library give back what threads free, so that memory that is used anew is seen as such."""
    arena_max = -8
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(arena_max, 1)


if __name__ == "__main__":
    _one_arena()
    commands()
