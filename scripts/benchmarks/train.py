"""`bench.py train`: a round of user-level local training against one torch model a user, and threads against one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from benchmarks.baseline_train import one_model_a_user
from benchmarks.cohorts import Task, describe, mf_task, ml_100k_or_alike, neumf_task, short_histories, zipf_cohort
from benchmarks.measure import interleaved
from benchmarks.report import Comparison, Report
from fedrec_app.training.plan import Arrays, FitPlan
from fedrec_app.training.users import Engine, fit_users

KEYS = ("mf", "neumf", "vmap", "threads")
PLAN = FitPlan(
    seed=0, server_round=1, batch_size=256, num_negatives=4, learning_rate=0.1, private_learning_rate=0.1
)  # fmt: skip
BASELINE = "one torch model a user"
_ALIKE = 0.25


def measure(
    data_dir: Path | None,
    repeats: int,
    threads: int,
    quick: bool,
    only: Iterable[str] = KEYS,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Returns the figures of training.

    Args:
        data_dir: where ML-100K is; None: synthetic users in its size.
        repeats: how often each is timed.
        threads: of torch and of compiled loops.
        quick: tiny sizes.
        only: which keys.
        say: told what runs next.
    """
    torch.set_num_threads(threads)
    wanted = set(only)
    cohort, data = ml_100k_or_alike(data_dir, quick)
    report = Report("train", quick, data)
    if "mf" in wanted:
        report.comparisons += _against_models(mf_task(cohort), {"mf": None}, "MF", repeats, say)
    both: dict[str, Engine | None] = {"neumf": None, "vmap": "several-steps"}
    engines = {key: engine for key, engine in both.items() if key in wanted}
    if engines:
        report.comparisons += _against_models(neumf_task(cohort), engines, "NeuMF, MLP 64-32-16-8", repeats, say)
    if "threads" in wanted:
        num_users, num_items = (200, 500) if quick else (100_000, 20_000)
        task = mf_task(zipf_cohort(short_histories(num_users), num_items))
        report.comparisons.append(_threads(task, max(threads, 2), repeats, say))
        torch.set_num_threads(threads)
    return report


def fit(task: Task, plan: FitPlan, engine: Engine | None = None) -> tuple[Arrays, float]:
    """Returns the sums over all users as fedrec computes them: of weighted deltas, and of losses.

    Args:
        task: model and users.
        plan: what to do.
        engine: which one; None: the one that `fit_users` chooses.
    """
    sums = fit_users(task.model, task.cohort, task.shared, task.fresh_rows(), plan, engine)
    return sums.delta, sums.loss


def _against_models(
    task: Task, engines: dict[str, Engine | None], name: str, repeats: int, say: Callable[[str], None]
) -> list[Comparison]:
    contestants: dict[str, Callable[[], tuple[Arrays, float]]] = {
        f"{name}, {BASELINE}": lambda: one_model_a_user(task, task.fresh_rows(), PLAN)
    }
    for engine in engines.values():
        contestants[f"{name}, {_engine(engine)}"] = lambda engine=engine: fit(task, PLAN, engine)
    found = interleaved(contestants, repeats, say)
    timings, results = list(found.timings.values()), list(found.results.values())
    comparisons = []
    for place, (key, engine) in enumerate(engines.items(), start=1):
        checks = _alike(results[0], results[place])
        title = f"{name}: a round over {len(task.cohort):,} users, negatives drawn"
        comparisons.append(Comparison(key, title, BASELINE, _engine(engine), timings[0], timings[place], checks=checks))
    return comparisons


def _engine(engine: Engine | None) -> str:
    return f"fit_users, {'its own choice' if engine is None else engine}"


def _alike(baseline: tuple[Arrays, float], ours: tuple[Arrays, float]) -> dict[str, float]:
    """Returns how sizes of sums compare; the samples differ, so only the sizes are held to be alike.

    Raises:
        RuntimeError: they are not, so one of the two does other work.
    """
    checks = {"loss": ours[1] / baseline[1]}
    for name, delta in baseline[0].items():
        checks[name] = float(np.linalg.norm(ours[0][name]) / np.linalg.norm(delta))
    if bad := {name: value for name, value in checks.items() if not abs(value - 1) <= _ALIKE}:
        raise RuntimeError(f"baseline and fit_users do not do the same: ours over the baseline's is {bad}")
    return checks


def _threads(task: Task, threads: int, repeats: int, say: Callable[[str], None]) -> Comparison:
    def with_threads(number: int) -> Callable[[], tuple[Arrays, float]]:
        def run() -> tuple[Arrays, float]:
            torch.set_num_threads(number)
            return fit(task, PLAN)

        return run

    one, more = "1 thread", f"{threads} threads"
    found = interleaved({one: with_threads(1), more: with_threads(threads)}, repeats, say)
    checks = _alike(found.results[one], found.results[more])
    title = f"MF: a round over {describe(task.cohort)}"
    return Comparison("threads", title, one, more, found.timings[one], found.timings[more], "wall", checks)
