"""From shared parameters and what users did to scores: the path that evaluation, recommendation and baselines share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec_app.data.cohort import Cohort
from fedrec_app.models.base import Recommender
from fedrec_app.training.plan import Arrays, FitPlan
from fedrec_app.training.private_rows import fit_private
from fedrec_app.training.users import load_shared


def scorer(
    model: Recommender,
    shared: Arrays,
    rows: Arrays,
    cohort: Cohort,
    users: NDArray[np.int64],
    plan: FitPlan,
    epochs: int,
    purpose: str,
) -> Callable[[NDArray[np.int64]], Tensor]:
    """Returns a function from positions of users (n,) to their scores (n, num_items).

    Private rows are first brought up to date with what the users did (fold-in): in closed form, or by `epochs` steps.

    Args:
        model: bound to the catalog and the cohort.
        shared: parameters by name.
        rows: private rows and optimiser states of the cohort; changed in place.
        cohort: who is scored, from `cohort.train`; at test time that is `before("test")`.
        users: who will be asked for.
        plan: of the fold-in.
        epochs: steps of the fold-in.
        purpose: keeps its samples apart from those of others.
    """
    tensors = load_shared(model, shared, plan.device)
    fit_private(model, tensors, rows, cohort, users, plan, epochs, purpose, serving=True)
    with torch.no_grad():
        for name in model.private_names():
            model.get_parameter(name).copy_(torch.from_numpy(rows[name]))
    items = torch.arange(cohort.num_items, device=plan.device)

    def scores(chosen: NDArray[np.int64]) -> Tensor:
        with torch.no_grad():
            return model.score(
                model.encode(cohort.train.select(chosen), torch.from_numpy(chosen).to(plan.device)), items
            )

    return scores
