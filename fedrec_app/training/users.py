"""Every user of a cohort trains from the same shared parameters; the node adds up what they would send."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec_app.data.cohort import Cohort
from fedrec_app.errors import ConfigError
from fedrec_app.models.base import Recommender
from fedrec_app.privacy.sampling import poisson
from fedrec_app.training import sampling
from fedrec_app.training.fused import fused, has_kernel
from fedrec_app.training.job import Job
from fedrec_app.training.one_step import one_step, takes_one_step
from fedrec_app.training.plan import Arrays, FitPlan, FitSums
from fedrec_app.training.private_rows import fit_private
from fedrec_app.training.several_steps import several_steps

Engine = Literal["fused", "one-step", "several-steps"]
_RUN = {"fused": fused, "one-step": one_step, "several-steps": several_steps}


def fit_users(
    model: Recommender, cohort: Cohort, shared: Arrays, rows: Arrays, plan: FitPlan, engine: Engine | None = None
) -> FitSums:
    """Returns the sums over the users that took part; private rows are changed in place.

    Args:
        model: bound to the catalog.
        cohort: the users of this node.
        shared: parameters received, float32, by name; not changed.
        rows: private rows and optimiser states of the cohort; changed in place.
        plan: what to do.
        engine: trains all of them; the fastest that can do it for each of them when absent. The mathematics is the
            same.

    Raises:
        ValueError: deltas are to be clipped and then weighted, which would undo the bound.
    """
    if plan.clip_norm:
        _refuse_weights(plan)
    frozen = load_shared(model, shared, plan.device)
    sums = FitSums.zeros(shared, model.row_names() if plan.weighting == "rows" else [])
    users = participants(cohort, plan)
    begun = {name: array[users] for name, array in rows.items()} if plan.clip_norm else {}
    fit_private(model, frozen, rows, cohort, users, plan, plan.private_epochs, "private", serving=False)
    job = Job(model, cohort, frozen, rows, plan, sums)
    for chosen, members in [(engine, users)] if engine else engines(job, users):
        if len(members):
            _RUN[chosen](job, members)
    for dropped in job.dropped:
        for name, array in begun.items():
            rows[name][dropped] = array[np.searchsorted(users, dropped)]
    return sums


def engines(job: Job, users: NDArray[np.int64]) -> list[tuple[Engine, NDArray[np.int64]]]:
    """Returns who is trained by which engine: the first of these that can do it.

    "fused": compiled loops, for a model that is a factorisation. "one-step": users whose delta is one gradient.
    "several-steps": everybody.
    """
    if has_kernel(job, users):
        return [("fused", users)]
    single = takes_one_step(job, users)
    return [("one-step", users[single]), ("several-steps", users[~single])]


def participants(cohort: Cohort, plan: FitPlan) -> NDArray[np.int64]:
    """Returns the users that take part in this round, with something to train on: drawn from (seed, round, user), or in
    secret where the plan has a rate for that."""
    users = np.flatnonzero(cohort.train.lengths > 0)
    if plan.secret_rate > 0:
        return users[poisson(len(users), plan.secret_rate)]
    if plan.user_fraction >= 1:
        return users
    base = sampling.sampling_base(plan.seed, plan.server_round, "users")
    return users[sampling.one_number(base, cohort.keys[users]) < plan.user_fraction]


def _refuse_weights(plan: FitPlan) -> None:
    how = "weighting 'examples'" if plan.weighting == "examples" else ""
    if plan.part is not None and plan.part.weighs():
        how = type(plan.part).__name__
    if how:
        raise ValueError(f"clip_norm bounds what one user moves: {how} would weigh him by more than 1")


def load_shared(model: Recommender, shared: Arrays, device: str = "cpu") -> dict[str, Tensor]:
    """Returns the shared parameters as tensors, and puts them into the model.

    Raises:
        ConfigError: this machine has no such device.
    """
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"train.device is {device!r}, which this node cannot use: {error}") from None
    tensors = {name: torch.from_numpy(shared[name]).to(device) for name in model.shared_names()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            model.get_parameter(name).copy_(tensor)
    return tensors
