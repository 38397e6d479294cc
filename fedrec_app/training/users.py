"""Every user of a cohort trains from the same shared parameters; the node adds up what they would send."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from fedrec_app.data.cohort import Cohort
from fedrec_app.models.base import Batch, Recommender
from fedrec_app.seeding import rng
from fedrec_app.training import batches, optimizers, sampling
from fedrec_app.training.plan import Arrays, FitPlan, FitSums
from fedrec_app.training.private_rows import blocks, fit_private, put, step_rows, take


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
    fit_private(model, frozen, rows, cohort, users, plan, plan.private_epochs, "private", serving=False)
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
    row_names, names = set(model.row_names()), model.private_names()
    base = sampling.sampling_base(plan.seed, plan.server_round, "fit")
    samples, no_negatives = sampling.draw_epoch(
        base, 0, cohort.keys, cohort.train, cohort.never_negative, cohort.num_items, plan.num_negatives
    )
    for block in blocks(users, cohort.train.lengths[users] * (1 + plan.num_negatives)):
        batch = batches.whole_users(samples, cohort.train, no_negatives, block)
        examples = cohort.train.lengths[block]
        weights = unit_weights(examples, plan.weighting)
        values, states = take(rows, names, block)
        leaves = {name: value.requires_grad_(True) for name, value in values.items()}
        local = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in shared.items()}
        losses = functional_call(model, {**local, **leaves}, (batch,))
        scale = torch.from_numpy(weights.astype(np.float32))
        grads = torch.autograd.grad((losses * scale).sum(), [*local.values(), *leaves.values()])
        met = _met(model, batch, weights, cohort.num_items)
        for (name, tensor), grad in zip(local.items(), grads, strict=False):
            total = grad.double().numpy()
            if plan.weight_decay:
                users_of = met.reshape(-1, *([1] * (tensor.ndim - 1))) if name in row_names else weights.sum()
                total += plan.weight_decay * users_of * tensor.detach().double().numpy()
            sums.delta[name] -= plan.learning_rate * total
        if plan.moves_private and not model.solves_private:
            own = {
                name: grad / scale.reshape(-1, *([1] * (grad.ndim - 1)))
                for name, grad in zip(names, grads[len(local) :], strict=True)
            }
            step_rows(plan, values, states, own)
            put(rows, block, values, states)
        for name in sums.count:
            sums.count[name] += met
        _tally(sums, weights, examples, losses.detach().double().numpy())


def _met(model: Recommender, batch: Batch, weights: NDArray[np.float64], num_items: int) -> NDArray[np.float64]:
    """Returns (num_items,) the sum of the weights of the users whose batch holds the item."""
    if model.whole_catalog:
        return np.full(num_items, weights.sum())
    met = np.zeros(num_items)
    for unit, weight in enumerate(weights):
        met[np.unique(batch["items"][unit][batch["weights"][unit] > 0].numpy())] += weight
    return met


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
        samples = np.stack([drawn[place] for drawn, _ in epochs])
        if model.whole_catalog:
            met = np.arange(cohort.num_items)
        else:
            met, renamed = np.unique(samples, return_inverse=True)
            samples = renamed.reshape(samples.shape)
        start = {name: t[torch.from_numpy(met)] if name in row_names else t for name, t in shared.items()}
        local = dict(start)
        states = {n: optimizers.empty_state(plan.optimizer, t, rows=False) for n, t in local.items()}
        values, own_states = take(rows, names, one)
        losses = []
        for batch in _mini_batches(samples, epochs[0][1][one], plan.batch_size):
            leaves = {n: t.detach().requires_grad_(True) for n, t in {**local, **values}.items()}
            loss = functional_call(model, leaves, (batch,)).sum()
            grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
            for name, tensor in local.items():
                grad = grads[name] + plan.proximal_mu * (tensor - start[name]) if plan.proximal_mu else grads[name]
                local[name], states[name] = optimizers.step(
                    plan.optimizer, tensor, grad, states[name], plan.learning_rate, plan.weight_decay
                )
            if plan.moves_private and not model.solves_private:
                step_rows(plan, values, own_states, {name: grads[name] for name in names})
            positives = float((batch["weights"] * batch["labels"]).sum())
            losses.append((float(loss.detach()), positives))
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
        _tally(sums, weights, examples, np.array([sum(loss * n for loss, n in losses) / sum(n for _, n in losses)]))


def _mini_batches(
    samples: NDArray[np.int64], no_negatives: NDArray[np.bool_], batch_size: int
) -> Iterator[dict[str, Tensor]]:
    epochs, length, _ = samples.shape
    size = batch_size or length
    user = np.zeros(1, dtype=np.int64)
    for epoch in range(epochs):
        for at in range(0, length, size):
            part = samples[None, epoch, at : at + size]
            weights = np.ones(part.shape[:2], dtype=np.float32)
            yield batches.make(user, part, weights, no_negatives, np.array([part.shape[1] / length]))
