"""Engines that train sequences by every option of the model, against one slow model a user in float64; rows not met
stay as they were."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedrec_app.models.base import Batch
from fedrec_app.models.sasrec import SasRec
from fedrec_app.training import sequences
from fedrec_app.training.node import fit_node
from fedrec_app.training.plan import Arrays, FitPlan
from fedrec_app.training.sampling import sampling_base
from fedrec_app.training.users import fit_users
from tests.unit.models import slow_masked
from tests.unit.training.oracle import _optimizer, _step, shared_of
from tests.unit.training.sequence_oracle import NUM_ITEMS, cohort_of, make

COHORT = cohort_of([3, 1, 4, 1, 5, 9, 2], [7], [2, 8], [6, 6, 6, 0], [], [5, 10, 9, 8, 7], [0, 4, 8])
ACTIVE = [0, 1, 2, 3, 5, 6]
BASE = FitPlan(seed=5, server_round=2, learning_rate=0.3, num_negatives=0)
OPTIONS: dict[str, dict[str, Any]] = {
    "sampled": {"negatives": 3, "crop": 0.5},
    "masked": {"objective": "masked", "mask_share": 0.4, "mask_last": 0.3},
    "masked, sampled, augmented": {
        "objective": "masked", "negatives": 2, "mask_share": 0.5, "mask": 0.5, "reorder": 0.7,
    },
    "augmented": {"mask": 0.7, "mask_share": 0.4, "reorder": 0.7},
}  # fmt: skip
RULES: dict[str, dict[str, Any]] = {
    "one step, decay": {"weight_decay": 0.1},
    "several steps, clipped, pulled": {"local_epochs": 3, "clip_norm": 0.5, "proximal_mu": 0.5},
    "bounded gradient": {"local_epochs": 2, "max_grad_norm": 0.3},
    "adamw, decay": {"optimizer": "adamw", "learning_rate": 0.02, "local_epochs": 2, "weight_decay": 0.1},
}


def alone(model: SasRec, user: int, plan: FitPlan, epoch: int) -> Batch:
    base, one = sampling_base(plan.seed, plan.server_round, "fit"), np.array([user])
    batch = sequences.make(base, epoch, COHORT.keys[one], COHORT.train.select(one), model)
    return {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}


def met_by(model: SasRec, user: int, plan: FitPlan) -> set[int]:
    """Returns the items of his windows and the negatives, of all epochs."""
    if not model.options.negatives:
        return set(range(NUM_ITEMS))
    found = [alone(model, user, plan, epoch) for epoch in range(plan.local_epochs)]
    names = ("items", "targets", "negatives")
    return {item for batch in found for name in names for item in batch[name].flatten().tolist()}


def train_one_user(model: SasRec, user: int, plan: FitPlan) -> tuple[Arrays, float]:
    """Returns the delta of a user, and his mean loss over the epochs."""
    mine = copy.deepcopy(model).double()
    before, optimizer, total = shared_of(mine), _optimizer(mine, plan), 0.0
    strangers = sorted(set(range(NUM_ITEMS)) - met_by(model, user, plan))
    for epoch in range(plan.local_epochs):
        optimizer.zero_grad()
        loss = slow_masked.loss(mine, alone(model, user, plan, epoch))
        loss.backward()
        total += loss.item() / plan.local_epochs
        for name, parameter in mine.named_parameters():
            # Where nothing is hidden the mask has no gradient: zeros, which decay and Adam go on from.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = gradient + plan.proximal_mu * (parameter.detach() - torch.from_numpy(before[name]))
        mine.item_embedding.grad[strangers] = 0
        _step(optimizer, plan)
    delta = {name: after - before[name] for name, after in shared_of(mine).items()}
    delta["item_embedding"][strangers] = 0  # a user has no copy of the rows that he does not meet
    if plan.clip_norm:
        norm = np.sqrt(sum(float(np.square(value).sum()) for value in delta.values()))
        delta = {name: min(1.0, plan.clip_norm / (norm + 1e-6)) * value for name, value in delta.items()}
    return delta, total


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", OPTIONS)
def test_users_train_as_one_slow_model_each(options: str, rule: str) -> None:
    model, plan = make(**{"dropout": 0.2, **OPTIONS[options]}), replace(BASE, weighting="rows", **RULES[rule])
    trained = [train_one_user(model, user, plan) for user in ACTIVE]
    rounding = 2e-5 if plan.optimizer == "sgd" else 1e-3
    for engine in (None, "several-steps") if rule.startswith("one") else (None,):
        sums = fit_users(model, COHORT, shared_of(model), {}, plan, engine)
        for name, found in sums.delta.items():
            expected = sum(delta[name] for delta, _ in trained)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=rounding, err_msg=f"{engine} {name}")
        expected_loss = sum(loss * len(COHORT.train[user]) for user, (_, loss) in zip(ACTIVE, trained, strict=True))
        assert sums.loss == pytest.approx(expected_loss, rel=1e-4)
        counts = np.zeros(NUM_ITEMS)
        for user in ACTIVE:
            counts[sorted(met_by(model, user, plan))] += 1
        np.testing.assert_array_equal(sums.count["item_embedding"], counts)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_pooled_node_takes_the_mean_of_the_gradients_of_its_users(options: str) -> None:
    model = make(**{"dropout": 0.2, **OPTIONS[options]})
    steps = [train_one_user(model, user, BASE)[0] for user in ACTIVE]
    found = fit_node(model, COHORT, shared_of(model), {}, replace(BASE, unit="node", weighting="uniform"), 3).delta
    for name, delta in found.items():
        np.testing.assert_allclose(delta, sum(step[name] for step in steps) / 6, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("rule", ["one step, decay", "adamw, decay"])
@pytest.mark.parametrize("options", OPTIONS)
def test_users_give_the_same_sums_alone_and_together(options: str, rule: str) -> None:
    model, plan = make(**{"dropout": 0.3, **OPTIONS[options]}), replace(BASE, weighting="rows", **RULES[rule])
    shared = shared_of(model)
    together = fit_users(model, COHORT, shared, {}, plan)
    apart = [fit_users(model, COHORT.select(np.array([user])), shared, {}, plan) for user in ACTIVE]
    for name, delta in together.delta.items():
        np.testing.assert_allclose(delta, sum(one.delta[name] for one in apart), rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(together.count["item_embedding"], sum(one.count["item_embedding"] for one in apart))


@pytest.mark.parametrize("rule", RULES)
def test_with_negatives_rows_that_a_user_does_not_meet_stay_as_they_were(rule: str) -> None:
    model, plan = make(dropout=0.2, negatives=3, crop=0), replace(BASE, weighting="users", **RULES[rule])
    for user in ACTIVE:
        found = fit_users(model, COHORT.select(np.array([user])), shared_of(model), {}, plan).delta["item_embedding"]
        met = met_by(model, user, plan)
        assert 0 < len(met) < NUM_ITEMS
        assert not found[sorted(set(range(NUM_ITEMS)) - met)].any()
        if len(COHORT.train[user]) > 1:
            assert found[sorted(met)].any(axis=1).all()


def test_with_negatives_no_engine_holds_rows_that_nobody_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = make(negatives=2, crop=0), []
    loss = SasRec.loss

    def noted(self: SasRec, batch: Batch) -> torch.Tensor:
        sizes.append(len(self.item_embedding))
        return loss(self, batch)

    monkeypatch.setattr(SasRec, "loss", noted)
    one = COHORT.select(np.array([6]))
    for plan in (BASE, replace(BASE, local_epochs=2)):
        fit_users(model, one, shared_of(model), {}, plan)
        assert set(sizes) == {len(met_by(model, 6, plan))}
        sizes.clear()
