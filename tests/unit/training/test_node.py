"""A pooled node against a plain torch loop over the same mini-batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedrec_app.training.node import fit_node
from fedrec_app.training.plan import FitPlan
from fedrec_app.training.private_rows import fit_private, with_optimizer_state
from fedrec_app.training.users import load_shared
from tests.unit.training.oracle import make, private_of, shared_of, small_cohort, train_pooled

BASE = FitPlan(
    seed=5, server_round=2, unit="node", learning_rate=0.3, private_learning_rate=0.4, num_negatives=2, local_epochs=3
)
PLANS: dict[str, FitPlan] = {
    "plain": replace(BASE, batch_size=5),
    "decay, proximal": replace(BASE, weight_decay=0.1, proximal_mu=0.5),
    "adam": replace(BASE, optimizer="adam", learning_rate=0.05),
    "reconstruction": replace(BASE, batch_size=5, private_epochs=2),
    "bounded gradient": replace(BASE, batch_size=5, max_grad_norm=0.2),
    "bounded gradient that never is too long": replace(BASE, batch_size=5, max_grad_norm=100.0),
    "bounded gradient, decay, proximal": replace(BASE, weight_decay=0.5, proximal_mu=2.0, max_grad_norm=0.1),
    "bounded gradient, adam": replace(BASE, optimizer="adam", proximal_mu=5.0, max_grad_norm=0.05),
    "bounded gradient, adamw": replace(BASE, optimizer="adamw", weight_decay=0.1, max_grad_norm=0.2),
    "bounded gradient, reconstruction": replace(BASE, batch_size=5, private_epochs=2, max_grad_norm=0.02),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mf": ("mf", {"loss": "bce"}),
    "mf all items": ("mf", {"loss": "all-items"}),
    "neumf": ("neumf", {"layers": (4,)}),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", MODELS)
def test_a_pooled_node_equals_a_plain_torch_loop(case: str, plan: str) -> None:
    (name, options), the_plan, cohort = MODELS[case], PLANS[plan], small_cohort()
    model = make(name, cohort, **options)
    shared, first = shared_of(model), with_optimizer_state(private_of(model), the_plan.optimizer)
    begun = {n: a.copy() for n, a in first.items()}
    tensors, everybody = load_shared(model, shared), np.arange(len(cohort))
    fit_private(
        model, tensors, begun, cohort, everybody, the_plan, the_plan.private_epochs, "private", serving=False
    )  # fmt: skip
    plain = make(name, cohort, **options)
    for parameter in plain.private_names():
        plain.get_parameter(parameter).data.copy_(torch.from_numpy(begun[parameter]))
    stays = model.solves_private or the_plan.private_epochs > 0
    oracle_plan = replace(the_plan, private_learning_rate=0.0) if stays else the_plan
    delta, own, loss = train_pooled(plain, cohort, oracle_plan, partition_id=3)
    rows = {n: a.copy() for n, a in first.items()}
    sums = fit_node(model, cohort, shared, rows, the_plan, 3)
    atol = 1e-5 if the_plan.optimizer == "sgd" else 1e-3
    for parameter, expected in delta.items():
        found = sums.delta[parameter] / sums.weight
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=atol, err_msg=parameter)
    for parameter in model.private_names():
        expected = begun[parameter] if stays else own[parameter]
        np.testing.assert_allclose(rows[parameter], expected, rtol=1e-4, atol=atol, err_msg=parameter)
    assert sums.loss == pytest.approx(loss, rel=1e-4)


def test_with_a_bounded_gradient_one_step_moves_no_further_than_rate_times_bound() -> None:
    cohort = small_cohort()
    model = make("neumf", cohort)
    plan = replace(BASE, local_epochs=1, learning_rate=0.5, private_learning_rate=0.5, max_grad_norm=0.01)
    rows = private_of(model)
    sums = fit_node(model, cohort, shared_of(model), rows, plan, 0)
    square = sum(float(np.square(delta / sums.weight).sum()) for delta in sums.delta.values())
    for parameter, before in private_of(model).items():
        square += float(np.square((rows[parameter] - before).astype(np.float64)).sum())
    assert np.sqrt(square) == pytest.approx(0.5 * 0.01, rel=1e-3)
