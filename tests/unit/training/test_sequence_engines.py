"""Every engine that trains sequences, against one slow model a user in float64; dropout draws the same masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedrec_app.client_part import ClientPart
from fedrec_app.training.node import fit_node
from fedrec_app.training.plan import FitPlan
from fedrec_app.training.users import Engine, fit_users
from tests.unit.training.oracle import shared_of
from tests.unit.training.sequence_oracle import NUM_ITEMS, cohort_of, make, train_one_user, train_pooled

# Longer, as long as and shorter than the window of four and a next one; one item; repeats; nothing.
COHORT = cohort_of([3, 1, 4, 1, 5, 9, 2], [7], [2, 8], [6, 6, 6, 0], [], [11, 10, 9, 8, 7], [0, 4, 8])
ACTIVE = [0, 1, 2, 3, 5, 6]
BASE = FitPlan(seed=5, server_round=2, learning_rate=0.3, num_negatives=0)
RULES: dict[str, dict[str, Any]] = {
    "one step": {},
    "one step, decay": {"weight_decay": 0.1},
    "several steps": {"local_epochs": 3},
    "mini-batches of one sequence": {"local_epochs": 2, "batch_size": 2},
    "proximal": {"local_epochs": 3, "proximal_mu": 0.5},
    "clipped": {"local_epochs": 2, "clip_norm": 0.2},
    "one clipped step": {"clip_norm": 0.1},
    "bounded gradient": {"local_epochs": 2, "max_grad_norm": 0.3},
    "adam": {"optimizer": "adam", "learning_rate": 0.02, "local_epochs": 2},
    "adamw, decay, clipped": {
        "optimizer": "adamw", "learning_rate": 0.02, "local_epochs": 2, "weight_decay": 0.1, "clip_norm": 0.3,
    },
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"dropout": 0.0, "crop": 0},
    "dropout": {"dropout": 0.3, "crop": 0},
    "two layers": {"dropout": 0.2, "layers": 2, "heads": 4, "crop": 0},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", OPTIONS)
def test_users_train_as_one_slow_model_each(options: str, rule: str) -> None:
    model, plan = make(**OPTIONS[options]), replace(BASE, **RULES[rule])
    trained = [train_one_user(model, COHORT, user, plan) for user in ACTIVE]
    lengths = COHORT.train.lengths[ACTIVE]
    single = plan.optimizer == "sgd" and plan.local_epochs == 1
    engines: tuple[Engine | None, ...] = (None, "several-steps", "one-step") if single else (None,)
    # Adam divides a gradient by its size: what is nearly zero there shows its rounding.
    rounding = 2e-5 if plan.optimizer == "sgd" else 1e-3
    for weighting, weights in (("examples", lengths), ("rows", np.ones(len(ACTIVE)))):
        if weighting == "examples" and plan.clip_norm:
            continue
        for engine in engines:
            sums = fit_users(model, COHORT, shared_of(model), {}, replace(plan, weighting=weighting), engine)
            for name, found in sums.delta.items():
                expected = sum(weight * delta[name] for weight, (delta, _) in zip(weights, trained, strict=True))
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=rounding, err_msg=f"{engine} {name}")
            losses = np.array([loss for _, loss in trained])
            assert sums.loss == pytest.approx(float((losses * lengths).sum()), rel=1e-4), engine
            assert (sums.weight, sums.num_users, sums.num_examples) == (weights.sum(), 6, lengths.sum())
            for count in sums.count.values():
                np.testing.assert_array_equal(count, np.full(NUM_ITEMS, 6.0))


POOLED: dict[str, dict[str, Any]] = {
    "adamw, mini-batches": {
        "optimizer": "adamw", "learning_rate": 0.02, "local_epochs": 3, "batch_size": 4, "weight_decay": 0.1,
    },
    "sgd, mini-batches": {"local_epochs": 3, "batch_size": 2},
    "all at once": {"local_epochs": 2},
    "proximal, bounded": {"local_epochs": 2, "batch_size": 4, "proximal_mu": 0.5, "max_grad_norm": 0.3},
}  # fmt: skip


@pytest.mark.parametrize("rule", POOLED)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_node_that_pools_its_users_trains_as_one_slow_model(options: str, rule: str) -> None:
    model, plan = make(**OPTIONS[options]), replace(BASE, unit="node", **POOLED[rule])
    delta, loss = train_pooled(model, COHORT, plan, partition_id=3)
    for weighting, weight in (("examples", COHORT.train.lengths.sum()), ("users", 6), ("uniform", 1)):
        sums = fit_node(model, COHORT, shared_of(model), {}, replace(plan, weighting=weighting), 3)
        for name, expected in delta.items():
            rounding = 1e-5 if plan.optimizer == "sgd" else 3e-4
            found = sums.delta[name] / weight
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=rounding, err_msg=name)
        assert sums.loss == pytest.approx(loss, rel=1e-4)
        assert (sums.weight, sums.num_users, sums.num_examples) == (weight, 6, COHORT.train.lengths.sum())


@pytest.mark.parametrize("rule", ["one step", "several steps", "adam"])
def test_users_give_the_same_sums_alone_and_together_with_histories_cut_at_random(rule: str) -> None:
    model, plan = make(dropout=0.3, crop=0.7), replace(BASE, **RULES[rule])
    shared = shared_of(model)
    together = fit_users(model, COHORT, shared, {}, plan)
    total = {name: np.zeros_like(delta) for name, delta in together.delta.items()}
    loss = 0.0
    for user in ACTIVE:
        alone = fit_users(model, COHORT.select(np.array([user])), shared, {}, plan)
        loss += alone.loss
        for name, delta in alone.delta.items():
            total[name] += delta
    for name, delta in together.delta.items():
        np.testing.assert_allclose(delta, total[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert together.loss == pytest.approx(loss, rel=1e-6)


def test_cutting_histories_changes_what_is_learned() -> None:
    deltas = [fit_users(make(crop=crop), COHORT, shared_of(make()), {}, BASE).delta["norm.bias"] for crop in (0, 1)]
    assert np.abs(deltas[0] - deltas[1]).max() > 1e-3


class Judge(ClientPart):
    """Keeps what its units are judged by."""

    weighed_by_outcome = True
    seen: np.ndarray

    def weigh(self, units: Any) -> Any:
        self.seen = units.losses
        return units.weights, {}


def test_units_are_judged_by_their_loss_at_the_start() -> None:
    model = make(dropout=0.3, crop=0)
    first = np.array([train_one_user(model, COHORT, user, BASE)[1] for user in ACTIVE])
    judge = Judge(None, {}, {})
    plan = replace(BASE, local_epochs=2, part=judge)
    fit_users(model, COHORT, shared_of(model), {}, plan)
    np.testing.assert_allclose(np.sort(judge.seen), np.sort(first), rtol=1e-4, atol=1e-6)
    lengths = COHORT.train.lengths[ACTIVE]
    fit_node(model, COHORT, shared_of(model), {}, replace(plan, unit="node", batch_size=4), 3)
    np.testing.assert_allclose(judge.seen, [(first * lengths).sum() / lengths.sum()], rtol=1e-4)
