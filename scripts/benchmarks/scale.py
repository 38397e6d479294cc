"""`bench.py scale`: users a CPU-second and memory as users and items grow, each size in a process of its own.

Matrix factorisation with sampled negatives, one thread. What cannot be measured in one process, traffic and sums on
the server, is computed, and said to be.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from rich.table import Table

from benchmarks.cohorts import Task, mf_task, short_histories, zipf_cohort
from benchmarks.measure import MB, process_memory
from benchmarks.report import Report
from benchmarks.train import PLAN, fit
from fedrec_app.training.users import fit_users

NUM_ITEMS, NUM_USERS = 20_000, 10_000
DIM = 32
BENCH = Path(__file__).resolve().parent.parent / "bench.py"
_ROWS_OF_A_USER = 500
# Short rounds are repeated for so many CPU seconds.
_LONG_ENOUGH = 1.0
_ONLY_IN_JSON = ("round_wall_seconds", "peak_before_training_mb", "program_mb")


def measure(threads: int, quick: bool, say: Callable[[str], None] = lambda text: None) -> Report:
    """Returns how cost grows: with users at 20k items, with items at 10k users, and computed sizes.

    Args:
        threads: of torch and of compiled loops.
        quick: tiny sizes.
        say: told what runs next.
    """
    torch.set_num_threads(threads)
    users = [50, 200] if quick else [100, 1_000, 10_000, 100_000]
    items = [200, 400] if quick else [1_682, 20_000, 100_000, 1_000_000]
    fixed_items, fixed_users = (200, 200) if quick else (NUM_ITEMS, NUM_USERS)

    @cache
    def at(num_users: int, num_items: int) -> dict[str, float]:
        say(f"{num_users:,} users, {num_items:,} items")
        return _in_own_process(num_users, num_items, threads, 0.05 if quick else _LONG_ENOUGH)

    by_users = [at(number, fixed_items) for number in users]
    by_items = [at(fixed_users, number) for number in items]
    compared = by_users if quick else by_users[1:]
    rates = [size["users_per_cpu_second"] for size in compared]
    first, last = compared[0], compared[-1]
    found = {
        "by_users": by_users,
        "by_items": by_items,
        "computed": [computed(number) for number in items],
        "rate_largest_over_smallest": max(rates) / min(rates),
        "memory_without_data_over_first": (last["peak_mb"] - last["data_mb"]) / first["peak_mb"],
        "compared_users": [first["num_users"], last["num_users"]],
    }
    data = f"synthetic, Zipf, 20 to 50 items a user; mf, bce, d = {DIM}, {threads} thread(s)"
    return Report("scale", quick, data, more={"scale": found})


def tables(report: Report) -> list[Table]:
    """Returns the tables of what `measure` found."""
    found = report.more["scale"]
    first, last = found["compared_users"]
    grown = _table(f"bench.py scale: {report.data}", found["by_users"])
    grown.caption = (
        f"From {first:,} to {last:,} users: fastest rate over slowest {found['rate_largest_over_smallest']:.2f}; peak "
        f"without the data over the first's peak {found['memory_without_data_over_first']:.2f}."
    )
    return [
        grown,
        _table("the same by items", found["by_items"]),
        _table("computed, not measured: megabytes by items", found["computed"]),
    ]


def _table(title: str, lines: list[dict[str, float]]) -> Table:
    table = Table(title=title)
    names = [name for name in lines[0] if name not in _ONLY_IN_JSON]
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for line in lines:
        table.add_row(*(f"{line[name]:,.0f}" if line[name] >= 100 else f"{line[name]:.3g}" for name in names))
    return table


def one_size(num_users: int, num_items: int, threads: int, long_enough: float) -> dict[str, float]:
    """Returns what a round costs at one size; runs in a process of its own, whose peak is the answer.

    Args:
        num_users, num_items: the size.
        threads: of torch and of compiled loops.
        long_enough: CPU seconds to spend on rounds, at least.
    """
    torch.set_num_threads(threads)
    fit(mf_task(zipf_cohort(short_histories(20), 100)), PLAN)  # compiles
    at_start = process_memory("VmRSS")
    task = mf_task(zipf_cohort(short_histories(num_users), num_items))
    built = process_memory("VmHWM")
    rounds, cpu, wall = 0, time.process_time(), time.perf_counter()
    while rounds == 0 or time.process_time() - cpu < long_enough:
        # Not `fit`, which copies the private rows.
        fit_users(task.model, task.cohort, task.shared, task.rows, PLAN)
        rounds += 1
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak, data = process_memory("VmHWM"), data_bytes(task)
    return {
        "num_users": num_users,
        "num_items": num_items,
        "users_per_cpu_second": num_users * rounds / cpu,
        "round_cpu_seconds": cpu / rounds,
        "round_wall_seconds": wall / rounds,
        "peak_mb": peak / MB,
        "peak_before_training_mb": built / MB,
        "program_mb": at_start / MB,
        "data_mb": data / MB,
        "peak_beyond_both_mb": (peak - at_start - data) / MB,
        "table_mb": sum(array.nbytes for array in task.shared.values()) / MB,
    }


def data_bytes(task: Task) -> int:
    """Returns the bytes of what belongs to the users: histories, ids and private rows."""
    train = task.cohort.train
    ids = sum(sys.getsizeof(user) + 8 for user in task.cohort.user_ids)
    return train.items.nbytes + train.indptr.nbytes + ids + sum(array.nbytes for array in task.rows.values())


def computed(num_items: int) -> dict[str, float]:
    """Returns megabytes that follow from the number of items alone.

    Args:
        num_items: size of the catalog.
    """
    row = 4 * DIM
    return {
        "num_items": num_items,
        "table_down_mb": num_items * row / MB,
        "dense_update_up_mb": num_items * row / MB,
        # A row's position goes along as int32; a user with 100 interactions and 4 negatives each meets 500 rows.
        "update_of_a_user_up_mb": min(_ROWS_OF_A_USER * (row + 4), num_items * row) / MB,
        # float64.
        "sums_of_a_node_mb": 2 * num_items * row / MB,
        # The sum, what rounding took away from it, both together at the end, and the mean, all float64; a third part of
        # the sum is reserved and as a rule not touched. The server optimiser's own state comes on top.
        "sums_of_the_server_mb": 8 * num_items * row / MB,
        "dense_updates_of_200_nodes_mb": 200 * num_items * row / MB,
    }


def _in_own_process(num_users: int, num_items: int, threads: int, long_enough: float) -> dict[str, float]:
    command = [sys.executable, str(BENCH), "one-size", *map(str, (num_users, num_items, threads, long_enough))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{num_users} users, {num_items} items: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
