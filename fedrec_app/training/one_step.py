"""Users who take one plain gradient step: a block of them in one forward and one backward pass, any model.

The sum of their deltas is the gradient of the weighted sum of their losses, so nobody's own delta is ever made. Where
deltas are clipped there has to be one of each: see `clipped_one_step`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call

from fedrec_app.training import batches, sequences
from fedrec_app.training.clipped_one_step import fit_clipped
from fedrec_app.training.job import Job
from fedrec_app.training.private_rows import blocks, put, step_rows, take


def takes_one_step(job: Job, users: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns (num_users,) whether a user's delta is one gradient and nothing else."""
    plan = job.plan
    plain = plan.optimizer == "sgd" and plan.part is None and not plan.max_grad_norm
    return (job.steps(users) == 1) & plain & (not plan.clip_norm or not plan.weight_decay)


def one_step(job: Job, users: NDArray[np.int64]) -> None:
    """Trains users who take one step of "sgd"; the sums and their private rows change.

    Args:
        job: the fit.
        users: (num_users,) positions.

    Raises:
        ValueError: this fit is not one plain step for each of them.
    """
    if not takes_one_step(job, users).all():
        raise ValueError(f"users take more than one plain step with {job.plan}")
    cells = job.cohort.train.lengths[users] * (1 + job.plan.num_negatives)
    if job.model.sampling == "sequence":  # scores after each item that is read, a row of 64 as a cell
        scored = sequences.num_scored(job.model, job.cohort.num_items)
        cells = np.minimum(cells, job.model.max_length) * (1 + scored // 64)
    for block in blocks(users, cells, job.plan.device):
        (fit_clipped if job.plan.clip_norm else _fit_block)(job, block)


def _fit_block(job: Job, users: NDArray[np.int64]) -> None:
    model, plan, sums = job.model, job.plan, job.sums
    # Of item tables only the rows that the block meets are differentiated.
    batch, met = job.whole(users)
    weights = job.weights(users)
    counted = job.weights_met(batch, weights, met) if sums.count or plan.weight_decay else None
    batch = batches.to(batch, plan.device)
    tables, places = set(model.row_names()), torch.from_numpy(met).to(plan.device)
    local = {
        name: (tensor[places] if name in tables else tensor.detach().clone()).requires_grad_(True)
        for name, tensor in job.shared.items()
    }
    names = model.private_names() if job.moves_private else []
    own, own_states = take(job.rows, model.private_names(), users, plan.device)
    leaves = {name: tensor.requires_grad_(name in names) for name, tensor in own.items()}
    losses = functional_call(model, {**local, **leaves}, (batch,))
    scale = torch.from_numpy(weights.astype(np.float32)).to(plan.device)
    grads = torch.autograd.grad((losses * scale).sum(), [*local.values(), *(leaves[name] for name in names)])
    for (name, tensor), grad in zip(local.items(), grads, strict=False):
        gradient = grad.cpu().double().numpy()
        if counted is not None and plan.weight_decay:
            times = counted.reshape(-1, *([1] * (tensor.ndim - 1))) if name in tables else weights.sum()
            gradient += plan.weight_decay * times * tensor.detach().cpu().double().numpy()
        if name in tables:
            sums.delta[name][met] -= plan.learning_rate * gradient
        else:
            sums.delta[name] -= plan.learning_rate * gradient
    if names:
        each = {
            name: grad / scale.reshape(-1, *([1] * (grad.ndim - 1)))
            for name, grad in zip(names, grads[len(local) :], strict=True)
        }
        step_rows(plan, own, own_states, each)
        put(job.rows, users, own, own_states)
    for name in sums.count:
        sums.count[name][met] += counted
    job.tally(users, losses.detach().cpu().double().numpy())
