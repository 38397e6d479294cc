"""`bench.py privacy`: a round of user-level local training with every user's delta clipped against one without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.cohorts import Task, mf_task, ml_100k_or_alike, task_of
from benchmarks.measure import interleaved
from benchmarks.report import Comparison, Report
from fedrec_app.models.mf import MatrixFactorization
from fedrec_app.models.sasrec import SasRec
from fedrec_app.training.plan import FitPlan, FitSums
from fedrec_app.training.users import fit_users

PLAN = FitPlan(seed=0, server_round=1, weighting="users", learning_rate=0.1, private_learning_rate=0.1)
CLIP_NORM, OUT_OF_REACH = 1e-3, 1e9
_ALIKE = 1e-5


def measure(
    data_dir: Path | None, repeats: int, threads: int, quick: bool, say: Callable[[str], None] = lambda text: None
) -> Report:
    """Returns the figures of clipping.

    Args:
        data_dir: where ML-100K is; None: synthetic users in its size.
        repeats: how often each is timed.
        threads: of torch and of compiled loops.
        quick: tiny sizes.
        say: told what runs next.
    """
    torch.set_num_threads(threads)
    cohort, data = ml_100k_or_alike(data_dir, quick)
    everything = MatrixFactorization(32, MatrixFactorization.Options(init_std=0.1))
    transformer = SasRec(16 if quick else 64, SasRec.Options())
    rounds: dict[str, tuple[str, Task, FitPlan]] = {
        "clip-mf": ("MF, all items", task_of(everything, cohort), replace(PLAN, num_negatives=0)),
        "clip-mf-bce": ("MF, negatives drawn", mf_task(cohort), replace(PLAN, batch_size=256, num_negatives=4)),
        "clip-transformer": (
            "SASRec, one step, full softmax",
            task_of(transformer, cohort),
            replace(PLAN, num_negatives=0),
        ),
    }
    report = Report("privacy", quick, data)
    for key, (name, what, plan) in rounds.items():
        report.comparisons.append(_cost(key, name, what, plan, repeats, say))
    return report


def _cost(key: str, name: str, what: Task, plan: FitPlan, repeats: int, say: Callable[[str], None]) -> Comparison:
    def fit(clip_norm: float) -> FitSums:
        return fit_users(what.model, what.cohort, what.shared, what.fresh_rows(), replace(plan, clip_norm=clip_norm))

    clipped, free = f"{name}, clipped", f"{name}, not clipped"
    found = interleaved({clipped: lambda: fit(CLIP_NORM), free: lambda: fit(0.0)}, repeats, say)
    checks = _alike(fit(OUT_OF_REACH), found.results[free])
    sums = found.results[clipped]
    checks["share that was clipped"] = 0.5 - sums.centred_unclipped / sums.num_users
    title = f"{name}: a round over {len(what.cohort):,} users"
    return Comparison(key, title, clipped, free, found.timings[clipped], found.timings[free], checks=checks)


def _alike(clipped: FitSums, free: FitSums) -> dict[str, float]:
    """Returns how far sums are off that a bound out of reach should leave alone.

    Raises:
        RuntimeError: too far, so clipping does other work.
    """
    off = sum(float(np.square(clipped.delta[name] - delta).sum()) for name, delta in free.delta.items())
    size = sum(float(np.square(delta).sum()) for delta in free.delta.values())
    difference = float(np.sqrt(off / size))
    if not difference <= _ALIKE:
        raise RuntimeError(f"clipping at {OUT_OF_REACH:g} moves sums by {difference:g} of their size")
    return {"difference where nobody reaches the bound": difference}
