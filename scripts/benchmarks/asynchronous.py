"""`bench.py async`: server steps of `fedbuff` against rounds of `fedavg` where one node is ten times slower.

The nodes are threads that run the real ClientApp, side by side, and sleep before they train: what is measured is
waiting, as with nodes that are far away or slow, and not how fast this machine computes. Both sides take the same
number of server steps and validate once, after the last, which waits for the slow node too. They do not do the same
work: a step of `fedbuff` sees a part of the nodes, and so both tell what they have learned.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.async_grid import ThreadGrid
from benchmarks.measure import Timing
from benchmarks.report import Comparison, Report
from fedrec_app import client_app
from fedrec_app.config import Scalar
from fedrec_app.server_app import run_server

SLOWER = 10
LEARNING_RATE = 1000.0
"""Of the server, on both sides. The model's own recipe is Adam; a plain step is as large with some thousand."""
_QUICK = {"num_users": 24, "num_items": 60, "mean_interactions": 15, "min_interactions": 8}


@dataclass(frozen=True)
class Size:
    """Of a federation: nodes, server steps, updates a step of `fedbuff`, and seconds that a quick node takes."""

    num_nodes: int = 8
    steps: int = 20
    buffer_size: int = 4
    pause: float = 0.05


def measure(
    data_dir: Path | None, repeats: int, threads: int, quick: bool, say: Callable[[str], None] = lambda text: None
) -> Report:
    """Returns wall seconds of all server steps by both strategies, which take turns.

    Args:
        data_dir: where ML-100K is; None: built-in synthetic users in its size.
        repeats: runs of each, after one that is not timed.
        threads: of torch and of compiled loops, on each node.
        quick: tiny sizes.
        say: told which run has ended.
    """
    torch.set_num_threads(threads)
    settings, data = _settings(data_dir, quick)
    size = Size(num_nodes=4, steps=5, buffer_size=2, pause=0.03) if quick else Size()
    step = {"name": "sgd", "learning_rate": LEARNING_RATE}
    options = {
        "fedavg": {"learning_rate": LEARNING_RATE},
        "fedbuff": {"buffer_size": size.buffer_size, "server_optimizer": step},
    }
    sides = {name: {"strategy.name": name, "strategy.options": json.dumps(chosen)} for name, chosen in options.items()}
    timings, checks = {name: Timing() for name in sides}, {}
    for repeat in range(repeats + 1):
        for name, chosen in sides.items():
            seconds, ndcg = _run({**settings, **chosen, "num-server-rounds": size.steps}, size)
            say(f"{name}: {size.steps} steps took {seconds:.2f} s")
            checks[f"ndcg@10 of {name}"] = ndcg
            if repeat:
                timings[name].wall.append(seconds)
    title = f"{size.steps} server steps, {size.num_nodes} nodes of which one takes {SLOWER} times {size.pause:g} s"
    ours = f"fedbuff, buffer of {size.buffer_size}"
    found = Comparison("async", title, "fedavg", ours, timings["fedavg"], timings["fedbuff"], "wall", checks)
    return Report("async", quick, data, [found])


def _settings(data_dir: Path | None, quick: bool) -> tuple[dict[str, Scalar], str]:
    if quick:
        return {"data.options": json.dumps(_QUICK)}, "synthetic, 24 users"
    if data_dir is None:
        return {}, "synthetic, 943 users, 1,682 items"
    folder = data_dir / "ml-100k" if (data_dir / "ml-100k").is_dir() else data_dir
    return {"data.name": "ml-100k", "data.path": str(folder.absolute())}, "ML-100K, leave-one-out"


def _run(settings: dict[str, Scalar], size: Size) -> tuple[float, float]:
    """Returns wall seconds of all steps, the validation among them, and NDCG@10 on test."""
    seconds = []

    def on_round(record: Any, *_: Any) -> None:
        seconds.append(record.seconds)

    with tempfile.TemporaryDirectory(prefix="bench-async-") as folder:
        flat = {**settings, "output-dir": folder, "evaluate.every": size.steps, "evaluate.bootstrap": 0}
        pauses = [size.pause * (SLOWER if partition == 0 else 1) for partition in range(size.num_nodes)]
        with ThreadGrid(client_app.app, flat, pauses).running() as grid:
            summary = run_server(grid, flat, watchers=[on_round]).summary
    if summary["rounds"] != size.steps or summary["dropped_updates"]:
        raise RuntimeError(f"{summary['rounds']} steps, dropped {summary['dropped_updates']}")
    return sum(seconds), summary["test"]["ndcg@10"]
