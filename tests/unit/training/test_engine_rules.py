"""Every rule of a fit, in cohorts with odd users, by every engine that can do it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.training.job import Job
from fedrec_app.training.node import fit_node
from fedrec_app.training.plan import FitPlan, FitSums
from fedrec_app.training.private_rows import fit_private, with_optimizer_state
from fedrec_app.training.several_steps import CPU_FLOATS, _chunks, _floats
from fedrec_app.training.users import Engine, fit_users, load_shared
from tests.unit.training.oracle import make, private_of, shared_of, small_cohort, train_one_user

NUM_ITEMS = 12


def cohort_of(*lists: Any) -> Cohort:
    train, nothing = Histories.from_lists(lists), Histories.from_lists([[]] * len(lists))
    return Cohort(tuple(f"u{user}" for user in range(len(lists))), NUM_ITEMS, train, nothing, nothing, train)


# One item; every item, once and with repeats; repeats; nothing; all items but one; a plain user.
ODD = cohort_of([3], range(12), [*range(11, -1, -1), 0, 0], [1, 1, 2, 2, 5, 1], [], range(11), [0, 4, 7])
BASE = FitPlan(seed=5, server_round=2, learning_rate=0.3, private_learning_rate=0.4, num_negatives=2)
STEPS = {"one step": BASE, "several steps": replace(BASE, batch_size=2, local_epochs=2)}
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no negatives": {"num_negatives": 0},
    "weight decay": {"weight_decay": 0.1},
    "proximal": {"proximal_mu": 0.5},
    "clipped": {"clip_norm": 0.05},
    "reconstruction": {"private_epochs": 2},
    "adam, proximal, decay": {"optimizer": "adam", "weight_decay": 0.1, "proximal_mu": 0.3},
    "adamw, clipped": {"optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 0.1},
    "bounded gradient": {"max_grad_norm": 0.2},
    "bounded gradient, clipped": {"max_grad_norm": 0.2, "clip_norm": 0.05},
    "bounded gradient, decay, proximal": {"max_grad_norm": 0.2, "weight_decay": 0.5, "proximal_mu": 2.0},
    "bounded gradient, reconstruction": {"max_grad_norm": 0.05, "private_epochs": 2},
    "bounded gradient, adam": {
        "max_grad_norm": 0.2,
        "optimizer": "adam",
        "weight_decay": 0.1,
        "proximal_mu": 0.3,
        "learning_rate": 0.05,
    },
    "bounded gradient, adamw": {"max_grad_norm": 0.2, "optimizer": "adamw", "weight_decay": 0.1},
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mf": ("mf", {"loss": "bce"}),
    "mf all items": ("mf", {"loss": "all-items"}),
    "neumf": ("neumf", {"layers": (4,)}),
}


def able(engine: Engine | None, case: str, rule: str, steps: str) -> bool:
    """Returns whether an engine can do a fit, as docs/architecture.md says."""
    plain = rule in ("plain", "no negatives", "reconstruction", "clipped")
    if engine == "fused":
        if case == "mf all items":
            return steps == "one step" and (plain or rule == "proximal")
        return case == "mf" and plain
    return engine != "one-step" or (steps == "one step" and (plain or rule in ("weight decay", "proximal")))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", MODELS)
def test_deltas_rows_counts_and_losses_follow_the_rule(case: str, rule: str, steps: str) -> None:
    name, options = MODELS[case]
    plan = replace(STEPS[steps], weighting="rows", **RULES[rule])
    active = np.flatnonzero(ODD.train.lengths > 0)
    model = make(name, ODD, **options)
    shared, first = shared_of(model), with_optimizer_state(private_of(model), plan.optimizer)
    begun = {n: a.copy() for n, a in first.items()}
    fit_private(
        model, load_shared(model, shared), begun, ODD, active, plan, plan.private_epochs, "private", serving=False
    )  # fmt: skip
    stays = model.solves_private or plan.private_epochs > 0
    oracle_plan = replace(plan, private_learning_rate=0.0) if stays else plan
    trained = {}
    for user in active:
        one = make(name, ODD, **options)
        for parameter in one.private_names():
            one.get_parameter(parameter).data.copy_(torch.from_numpy(begun[parameter]))
        trained[int(user)] = train_one_user(one, ODD, user, oracle_plan)
    # Adam divides a gradient by its size, so the rounding of one that is nearly zero is a tenth of a step.
    delta_atol, row_atol = (1e-4, 1e-4) if plan.optimizer == "sgd" else (1e-2, 1e-2)
    for engine in (None, *get_args(Engine)):
        rows = {n: a.copy() for n, a in first.items()}
        if not able(engine, case, rule, steps):
            with pytest.raises(ValueError, match=r"no kernel|more than one plain step"):
                fit_users(model, ODD, shared, rows, plan, engine)
            continue
        sums = fit_users(model, ODD, shared, rows, plan, engine)
        for parameter in shared:
            expected = sum(user.delta[parameter] for user in trained.values())
            np.testing.assert_allclose(
                sums.delta[parameter], expected, rtol=1e-4, atol=delta_atol, err_msg=f"{engine} {parameter}"
            )
        for parameter in model.private_names():
            expected = begun[parameter].copy()
            for user, result in trained.items():
                expected[user] = begun[parameter][user] if stays else result.own[parameter]
            np.testing.assert_allclose(rows[parameter], expected, rtol=1e-4, atol=row_atol, err_msg=f"{engine}")
        counts = np.bincount([item for user in trained.values() for item in user.met], minlength=NUM_ITEMS)
        for parameter, count in sums.count.items():
            np.testing.assert_array_equal(count, counts, err_msg=f"{engine} {parameter}")
        total = sum(user.loss for user in trained.values())
        assert sums.loss == pytest.approx(total, rel=1e-4 if plan.optimizer == "sgd" else 1e-2), engine
        assert (sums.weight, sums.num_users, sums.num_examples) == (6, 6, ODD.train.lengths.sum())


def test_long_histories_do_not_overflow_the_product_of_the_loss() -> None:
    generator = np.random.default_rng(0)
    lists = [generator.permutation(6000)[:2500]]
    train, nothing = Histories.from_lists(lists), Histories.from_lists([[]])
    cohort = Cohort(("u",), 6000, train, nothing, nothing, train)
    model = make("mf", cohort, loss="bce")
    sums = fit_users(model, cohort, shared_of(model), private_of(model), replace(BASE, num_negatives=4))
    assert sums.loss == pytest.approx(train_one_user(model, cohort, 0, replace(BASE, num_negatives=4)).loss, rel=1e-4)


def test_a_chunk_is_as_small_as_its_widest_user_asks_for() -> None:
    lists = [np.arange(3000), *[np.arange(u, u + 20) for u in range(300)]]
    train, nothing = Histories.from_lists(lists), Histories.from_lists([[]] * 301)
    cohort = Cohort(tuple(f"u{u}" for u in range(301)), 20_000, train, nothing, nothing, train)
    model = make("mf", cohort, loss="bce")
    plan = replace(BASE, num_negatives=4, optimizer="adam")
    sums = FitSums.zeros(shared_of(model), [])
    job = Job(model, cohort, load_shared(model, shared_of(model)), private_of(model), plan, sums)
    everybody = np.arange(301)
    chunks = list(_chunks(job, everybody))
    assert sorted(np.concatenate(chunks)) == list(everybody)
    for chunk in chunks:
        assert len(chunk) == 1 or len(chunk) * _floats(job, chunk).max() <= CPU_FLOATS


def test_a_pooled_node_cannot_clip_users() -> None:
    cohort = small_cohort()
    model = make("mf", cohort, loss="bce")
    with pytest.raises(ValueError, match="a pooled node has none"):
        fit_node(model, cohort, shared_of(model), private_of(model), replace(BASE, clip_norm=0.1), 0)


def test_a_pooled_node_trains_on_those_who_take_part() -> None:
    cohort = small_cohort(num_users=60)
    model = make("mf", cohort, loss="bce")
    plan = replace(BASE, user_fraction=0.3)
    sums = fit_node(model, cohort, shared_of(model), private_of(model), plan, 0)
    asked = fit_users(model, cohort, shared_of(model), private_of(model), plan)
    assert 0 < sums.num_users < 40
    assert (sums.num_users, sums.num_examples) == (asked.num_users, asked.num_examples)
