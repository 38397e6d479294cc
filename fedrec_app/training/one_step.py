"""Users who take one plain gradient step: a block of them in one forward and one backward pass, any model.

The sum of their deltas is the gradient of the weighted sum of their losses, so nobody's own delta is ever made. Who
needs it, to clip it for instance, takes `several_steps`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call

from fedrec_app.models.base import Batch
from fedrec_app.training import batches, sampling, sequences
from fedrec_app.training.job import Job
from fedrec_app.training.private_rows import blocks, put, step_rows, take


def takes_one_step(job: Job, users: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns (num_users,) whether a user's delta is one gradient and nothing else."""
    plan = job.plan
    plain = plan.optimizer == "sgd" and plan.part is None and not plan.clip_norm and not plan.max_grad_norm
    return (job.steps(users) == 1) & plain


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
        _fit_block(job, block)


def _fit_block(job: Job, users: NDArray[np.int64]) -> None:
    model, plan, sums = job.model, job.plan, job.sums
    met = np.arange(job.cohort.num_items)
    # Of item tables only the rows that the block meets are differentiated.
    if model.sampling == "sequence":
        batch = job.sequences(users, 0)
        if job.cuts_tables:
            (batch,), lists = sequences.renumber([batch], job.cohort.num_items, together=True)
            met = lists.items
    else:
        train, samples, no_negatives = job.samples(users)
        if job.cuts_tables:
            _, met = sampling.rename(samples, np.array([0, len(samples)]), 1, job.cohort.num_items)
        batch = batches.whole_users(samples, train, no_negatives)
    weights = job.weights(users)
    counted = _weights_met(batch, weights, met, job) if sums.count or plan.weight_decay else None
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


def _weights_met(batch: Batch, weights: NDArray[np.float64], met: NDArray[np.int64], job: Job) -> NDArray[np.float64]:
    """Returns (len(met),) the sum of the weights of the users who met each of these items."""
    if not job.cuts_tables:
        return np.full(len(met), weights.sum())
    if job.model.sampling == "sequence":
        items = sequences.met(batch)
        there = np.ones(items.shape, dtype=np.bool_)
    else:
        items, there = batch["items"].numpy(), batch["weights"].numpy() > 0
    unit, cell = np.nonzero(there)
    pairs = np.unique(unit * len(met) + items[unit, cell])
    return np.asarray(np.bincount(pairs % len(met), weights[pairs // len(met)], len(met)), dtype=np.float64)
