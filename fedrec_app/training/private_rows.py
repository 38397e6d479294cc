"""Private rows of users, with the state of their optimiser, and fitting them for frozen shared parameters.

This is fold-in, reconstruction and personal fine-tuning at once: Federated Reconstruction, Singhal et al., NeurIPS 2021,
https://arxiv.org/abs/2102.03448 (the reconstruction step), with rows that persist.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch, Recommender
from fedrec_app.training import batches, optimizers, sampling
from fedrec_app.training.plan import Arrays, FitPlan

BLOCK_CELLS = 1 << 19
_MARK = ":"


def with_optimizer_state(rows: Arrays, optimizer: str) -> Arrays:
    """Returns private rows with the optimiser's state added where it is missing ("<name>:m" and so on).

    Args:
        rows: private rows by parameter name, perhaps with state.
        optimizer: "sgd", "adam" or "adamw".
    """
    result = dict(rows)
    for name in [name for name in rows if _MARK not in name]:
        state = optimizers.empty_state(optimizer, torch.from_numpy(rows[name]), rows=True)
        for part, value in state.items():
            result.setdefault(f"{name}{_MARK}{part}", value.numpy())
    return result


def take(rows: Arrays, names: list[str], users: NDArray[np.int64]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Returns copies of the private rows of these users, and of their optimiser states, by parameter name."""
    values = {name: torch.from_numpy(rows[name][users]) for name in names}
    states: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for key, array in rows.items():
        name, mark, part = key.partition(_MARK)
        if mark and name in states:
            states[name][part] = torch.from_numpy(array[users])
    return values, states


def put(
    rows: Arrays, users: NDArray[np.int64], values: dict[str, Tensor], states: dict[str, dict[str, Tensor]]
) -> None:
    """Writes rows and states back, in place."""
    for name, value in values.items():
        rows[name][users] = value.detach().numpy()
        for part, tensor in states[name].items():
            rows[f"{name}{_MARK}{part}"][users] = tensor.detach().numpy()


def step_rows(
    plan: FitPlan,
    values: dict[str, Tensor],
    states: dict[str, dict[str, Tensor]],
    grads: dict[str, Tensor],
) -> None:
    """Moves private rows one step, in the dictionaries given."""
    for name, grad in grads.items():
        values[name], states[name] = optimizers.step(
            plan.optimizer, values[name].detach(), grad, states[name], plan.private_learning_rate, plan.weight_decay
        )


def blocks(users: NDArray[np.int64], cells: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yields users in blocks that padded batches of bounded size can hold, users of like length together.

    Args:
        users: (num_users,) positions.
        cells: (num_users,) batch cells that each of them needs.
    """
    order = np.argsort(cells, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        full = stop == len(order) or (stop + 1 - start) * cells[order[stop]] > BLOCK_CELLS
        if full:
            yield users[order[start:stop]]
            start = stop


def block_batch(
    model: Recommender, train: Histories, samples: tuple[NDArray, NDArray] | None, users: NDArray[np.int64], num_items: int
) -> Batch:
    """Returns the batch of whole users that the model's sampling asks for.

    Args:
        model: names the sampling.
        train: training items of all users.
        samples: what `draw_epoch` returned for "pointwise" sampling.
        users: (B,) the users of the block.
        num_items: size of the catalog.
    """
    if samples is None:
        return batches.all_items(train, users, num_items)
    return batches.padded_pointwise(samples[0], train, samples[1], users)


def cells_of(model: Recommender, train: Histories, users: NDArray[np.int64], num_negatives: int, num_items: int) -> NDArray[np.int64]:
    """Returns (num_users,) how many cells each user takes in a batch of whole users."""
    if model.sampling == "all-items":
        return np.full(len(users), num_items, dtype=np.int64)
    return train.lengths[users] * (1 + num_negatives)


def fit_private(
    model: Recommender,
    shared: dict[str, Tensor],
    rows: Arrays,
    train: Histories,
    never_negative: Histories,
    keys: NDArray[np.uint64],
    users: NDArray[np.int64],
    plan: FitPlan,
    epochs: int,
    purpose: str,
) -> None:
    """Fits the private rows of users, in place, for shared parameters as they are.

    Closed form where the model has one, else `epochs` full-batch steps with fresh negatives each.

    Args:
        model: bound to the catalog, its shared parameters equal to `shared`.
        shared: frozen.
        rows: private rows and optimiser states of all users of the cohort; changed in place.
        train, never_negative, keys: of all users of the cohort.
        users: (num_users,) who is fitted; users without history are left as they are.
        plan: learning rates, negatives, optimiser, seed and round.
        epochs: steps.
        purpose: keeps the samples of this fit apart from those of others in the same round.
    """
    names = model.private_names()
    users = users[train.lengths[users] > 0]
    if not names or len(users) == 0:
        return
    num_items = next(len(shared[name]) for name in model.row_names())
    for block in blocks(users, cells_of(model, train, users, plan.num_negatives, num_items)):
        solved = model.solve_private(train.select(block))
        if solved is None:
            continue
        for name, value in solved.items():
            rows[name][block] = value.detach().numpy()
    if model.solve_private(train.select(users[:1])) is not None:
        return
    base = sampling.sampling_base(plan.seed, plan.server_round, purpose)
    for epoch in range(epochs):
        samples = None
        if model.sampling == "pointwise":
            samples = sampling.draw_epoch(base, epoch, keys, train, never_negative, num_items, plan.num_negatives)
        for block in blocks(users, cells_of(model, train, users, plan.num_negatives, num_items)):
            batch = block_batch(model, train, samples, block, num_items)
            values, states = take(rows, names, block)
            leaves = {name: value.requires_grad_(True) for name, value in values.items()}
            loss = functional_call(model, {**shared, **leaves}, (batch,))
            grads = torch.autograd.grad(loss.sum(), list(leaves.values()))
            step_rows(plan, values, states, dict(zip(names, grads, strict=True)))
            put(rows, block, values, states)
