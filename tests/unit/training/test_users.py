from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrec_app.training.job import Job
from fedrec_app.training.plan import FitPlan, FitSums
from fedrec_app.training.private_rows import with_optimizer_state
from fedrec_app.training.users import engines, fit_users, load_shared, participants
from tests.unit.training.oracle import make, private_of, shared_of, small_cohort, train_one_user

PLANS = {
    "one full-batch step": FitPlan(seed=5, server_round=2, learning_rate=0.7, private_learning_rate=0.3),
    "mini-batches": FitPlan(
        seed=5, server_round=2, learning_rate=0.2, private_learning_rate=0.4, local_epochs=3, batch_size=2
    ),
    "adam": FitPlan(
        seed=5,
        server_round=2,
        learning_rate=0.05,
        private_learning_rate=0.05,
        local_epochs=2,
        batch_size=3,
        optimizer="adam",
    ),
    "clipped": FitPlan(
        seed=5,
        server_round=2,
        learning_rate=0.5,
        private_learning_rate=0.4,
        local_epochs=2,
        batch_size=3,
        clip_norm=0.05,
    ),
    "one clipped step": FitPlan(seed=5, server_round=2, learning_rate=0.7, clip_norm=0.02),
    "adamw with decay": FitPlan(
        seed=5,
        server_round=2,
        learning_rate=0.05,
        batch_size=3,
        optimizer="adamw",
        weight_decay=0.1,
    ),
    "no negatives": FitPlan(seed=5, server_round=2, learning_rate=0.2, local_epochs=2, num_negatives=0),
}
MODELS = {
    "mf": ("mf", {"loss": "bce"}),
    "mf all items": ("mf", {"loss": "all-items"}),
    "neumf": ("neumf", {"layers": (6, 3)}),
}


@pytest.mark.parametrize("weighting", ["examples", "users"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", MODELS)
def test_the_sums_equal_one_torch_model_a_user(case: str, plan: str, weighting: str) -> None:
    name, options = MODELS[case]
    cohort = small_cohort()
    model = make(name, cohort, **options)
    the_plan = replace(PLANS[plan], weighting=weighting)
    if the_plan.clip_norm and weighting == "examples":
        with pytest.raises(ValueError, match="weighting 'examples' would weigh him by more than 1"):
            fit_users(model, cohort, shared_of(model), private_of(model), the_plan)
        return
    shared, rows = shared_of(model), private_of(model)
    if model.solves_private:
        with (
            torch.no_grad()
        ):  # the oracle starts from the rows that the engine solves first, and leaves them as they are
            solved = model.solve_private(cohort.train, serving=False)["user_embedding"]
        the_plan = replace(the_plan, private_learning_rate=0.0)
    oracle = []
    for user in range(len(cohort)):
        one = make(name, cohort, **options)
        if one.solves_private:
            one.user_embedding.data.copy_(solved)
        oracle.append(train_one_user(one, cohort, user, the_plan))
    rows = with_optimizer_state(rows, the_plan.optimizer)
    sums = fit_users(model, cohort, shared, rows, the_plan)
    weights = cohort.train.lengths if weighting == "examples" else np.ones(len(cohort))
    # Adam divides a gradient by its size, so the rounding of one that is nearly zero is a tenth of a step.
    atol = 2e-5 if the_plan.optimizer == "sgd" else 5e-3
    for parameter in shared:
        expected = sum(w * delta[parameter].astype(np.float64) for w, (delta, *_) in zip(weights, oracle, strict=True))
        np.testing.assert_allclose(sums.delta[parameter], expected, rtol=2e-4, atol=atol, err_msg=parameter)
    for parameter in model.private_names():
        expected_rows = np.stack([own[parameter] for _, own, *_ in oracle])
        np.testing.assert_allclose(rows[parameter], expected_rows, rtol=2e-4, atol=1e-5, err_msg=parameter)
    assert sums.weight == weights.sum()
    assert (sums.num_users, sums.num_examples) == (len(cohort), cohort.train.lengths.sum())


@pytest.mark.parametrize("plan", ["one full-batch step", "mini-batches"])
def test_rows_are_counted_for_the_items_that_each_user_met(plan: str) -> None:
    cohort = small_cohort()
    the_plan = replace(PLANS[plan], weighting="rows")
    model = make("mf", cohort, loss="bce")
    sums = fit_users(model, cohort, shared_of(model), private_of(model), the_plan)
    expected = np.zeros(cohort.num_items)
    for user in range(len(cohort)):
        for item in train_one_user(make("mf", cohort, loss="bce"), cohort, user, the_plan).met:
            expected[item] += 1
    np.testing.assert_array_equal(sums.count["item_embedding"], expected)


@pytest.mark.parametrize("plan", PLANS)
def test_users_give_the_same_sums_alone_and_together(plan: str) -> None:
    from fedrec_app.data.cohort import Cohort
    from fedrec_app.data.histories import Histories

    cohort, the_plan = small_cohort(), PLANS[plan]
    if the_plan.clip_norm:
        the_plan = replace(the_plan, weighting="users")
    model = make("neumf", cohort)
    shared = shared_of(model)
    together = fit_users(model, cohort, shared, with_optimizer_state(private_of(model), the_plan.optimizer), the_plan)
    total = {name: np.zeros_like(array) for name, array in together.delta.items()}
    for user, user_id in enumerate(cohort.user_ids):
        train = Histories.from_lists([cohort.train[user]])
        nothing = Histories.from_lists([[]])
        alone = Cohort((user_id,), cohort.num_items, train, nothing, nothing, train)
        own = make("neumf", alone)
        rows = with_optimizer_state(private_of(own), the_plan.optimizer)
        for name, delta in fit_users(own, alone, shared, rows, the_plan).delta.items():
            total[name] += delta
    for name, delta in together.delta.items():
        np.testing.assert_allclose(delta, total[name], rtol=1e-5, atol=1e-6)


def test_participants_are_drawn_by_user_and_round_and_not_by_placement() -> None:
    cohort = small_cohort(num_users=200)
    plan = FitPlan(seed=1, server_round=3, user_fraction=0.3)
    drawn = {cohort.user_ids[u] for u in participants(cohort, plan)}
    assert 35 < len(drawn) < 85
    half = small_cohort(num_users=100)
    assert {half.user_ids[u] for u in participants(half, plan)} == {u for u in drawn if int(u[1:]) < 100}
    assert drawn != {cohort.user_ids[u] for u in participants(cohort, replace(plan, server_round=4))}


def test_fedprox_pulls_towards_the_parameters_received() -> None:
    cohort = small_cohort()
    plan = PLANS["mini-batches"]
    model = make("mf", cohort, loss="bce")
    free = fit_users(model, cohort, shared_of(model), private_of(model), plan)
    held = fit_users(model, cohort, shared_of(model), private_of(model), replace(plan, proximal_mu=3.0))
    assert np.linalg.norm(held.delta["item_embedding"]) < 0.6 * np.linalg.norm(free.delta["item_embedding"])


def test_nothing_received_is_changed_and_an_empty_cohort_gives_zeros() -> None:
    cohort = small_cohort()
    model = make("mf", cohort, loss="bce")
    shared = shared_of(model)
    kept = {name: array.copy() for name, array in shared.items()}
    fit_users(model, cohort, shared, private_of(model), PLANS["mini-batches"])
    for name, array in kept.items():
        np.testing.assert_array_equal(shared[name], array)
    empty = small_cohort(num_users=0)
    sums = fit_users(
        make("mf", empty, loss="bce"), empty, shared, private_of(make("mf", empty, loss="bce")), PLANS["mini-batches"]
    )
    assert sums.weight == 0
    assert not any(delta.any() for delta in sums.delta.values())


@pytest.mark.parametrize("case", ["mf", "mf all items"])
def test_threads_give_the_same_sums(case: str) -> None:
    name, options = MODELS[case]
    cohort = small_cohort(num_users=40)
    plan = replace(PLANS["one full-batch step"], weighting="rows")
    found = []
    for threads in (1, 3):
        model = make(name, cohort, **options)
        rows = private_of(model)
        torch.set_num_threads(threads)
        try:
            found.append((fit_users(model, cohort, shared_of(model), rows, plan), rows))
        finally:
            torch.set_num_threads(1)
    (one, rows_of_one), (three, rows_of_three) = found
    np.testing.assert_allclose(three.delta["item_embedding"], one.delta["item_embedding"], rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(three.count["item_embedding"], one.count["item_embedding"])
    np.testing.assert_array_equal(rows_of_three["user_embedding"], rows_of_one["user_embedding"])


def test_each_fit_goes_to_the_fastest_engine_that_can_do_it() -> None:
    cohort = small_cohort(num_users=12)
    everybody = np.arange(12)

    def chosen(name: str, plan: FitPlan, **options: object) -> dict[str, set[int]]:
        model = make(name, cohort, **options)
        sums = FitSums.zeros(shared_of(model), [])
        job = Job(model, cohort, load_shared(model, shared_of(model)), private_of(model), plan, sums)
        return {engine: set(users.tolist()) for engine, users in engines(job, everybody) if len(users)}

    plan = FitPlan(seed=0, server_round=1, batch_size=4)
    short = {int(u) for u in np.flatnonzero(cohort.train.lengths <= 4)}
    assert 0 < len(short) < 12
    assert chosen("mf", plan, loss="bce") == {"fused": set(range(12))}
    assert chosen("neumf", plan) == {"one-step": short, "several-steps": set(range(12)) - short}
    assert chosen("mf", replace(plan, optimizer="adam"), loss="bce") == {"several-steps": set(range(12))}
    assert chosen("neumf", replace(plan, clip_norm=1.0)) == chosen("neumf", plan)
    assert chosen("neumf", replace(plan, clip_norm=1.0, weight_decay=0.1)) == {"several-steps": set(range(12))}
    assert chosen("mf", replace(plan, batch_size=0, clip_norm=1.0)) == {"fused": set(range(12))}
    assert chosen("neumf", replace(plan, max_grad_norm=1.0)) == {"several-steps": set(range(12))}
    assert chosen("mf", replace(plan, max_grad_norm=1.0), loss="bce") == {"several-steps": set(range(12))}
    assert chosen("mf", replace(plan, batch_size=0, max_grad_norm=1.0)) == {"several-steps": set(range(12))}
    assert chosen("mf", replace(plan, batch_size=0)) == {"fused": set(range(12))}
    assert chosen("mf", plan) == {"one-step": short, "several-steps": set(range(12)) - short}


def test_an_engine_that_cannot_do_a_fit_says_so() -> None:
    cohort = small_cohort()
    model = make("neumf", cohort)
    with pytest.raises(ValueError, match="no kernel for model 'neumf'"):
        fit_users(model, cohort, shared_of(model), private_of(model), FitPlan(seed=0, server_round=1), engine="fused")
