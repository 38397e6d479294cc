"""Fits on another device than the processor.

Without a GPU they run on torch's meta device, which computes nothing but knows shapes and refuses most mixtures of
devices; with one the sums are compared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedrec_app.errors import ConfigError
from fedrec_app.training.node import fit_node
from fedrec_app.training.plan import FitPlan
from fedrec_app.training.private_rows import with_optimizer_state
from fedrec_app.training.serving import scorer
from fedrec_app.training.users import fit_users
from tests.unit.training.oracle import make, private_of, shared_of, small_cohort

PLAN = FitPlan(seed=0, server_round=1, learning_rate=0.3, private_learning_rate=0.3)
PLANS = {
    "one step": PLAN,
    "several steps": replace(PLAN, batch_size=2, local_epochs=2),
    "adam, proximal, decay": replace(PLAN, optimizer="adam", batch_size=3, proximal_mu=0.1, weight_decay=0.1),
    "clipped, rows": replace(PLAN, clip_norm=0.1, weighting="rows"),
    "reconstruction": replace(PLAN, private_epochs=2),
    "bounded gradient": replace(PLAN, batch_size=2, local_epochs=2, max_grad_norm=0.1),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mf": ("mf", {"loss": "bce"}),
    "mf all items": ("mf", {"loss": "all-items"}),
    "neumf": ("neumf", {"layers": (6, 3)}),
}


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the meta device; what is copied from it to the processor is zeros."""
    to_cpu = torch.Tensor.cpu

    def zeros(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.device.type == "meta" else to_cpu(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", zeros)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 30))
    return "meta"


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", MODELS)
def test_a_fit_keeps_its_tensors_on_the_device(case: str, plan: str, meta: str) -> None:
    name, options = MODELS[case]
    cohort, the_plan = small_cohort(), replace(PLANS[plan], device=meta)
    for fit in ("users", "node", "scores"):
        model = make(name, cohort, **options)
        shared, rows = shared_of(model), with_optimizer_state(private_of(model), the_plan.optimizer)
        if fit == "users":
            assert fit_users(model, cohort, shared, rows, the_plan).num_users == len(cohort)
        elif fit == "node":
            assert fit_node(model, cohort, shared, rows, replace(the_plan, clip_norm=0.0), 0).num_users == len(cohort)
        else:
            everybody = np.arange(len(cohort))
            scores = scorer(model, shared, rows, cohort, everybody, the_plan, 2, "fold-in")(everybody)
            assert scores.device.type == meta
            assert scores.shape == (len(cohort), cohort.num_items)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", MODELS)
def test_a_gpu_gives_the_sums_of_the_processor(case: str, plan: str) -> None:
    name, options = MODELS[case]
    cohort = small_cohort()
    found = []
    for device in ("cpu", "cuda"):
        model = make(name, cohort, **options)
        rows = with_optimizer_state(private_of(model), PLANS[plan].optimizer)
        sums = fit_users(model, cohort, shared_of(model), rows, replace(PLANS[plan], device=device))
        scores = scorer(model, shared_of(model), rows, cohort, np.arange(7), replace(PLAN, device=device), 2, "x")
        found.append((sums, rows, scores(np.arange(7)).cpu().numpy()))
    (cpu, cpu_rows, cpu_scores), (gpu, gpu_rows, gpu_scores) = found
    for parameter, delta in cpu.delta.items():
        np.testing.assert_allclose(gpu.delta[parameter], delta, rtol=1e-3, atol=1e-4, err_msg=parameter)
    for parameter, values in cpu_rows.items():
        np.testing.assert_allclose(gpu_rows[parameter], values, rtol=1e-3, atol=1e-4, err_msg=parameter)
    np.testing.assert_allclose(gpu_scores, cpu_scores, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_an_error_that_names_it() -> None:
    cohort = small_cohort()
    model = make("mf", cohort)
    with pytest.raises(ConfigError, match=r"train\.device is 'cuda', which this node cannot use"):
        fit_users(model, cohort, shared_of(model), private_of(model), replace(PLAN, device="cuda"))
