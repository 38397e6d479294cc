"""`bench.py flower`: seconds a round through `flwr run` and Ray, a few nodes with cohorts against one node a user.

The work is the same to the last digit (a user is a federated client in both), so what differs is the cost of a message:
each one is pickled, handed to a Ray process and back, whatever it asks for.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import Timing
from benchmarks.report import Comparison, Report
from fedrec_app.config import Scalar
from fedrec_app.flower_run import run_with_flower

FEW_NODES = 8
# Metrics of both placements agree to this much.
_TOLERANCE = 1e-4


def measure(
    data_dir: Path | None, repeats: int, threads: int, quick: bool, say: Callable[[str], None] = lambda text: None
) -> Report:
    """Returns seconds a round of `flwr run` with few nodes, before and after one with a node a user.

    Args:
        data_dir: where ML-100K is; None: built-in synthetic users in its size.
        repeats: rounds with a node a user that are timed, after a first one that is not: it starts the workers. With
            few nodes, where the tenths of a second between looks for messages matter, at least ten.
        threads: of the clients.
        quick: tiny sizes.
        say: told which round has ended.
    """
    settings, users, data = _settings(data_dir, quick)
    few = 2 if quick else FEW_NODES
    # Ray gives a worker as many threads as CPUs unless this is set.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    of_few = repeats if quick else max(repeats, 10)
    first = _run(settings, few, of_few, say)
    many = _run(settings, users, repeats, say)
    second = _run(settings, few, of_few, say)
    checks = {
        "difference_of_loss": abs(first[repeats - 1]["train"]["loss"] - many[-1]["train"]["loss"]),
        "difference_of_ndcg": abs(first[repeats - 1]["validation"]["ndcg@10"] - many[-1]["validation"]["ndcg@10"]),
    }
    if not max(checks.values()) < _TOLERANCE:
        raise RuntimeError(f"the two placements do not train the same model: {checks}")
    report = Report("flower", quick, data)
    report.comparisons.append(
        Comparison(
            "flower", "a round of flwr run: training and validation", f"{users} nodes of one user",
            f"{few} nodes with cohorts", _timing(many), _timing(first, second), "wall", checks,
        )
    )  # fmt: skip
    return report


def _settings(data_dir: Path | None, quick: bool) -> tuple[dict[str, Scalar], int, str]:
    # The roll-call of a thousand nodes takes longer than the default of a minute.
    settings: dict[str, Scalar] = {"data.partition": "users", "strategy.join-timeout": 900.0}
    if quick:
        users = 6
        settings["data.options"] = (
            f'{{"num_users": {users}, "num_items": 60, "mean_interactions": 15, "min_interactions": 8}}'
        )
        return settings, users, "synthetic, 6 users"
    if data_dir is None:
        return settings, 943, "synthetic, 943 users, 1,682 items"
    folder = data_dir / "ml-100k" if (data_dir / "ml-100k").is_dir() else data_dir
    return {**settings, "data.name": "ml-100k", "data.path": str(folder.absolute())}, 943, "ML-100K, leave-one-out"


def _run(settings: dict[str, Scalar], num_nodes: int, repeats: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Returns the records of the rounds that follow the first."""
    total = repeats + 1

    def on_round(record: dict[str, Any]) -> None:
        say(f"{num_nodes} nodes: round {record['round']} of {total} took {record['seconds']:.2f} s")

    say(f"{num_nodes} nodes: Flower and Ray start, then the roll-call")
    with tempfile.TemporaryDirectory(prefix="bench-flower-") as folder:
        finished = run_with_flower({**settings, "num-server-rounds": total}, Path(folder), num_nodes, on_round=on_round)
        if dropped := finished.read_summary()["dropped_updates"]:
            raise RuntimeError(f"{num_nodes} nodes: replies were dropped: {dropped}")
        return finished.read_metrics()[1:]


def _timing(*runs: list[dict[str, Any]]) -> Timing:
    return Timing(wall=[record["seconds"] for rounds in runs for record in rounds])
