"""Every engine against one torch model a user, on ML-100K: for each fourth user by length of history, or for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedrec_app.data import sources
from fedrec_app.data.partition import Prepared
from fedrec_app.models.base import Recommender, initialise
from fedrec_app.models.mf import MatrixFactorization
from fedrec_app.models.neumf import NeuMF
from fedrec_app.training.plan import FitPlan
from fedrec_app.training.users import Engine, fit_users
from tests.unit.training.oracle import private_of, shared_of, train_one_user

ONE = FitPlan(seed=3, server_round=4, learning_rate=0.5, private_learning_rate=0.5)
SEVERAL = replace(ONE, batch_size=64, local_epochs=2)
ROUNDING = 2.0**-25
"""Half a unit in the last place of parameters between 1/4 and 1/2, the largest there are here: what float32 loses in a
step."""
MODELS: dict[str, tuple[type[Recommender], dict[str, Any]]] = {
    "mf": (MatrixFactorization, {"loss": "bce"}),
    "mf all items": (MatrixFactorization, {"loss": "all-items"}),
    "neumf": (NeuMF, {"layers": (16, 8)}),
}
CASES: list[tuple[str, FitPlan, list[Engine | None]]] = [
    ("mf", ONE, ["fused", "one-step", "several-steps", None]),
    ("mf", replace(ONE, clip_norm=0.005, weighting="users"), ["fused", "one-step", "several-steps", None]),
    ("mf all items", replace(ONE, learning_rate=0.05, clip_norm=0.001, weighting="users"), ["fused", "one-step"]),
    ("mf", SEVERAL, ["fused", "several-steps"]),
    ("mf", replace(SEVERAL, clip_norm=0.01, weighting="users"), ["fused", "several-steps"]),
    ("mf all items", replace(ONE, learning_rate=0.05), ["fused", "one-step", "several-steps"]),
    ("mf", replace(SEVERAL, max_grad_norm=0.02), ["several-steps", None]),
    ("neumf", ONE, ["one-step", "several-steps"]),
    ("neumf", replace(SEVERAL, local_epochs=1), ["several-steps", None]),
]


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)], ids=["each fourth", "all"])
@pytest.mark.parametrize(("name", "plan", "engines"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_engines_equal_one_torch_model_a_user(
    ml_100k: Path, name: str, plan: FitPlan, engines: list[Engine | None], every: int
) -> None:
    dataset = sources.load("ml-100k", str(ml_100k), "", 5, "{}", 0)
    everybody = Prepared.of(dataset, "leave-one-out", 0).cohort(None, 1, "users", 0)
    assert len(everybody) == 943
    longest_first = np.argsort(-everybody.train.lengths, kind="stable")
    cohort = everybody.select(np.sort(longest_first[::every]))
    cls, options = MODELS[name]
    model = initialise(cls(8, cls.Options(init_std=0.1, **options)), dataset.catalog, cohort, seed=0)
    shared, rows = shared_of(model), private_of(model)
    solved = dict(rows)
    oracle_plan = plan
    if model.solves_private:
        with torch.no_grad():
            solved = {n: t.numpy() for n, t in model.solve_private(cohort.train, serving=False).items()}
            model.user_embedding.copy_(torch.from_numpy(solved["user_embedding"]))
        oracle_plan = replace(plan, private_learning_rate=0.0)
    rounding = np.zeros(len(cohort))
    deltas, own_rows = [], {n: np.empty_like(a) for n, a in rows.items()}
    for user in range(len(cohort)):
        delta, own, *_ = train_one_user(model, cohort, user, oracle_plan)
        weight = len(cohort.train[user]) if plan.weighting == "examples" else 1
        deltas.append({parameter: weight * value for parameter, value in delta.items()})
        steps = plan.local_epochs * (-(-len(cohort.train[user]) // plan.batch_size) if plan.batch_size else 1)
        rounding[user] = weight * steps * ROUNDING
        for parameter, row in own.items():
            own_rows[parameter][user] = row
    for engine in engines:
        mine = {n: a.copy() for n, a in solved.items()}
        sums = fit_users(model, cohort, shared, mine, plan, engine)
        for parameter in shared:
            total = sum(delta[parameter] for delta in deltas)
            _close(sums.delta[parameter], total, np.linalg.norm(rounding), f"{engine} {parameter}")
        for parameter, value in own_rows.items():
            np.testing.assert_allclose(mine[parameter], value, rtol=1e-4, atol=1e-5, err_msg=f"{engine} {parameter}")
        assert (sums.num_users, sums.num_examples) == (len(cohort), cohort.train.lengths.sum())
        # Alone every user where that is cheap, else some: the sum and the private rows have shown that all are right.
        for user in range(0, len(cohort), 1 if engine == "fused" else 23):
            alone = cohort.select(np.array([user]))
            mine = {n: a[[user]] for n, a in solved.items()}
            for parameter, value in fit_users(model, alone, shared, mine, plan, engine).delta.items():
                _close(value, deltas[user][parameter], rounding[user], f"{engine} {parameter} of user {user}")


def _close(found: NDArray, expected: NDArray, rounding: float, of_what: str) -> None:
    worst = np.abs(found - expected).max()
    assert worst <= 1e-5 * np.abs(expected).max() + 4 * rounding, f"{of_what}: off by {worst}"
