"""Every user of a cohort trains from the same shared parameters; the node adds up what they would send."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from fedrec_app.data.cohort import Cohort
from fedrec_app.models.base import Recommender
from fedrec_app.seeding import rng
from fedrec_app.training import batches, optimizers, sampling
from fedrec_app.training.plan import Arrays, FitPlan, FitSums
from fedrec_app.training.private_rows import block_batch, blocks, cells_of, fit_private, put, step_rows, take


def participants(cohort: Cohort, plan: FitPlan) -> NDArray[np.int64]:
    """Returns the users that take part in this round: drawn from (seed, round, user), with something to train on."""
    users = np.flatnonzero(cohort.train.lengths > 0)
    if plan.user_fraction >= 1:
        return users
    keys = cohort.keys
    drawn = [rng(plan.seed, "users", plan.server_round, int(keys[u])).random() < plan.user_fraction for u in users]
    return users[np.array(drawn, dtype=bool)]


def fit_users(model: Recommender, cohort: Cohort, shared: Arrays, rows: Arrays, plan: FitPlan) -> FitSums:
    """Returns the sums over the users that took part; private rows are changed in place.

    Args:
        model: bound to the catalog.
        cohort: the users of this node.
        shared: parameters received, float32, by name; not changed.
        rows: private rows and optimiser states of the cohort; changed in place.
        plan: what to do.
    """
    frozen = load_shared(model, shared)
    sums = FitSums.zeros(shared, model.row_names() if plan.weighting == "rows" else [])
    users = participants(cohort, plan)
    fit_private(
        model, frozen, rows, cohort.train, cohort.never_negative, cohort.keys, users, plan, plan.private_epochs, "private"
    )
    one_step = plan.local_epochs == 1 and plan.batch_size == 0 and plan.optimizer == "sgd"
    (_one_step if one_step else _several_steps)(model, cohort, frozen, rows, users, plan, sums)
    return sums


def load_shared(model: Recommender, shared: Arrays) -> dict[str, Tensor]:
    """Returns the shared parameters as tensors, and puts them into the model."""
    tensors = {name: torch.from_numpy(shared[name]) for name in model.shared_names()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            model.get_parameter(name).copy_(tensor)
    return tensors


def unit_weights(examples: NDArray[np.int64], weighting: str) -> NDArray[np.float64]:
    """Returns (num_users,) the weight of each user's delta.

    Args:
        examples: (num_users,) training interactions of each user.
        weighting: "examples", or any of the rules that count every user once.
    """
    return examples.astype(np.float64) if weighting == "examples" else np.ones(len(examples))


def _one_step(
    model: Recommender,
    cohort: Cohort,
    shared: dict[str, Tensor],
    rows: Arrays,
    users: NDArray[np.int64],
    plan: FitPlan,
    sums: FitSums,
) -> None:
    """One full-batch gradient step a user: the sum of deltas is the gradient of the weighted sum of losses."""
    names, num_items = model.private_names(), cohort.num_items
    samples = None
    if model.sampling == "pointwise":
        base = sampling.sampling_base(plan.seed, plan.server_round, "fit")
        samples = sampling.draw_epoch(
            base, 0, cohort.keys, cohort.train, cohort.never_negative, num_items, plan.num_negatives
        )
    for block in blocks(users, cells_of(model, cohort.train, users, plan.num_negatives, num_items)):
        batch = block_batch(model, cohort.train, samples, block, num_items)
        examples = cohort.train.lengths[block]
        weights = unit_weights(examples, plan.weighting)
        values, states = take(rows, names, block)
        leaves = {name: value.requires_grad_(True) for name, value in values.items()}
        local = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in shared.items()}
        losses = functional_call(model, {**local, **leaves}, (batch,))
        weighted = (losses * torch.from_numpy(weights.astype(np.float32))).sum()
        grads = torch.autograd.grad(weighted, [*local.values(), *leaves.values()])
        for (name, tensor), grad in zip(local.items(), grads, strict=False):
            total = grad.double().numpy() + plan.weight_decay * weights.sum() * tensor.detach().double().numpy()
            sums.delta[name] -= plan.learning_rate * total
        own = dict(zip(names, grads[len(local) :], strict=True))
        if plan.private_epochs == 0 and model.solve_private(cohort.train.select(block[:1])) is None:
            for name in names:
                shape = (-1, *([1] * (own[name].ndim - 1)))
                own[name] = own[name] / torch.from_numpy(weights.astype(np.float32)).reshape(shape)
            step_rows(plan, values, states, own)
            put(rows, block, values, states)
        _count(sums, batch, model, weights, num_items)
        _tally(sums, weights, examples, losses.detach().double().numpy())


def _count(sums: FitSums, batch: dict[str, Tensor], model: Recommender, weights: NDArray, num_items: int) -> None:
    for name in sums.count:
        if model.sampling == "all-items":
            sums.count[name] += weights.sum()
            continue
        for unit, weight in enumerate(weights):
            touched = batch["items"][unit][batch["weights"][unit] > 0].numpy()
            sums.count[name][np.unique(touched)] += weight


def _tally(sums: FitSums, weights: NDArray, examples: NDArray[np.int64], losses: NDArray) -> None:
    sums.weight += float(weights.sum())
    sums.num_users += len(examples)
    sums.num_examples += int(examples.sum())
    sums.loss += float((losses * examples).sum())


def _several_steps(
    model: Recommender,
    cohort: Cohort,
    shared: dict[str, Tensor],
    rows: Arrays,
    users: NDArray[np.int64],
    plan: FitPlan,
    sums: FitSums,
) -> None:
    """Mini-batch steps of each user on his own copy; of item tables only the rows that he meets are copied."""
    base = sampling.sampling_base(plan.seed, plan.server_round, "fit")
    epochs = []
    if model.sampling == "pointwise":
        epochs = [
            sampling.draw_epoch(
                base, epoch, cohort.keys, cohort.train, cohort.never_negative, cohort.num_items, plan.num_negatives
            )
            for epoch in range(plan.local_epochs)
        ]
    row_names, names = set(model.row_names()), model.private_names()
    for user in users:
        one = np.array([user])
        place = slice(cohort.train.indptr[user], cohort.train.indptr[user + 1])
        if epochs:
            stacked = np.stack([samples[place] for samples, _ in epochs])
            met, renamed = np.unique(stacked, return_inverse=True)
            passes = _mini_batches(renamed.reshape(stacked.shape), bool(epochs[0][1][user]), plan.batch_size)
        else:
            met = np.arange(cohort.num_items)
            passes = [batches.all_items(cohort.train, one, cohort.num_items)] * plan.local_epochs
        met_rows = torch.from_numpy(met)
        start = {name: t[met_rows] if name in row_names else t for name, t in shared.items()}
        local = dict(start)
        states = {n: optimizers.empty_state(plan.optimizer, t, rows=False) for n, t in local.items()}
        values, own_states = take(rows, names, one)
        first_pass, seen = 0.0, 0
        for batch in passes:
            batch["user"] = torch.zeros(1, dtype=torch.int64)
            leaves = {n: t.detach().requires_grad_(True) for n, t in {**local, **values}.items()}
            loss = functional_call(model, leaves, (batch,)).sum()
            grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
            for name, tensor in local.items():
                grad = grads[name]
                if plan.proximal_mu:
                    grad = grad + plan.proximal_mu * (tensor - start[name])
                local[name], states[name] = optimizers.step(
                    plan.optimizer, tensor, grad, states[name], plan.learning_rate, plan.weight_decay
                )
            step_rows(plan, values, own_states, {name: grads[name] for name in names})
            first_pass += float(loss.detach())
            seen += 1
        put(rows, one, values, own_states)
        examples = cohort.train.lengths[one]
        weights = unit_weights(examples, plan.weighting)
        for name, tensor in local.items():
            delta = weights[0] * (tensor - start[name]).double().numpy()
            if name in row_names:
                sums.delta[name][met] += delta
            else:
                sums.delta[name] += delta
        for name in sums.count:
            sums.count[name][met] += weights[0]
        _tally(sums, weights, examples, np.array([first_pass / max(seen, 1)]))


def _mini_batches(samples: NDArray[np.int64], no_negatives: bool, batch_size: int) -> list[dict[str, Tensor]]:
    epochs, length, _ = samples.shape
    size = batch_size or length
    return [
        batches.pointwise(np.ascontiguousarray(samples[epoch, at : at + size]), no_negatives)
        for epoch in range(epochs)
        for at in range(0, length, size)
    ]
