"""What the app adds to a round: CPU seconds that go neither to training nor to evaluation.

A run in this process (`fedrec_app.simulate`), the functions that do the work wrapped in a clock: production code has no
trace of it. There is no SuperLink and no Ray, whose share `bench.py flower` measures.

    python scripts/benchmarks/overhead.py DATA     # DATA holds the folder ml-100k; some two minutes
"""

from __future__ import annotations

import functools
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fedrec_app import client
from fedrec_app.config import Scalar
from fedrec_app.private_state import PrivateState
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


def rounds(settings: dict[str, Scalar], num_nodes: int) -> list[dict[str, float]]:
    """Returns for each round CPU seconds of this process by kind of work, with "overhead", the rest, and "all".

    Args:
        settings: of the run; the first round loads data and compiles.
        num_nodes: how many nodes there are.
    """
    found: list[dict[str, float]] = []
    began = time.process_time()

    def on_round(*_: Any) -> None:
        nonlocal began
        now = time.process_time()
        spent = {kind: seconds[kind] for kind in WORK}
        found.append({**spent, "overhead": now - began - sum(spent.values()), "all": now - began})
        seconds.clear()
        began = now

    with clocks() as seconds:
        simulate(settings, num_nodes, watchers=[on_round])
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


def main(data_dir: Path, num_nodes: int, num_rounds: int) -> None:
    """Prints milliseconds a round for each model: the median of the rounds after the second."""
    kinds = [*WORK, "overhead", "all"]
    print("nodes", "model", *kinds, sep="\t")
    for name, settings in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            data: dict[str, Scalar] = {"data.name": "ml-100k", "data.path": str(data_dir.absolute() / "ml-100k")}
            run: dict[str, Scalar] = {"output-dir": folder, "num-server-rounds": num_rounds, **data, **settings}
            spent = rounds(run, num_nodes)[2:]
        medians = [1e3 * statistics.median(each[kind] for each in spent) for kind in kinds]
        print(num_nodes, name, *(f"{ms:.1f}" for ms in medians), sep="\t", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), 8, 12)
    main(Path(sys.argv[1]), 943, 5)
