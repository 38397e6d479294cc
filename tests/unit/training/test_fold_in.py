from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.training import batches, sampling
from fedrec_app.training.plan import FitPlan
from fedrec_app.training.private_rows import fit_private
from fedrec_app.training.users import load_shared
from tests.unit.training.oracle import make, private_of, shared_of, small_cohort

PLAN = FitPlan(seed=2, server_round=3, private_learning_rate=0.8, num_negatives=3)


def slowly(cohort: Cohort, user: int, epochs: int, serving: bool) -> np.ndarray:
    """Returns the user's row after torch.optim's steps on a model of his own, everything but the row frozen."""
    model = make("mf", cohort, loss="bce").double()
    optimizer = torch.optim.SGD([model.user_embedding], lr=PLAN.private_learning_rate)
    base = sampling.sampling_base(PLAN.seed, PLAN.server_round, "fold-in")
    one = np.array([user])
    for epoch in range(epochs):
        train = cohort.train.select(one)
        samples, full = sampling.draw_epoch(
            base, epoch, cohort.keys[one], train, cohort.never_negative.select(one), cohort.num_items, 3, shuffle=False
        )
        batch = batches.whole_users(samples, train, full, model.recency() if serving else 0.0)
        batch["user"][:] = user
        optimizer.zero_grad()
        model.loss({n: t.double() if t.is_floating_point() else t for n, t in batch.items()}).sum().backward()
        optimizer.step()
    return model.user_embedding.detach()[user].numpy()


@pytest.mark.parametrize("serving", [False, True])
@pytest.mark.parametrize("path", ["compiled", "batched"])
def test_private_rows_are_fitted_as_torch_fits_them(path: str, serving: bool) -> None:
    cohort = small_cohort(num_users=9)
    everything = Histories.from_lists([*[cohort.train[u] for u in range(8)], np.arange(30)])
    cohort = replace(cohort, train=everything, never_negative=everything)  # the last user has no negatives
    model = make("mf", cohort, loss="bce")
    rows, plan = private_of(model), PLAN
    if path == "batched":  # the kernel does no decay, and this one is lost in rounding
        plan = replace(PLAN, weight_decay=1e-30)
    fit_private(
        model, load_shared(model, shared_of(model)), rows, cohort, np.arange(9), plan, 4, "fold-in", serving
    )  # fmt: skip
    for user in range(9):
        expected = slowly(cohort, user, 4, serving)
        np.testing.assert_allclose(rows["user_embedding"][user], expected, rtol=1e-4, atol=1e-5)
