"""`bench.py overhead`: what the app adds to a round, CPU time that goes neither to training nor to evaluation.

A run in this process (`fedrec_app.simulate`), the functions that do the work wrapped in a clock: production code has no
trace of it. There is no SuperLink and no Ray, whose share `bench.py flower` measures. "Flower's messages" are the same
ones, answered by an app that only reads and returns arrays: what of the overhead is not ours.
"""

from __future__ import annotations

import functools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.report import Report
from fedrec_app import client
from fedrec_app.config import Scalar
from fedrec_app.local_grid import LocalGrid
from fedrec_app.private_state import PrivateState
from fedrec_app.records import ARRAYS
from fedrec_app.simulate import simulate

WORK: dict[str, list[tuple[Any, str]]] = {
    "training": [(client, "fit_users"), (client, "fit_node")],
    "evaluation": [(client, "scorer"), (client, "evaluate_cohort")],
    "private state": [(PrivateState, "load"), (PrivateState, "save")],
}
"""Kind of work -> the functions that do it, none of which calls another. Scoring runs inside `evaluate_cohort`, fold-in
inside `scorer`."""
MODELS: dict[str, dict[str, Scalar]] = {
    "mf": {},
    "mf bce": {"model.options": '{"loss": "bce"}', "train.num-negatives": 4},
    "neumf": {"model.name": "neumf"},
}
FLOWER = "Flower's messages"
KINDS = ("overhead", FLOWER, *WORK, "all")
_QUICK = {"num_users": 6, "num_items": 60, "mean_interactions": 15, "min_interactions": 8}


def measure(
    data_dir: Path | None,
    threads: int,
    one_user_nodes: bool,
    quick: bool,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Returns milliseconds a round by kind of work for each model: medians of the rounds after the second.

    Args:
        data_dir: where ML-100K is; None: built-in synthetic users in its size.
        threads: of torch and of compiled loops.
        one_user_nodes: also 943 nodes.
        quick: tiny sizes.
        say: told what runs next.
    """
    torch.set_num_threads(threads)
    settings, data = _settings(data_dir, quick)
    num_rounds = {2: 3} if quick else {8: 12, 943: 5} if one_user_nodes else {8: 12}
    lines = []
    for num_nodes, total in num_rounds.items():
        for model, options in MODELS.items():
            say(f"{model}, {num_nodes} nodes")
            with tempfile.TemporaryDirectory() as folder:
                run = {**settings, **options, "output-dir": folder, "num-server-rounds": total}
                spent = rounds(run, num_nodes)[2:]
            medians = {kind: 1e3 * statistics.median(each[kind] for each in spent) for kind in KINDS}
            lines.append({"num_nodes": num_nodes, "model": model, "ms_a_round": medians})
    return Report("overhead", quick, f"{data}, {threads} thread(s)", more={"overhead": lines})


def table(report: Report) -> Table:
    """Returns the table of what `measure` found."""
    found = Table(title=f"bench.py overhead: {report.data}; CPU ms a round")
    found.add_column("model")
    for name in ("nodes", *KINDS):
        found.add_column(name, justify="right")
    for line in report.more["overhead"]:
        cells = (f"{line['ms_a_round'][kind]:.1f}" for kind in KINDS)
        found.add_row(line["model"], str(line["num_nodes"]), *cells)
    return found


def _settings(data_dir: Path | None, quick: bool) -> tuple[dict[str, Scalar], str]:
    if quick:
        return {"data.options": json.dumps(_QUICK)}, "synthetic, 6 users"
    if data_dir is None:
        return {}, "synthetic, 943 users, 1,682 items"
    folder = data_dir / "ml-100k" if (data_dir / "ml-100k").is_dir() else data_dir
    return {"data.name": "ml-100k", "data.path": str(folder.absolute())}, "ML-100K, leave-one-out"


def rounds(settings: dict[str, Scalar], num_nodes: int) -> list[dict[str, float]]:
    """Returns for each round CPU seconds of this process by kind of work: KINDS, where "overhead" is what is left.

    Args:
        settings: of the run; the first round loads data and compiles.
        num_nodes: how many nodes there are.
    """
    found: list[dict[str, float]] = []
    exchanged: list[Message] = []
    began = time.process_time()

    def on_round(*_: Any) -> None:
        nonlocal began
        now = time.process_time()
        spent = {kind: seconds[kind] for kind in WORK}
        spent |= {"overhead": now - began - sum(spent.values()), "all": now - began}
        found.append({**spent, FLOWER: _echoed(exchanged, num_nodes)})
        seconds.clear()
        exchanged.clear()
        began = time.process_time()

    with clocks() as seconds:
        simulate(settings, num_nodes, watchers=[on_round], taps=[exchanged.append])
    return found


@contextmanager
def clocks() -> Iterator[Counter[str]]:
    """Returns the CPU seconds that each kind of work takes from here on, which grow as it is done."""
    seconds: Counter[str] = Counter()
    with ExitStack() as stack:
        for kind, functions in WORK.items():
            for owner, name in functions:
                stack.enter_context(patch.object(owner, name, _timed(getattr(owner, name), kind, seconds)))
        yield seconds


def _timed(function: Callable[..., Any], kind: str, seconds: Counter[str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[kind] += time.process_time() - began  # type: ignore[assignment]

    return timed


def _echoed(exchanged: list[Message], num_nodes: int) -> float:
    """Returns CPU seconds of the same messages, answered by an app that reads arrays and returns those of the replies.

    Args:
        exchanged: messages, each followed by its reply.
        num_nodes: how many nodes there are.
    """
    answers = iter([_numpy(reply) for reply in exchanged[1::2]])
    app = ClientApp()

    def echo(message: Message, _: Context) -> Message:
        _numpy(message)
        arrays = {name: Array(array) for name, array in next(answers).items()}
        return Message(RecordDict({ARRAYS: ArrayRecord(arrays)}), reply_to=message)

    for register in (app.train, app.evaluate, app.query):
        register()(echo)
    grid = LocalGrid(app, {}, num_nodes)
    began = time.process_time()
    for message in exchanged[::2]:
        to = message.metadata
        again = Message(message.content, to.dst_node_id, to.message_type, group_id=to.group_id)
        for reply in grid.send_and_receive([again]):
            _numpy(reply)
    return time.process_time() - began


def _numpy(message: Message) -> dict[str, NDArray]:
    records = message.content.array_records.values()
    return {name: array.numpy() for record in records for name, array in record.items()}
