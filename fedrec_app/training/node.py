"""A node pools its users and trains one copy of the shared parameters on all of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from fedrec_app.client_part import Units
from fedrec_app.data.cohort import Cohort
from fedrec_app.models.base import Batch, Recommender
from fedrec_app.seeding import rng
from fedrec_app.training import batches, optimizers, sampling, sequences
from fedrec_app.training.plan import Arrays, FitPlan, FitSums
from fedrec_app.training.private_rows import fit_private, moves_private, put, step_rows, take
from fedrec_app.training.users import load_shared, participants

POOLED_BATCH = 1024
"""Positives in a mini-batch where the settings say 0."""


def fit_node(
    model: Recommender, cohort: Cohort, shared: Arrays, rows: Arrays, plan: FitPlan, partition_id: int
) -> FitSums:
    """Returns the node's weighted delta as sums over one unit; private rows are changed in place.

    Args:
        model: bound to the catalog and the cohort.
        cohort: the users of this node.
        shared: parameters received, float32, by name; not changed.
        rows: private rows and optimiser states of the cohort; changed in place.
        plan: what to do; a mini-batch holds `batch_size` positives of any users (0: `POOLED_BATCH`).
        partition_id: of the node, for the order of mini-batches.
    """
    if plan.clip_norm:
        raise ValueError("clip_norm bounds the deltas of users: a pooled node has none of them")
    start = load_shared(model, shared, plan.device)
    counted = model.row_names() if plan.weighting == "rows" else []
    sums = FitSums.zeros(shared, counted)
    users = participants(cohort, plan)
    if len(users) == 0:
        return sums
    fit_private(model, start, rows, cohort, users, plan, plan.private_epochs, "private", serving=False)
    local = {name: tensor.clone() for name, tensor in start.items()}
    states = {name: optimizers.empty_state(plan.optimizer, t, rows=False) for name, t in local.items()}
    losses, steps = 0.0, 0
    judged = plan.part is not None and plan.part.weighed_by_outcome
    before = _total_loss(model, start, rows, cohort, users, plan, partition_id) if judged else None
    for epoch in range(plan.local_epochs):
        for batch, members in _mini_batches(model, cohort, users, plan, epoch, partition_id):
            losses += _step(model, local, states, start, rows, batch, members, plan)
            steps += 1
    deltas = {name: (tensor - start[name]).cpu().double().numpy() for name, tensor in local.items()}
    examples = int(cohort.train.lengths[users].sum())
    weight = {"examples": float(examples), "uniform": 1.0}.get(plan.weighting, float(len(users)))
    units = Units(
        np.array([weight]), np.array([examples]), np.array([steps]), plan.learning_rate,
        None if before is None else np.array([before / examples]),
        np.array([sum(float(np.square(delta).sum()) for delta in deltas.values())]) if judged else None,
    )  # fmt: skip
    factor = sums.weigh(plan.part, units)[0]
    for name, delta in deltas.items():
        sums.delta[name] += factor * delta
        if name in sums.count:
            sums.count[name] += weight * np.any(delta.reshape(len(delta), -1) != 0, axis=1)
    sums.weight, sums.num_users, sums.num_examples = weight, len(users), examples
    sums.loss = losses / plan.local_epochs
    if plan.part is not None:
        controls, plan.part.memory = plan.part.finish(deltas, steps, plan.learning_rate)
        sums.controls = {name: weight * control for name, control in controls.items()}
    return sums


def _total_loss(
    model: Recommender,
    start: dict[str, Tensor],
    rows: Arrays,
    cohort: Cohort,
    users: NDArray[np.int64],
    plan: FitPlan,
    partition_id: int,
) -> float:
    """Returns the loss over the samples of the first epoch, summed over positives."""
    total = 0.0
    for batch, members in _mini_batches(model, cohort, users, plan, 0, partition_id):
        values, _ = take(rows, model.private_names(), members, plan.device)
        batch = batches.to(batch, plan.device)
        total += float((functional_call(model, {**start, **values}, (batch,)) * batch["examples"]).sum())
    return total


def _step(
    model: Recommender,
    local: dict[str, Tensor],
    states: dict[str, dict[str, Tensor]],
    start: dict[str, Tensor],
    rows: Arrays,
    batch: Batch,
    members: NDArray[np.int64],
    plan: FitPlan,
) -> float:
    names = model.private_names()
    values, own_states = take(rows, names, members, plan.device)
    leaves = {name: t.detach().requires_grad_(True) for name, t in {**local, **values}.items()}
    units = torch.bincount(batch["user"], minlength=len(members)).float().to(plan.device)
    batch = batches.to(batch, plan.device)
    losses = functional_call(model, leaves, (batch,))
    # Shared parameters follow the mean over units; a private row follows the mean over its own units, however many
    # share the mini-batch.
    grads = dict(zip(leaves, torch.autograd.grad(losses.mean(), list(leaves.values())), strict=True))
    for name in names:
        scale = (len(losses) / units).reshape(-1, *([1] * (grads[name].ndim - 1)))
        grads[name] = grads[name] * scale
    moving = [*local, *names] if moves_private(model, plan) else [*local]
    grads = {name: grads[name] for name in moving}
    if plan.proximal_mu:
        for name in local:
            grads[name] = grads[name] + plan.proximal_mu * (local[name] - start[name])
    if plan.part is not None:
        for name in local:
            grads[name] = plan.part.gradient(name, grads[name], local[name], start[name])
    if plan.max_grad_norm:
        grads = optimizers.clip(grads, plan.max_grad_norm)
    for name in local:
        local[name], states[name] = optimizers.step(
            plan.optimizer, local[name], grads[name], states[name], plan.learning_rate, plan.weight_decay
        )
    if len(moving) > len(local):
        step_rows(plan, values, own_states, {name: grads[name] for name in names})
        put(rows, members, values, own_states)
    return float((losses.detach() * batch["examples"]).sum().cpu())


def _mini_batches(
    model: Recommender, cohort: Cohort, users: NDArray[np.int64], plan: FitPlan, epoch: int, partition_id: int
) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
    """Yields (batch, members): a unit is a positive with its negatives, or a user's sequence, "user" its user's
    position in `members`."""
    generator = rng(plan.seed, "node-order", plan.server_round, epoch, partition_id)
    base = sampling.sampling_base(plan.seed, plan.server_round, "fit")
    size = plan.batch_size or POOLED_BATCH
    if model.sampling == "sequence":
        order = generator.permutation(users)
        for at in range(0, len(order), size):
            members = order[at : at + size]
            yield sequences.make(base, epoch, cohort.keys[members], cohort.train.select(members), model), members
        return
    samples, no_negatives = sampling.draw_epoch(
        base, epoch, cohort.keys, cohort.train, cohort.never_negative, cohort.num_items, plan.num_negatives
    )
    owners = cohort.train.rows()
    taking_part = np.zeros(len(cohort), dtype=bool)
    taking_part[users] = True
    order = generator.permutation(np.flatnonzero(taking_part[owners]))
    for at in range(0, len(order), size):
        chosen = order[at : at + size]
        members, user = np.unique(owners[chosen], return_inverse=True)
        mine = owners[chosen]
        weights = np.ones((len(chosen), 1), dtype=np.float32)
        share = 1.0 / cohort.train.lengths[mine]
        yield batches.make(user, samples[chosen, None], weights, no_negatives[mine], share), members
