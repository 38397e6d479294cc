"""Private rows of users, with the state of their optimiser, and fitting them for frozen shared parameters.

This is fold-in, reconstruction and personal fine-tuning at once: Federated Reconstruction, Singhal et al., NeurIPS
2021, https://arxiv.org/abs/2102.03448 (the reconstruction step), with rows that persist.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from fedrec_app.data.cohort import Cohort
from fedrec_app.models.base import Recommender
from fedrec_app.training import batches, optimizers, sampling
from fedrec_app.training.fused_fold_in import fold_in_kernel, fused_fold_in
from fedrec_app.training.plan import Arrays, FitPlan

CPU_CELLS, GPU_CELLS = 1 << 15, 1 << 22
"""Cells of a padded batch, one item each: on a CPU what they are multiplied with still lies in its caches, a GPU
wants enough to be busy with."""
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


def take(
    rows: Arrays, names: list[str], users: NDArray[np.int64], device: str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Returns copies of the private rows of these users, and of their optimiser states, by parameter name."""
    values = {name: torch.from_numpy(rows[name][users]).to(device) for name in names}
    states: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for key, array in rows.items():
        name, mark, part = key.partition(_MARK)
        if mark and name in states:
            states[name][part] = torch.from_numpy(array[users]).to(device)
    return values, states


def put(
    rows: Arrays, users: NDArray[np.int64], values: dict[str, Tensor], states: dict[str, dict[str, Tensor]]
) -> None:
    """Writes rows and states back, in place."""
    for name, value in values.items():
        rows[name][users] = value.detach().cpu().numpy()
        for part, tensor in states[name].items():
            rows[f"{name}{_MARK}{part}"][users] = tensor.detach().cpu().numpy()


def moves_private(model: Recommender, plan: FitPlan) -> bool:
    """Returns whether private rows take the steps that shared parameters take."""
    return plan.moves_private and not model.solves_private and bool(model.private_names())


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


def blocks(users: NDArray[np.int64], cells: NDArray[np.int64], device: str = "cpu") -> Iterator[NDArray[np.int64]]:
    """Yields users in blocks that padded batches of bounded size can hold, users of like length together.

    Args:
        users: (num_users,) positions.
        cells: (num_users,) batch cells that each of them needs.
        device: where the batches are computed.
    """
    most = CPU_CELLS if device == "cpu" else GPU_CELLS
    order = np.argsort(cells, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        full = stop == len(order) or (stop + 1 - start) * cells[order[stop]] > most
        if full:
            yield users[order[start:stop]]
            start = stop


def fit_private(
    model: Recommender,
    shared: dict[str, Tensor],
    rows: Arrays,
    cohort: Cohort,
    users: NDArray[np.int64],
    plan: FitPlan,
    epochs: int,
    purpose: str,
    serving: bool,
) -> None:
    """Fits the private rows of users, in place, for shared parameters as they are.

    Closed form where the model has one, else `epochs` full-batch steps with fresh negatives each.

    Args:
        model: bound to the catalog, its shared parameters equal to `shared`.
        shared: frozen.
        rows: private rows and optimiser states of all users of the cohort; changed in place.
        cohort: the users of the node; the rows are fitted to what they did in `cohort.train`.
        users: (num_users,) who is fitted; users without history are left as they are.
        plan: learning rates, negatives, optimiser, seed and round.
        epochs: steps.
        purpose: keeps the samples of this fit apart from those of others in the same round.
        serving: the rows are to predict what comes next, so recent items weigh more (`Recommender.recency`).
    """
    names, train = model.private_names(), cohort.train
    users = users[train.lengths[users] > 0]
    if not names or len(users) == 0:
        return
    if model.solves_private:
        for block in blocks(users, np.maximum(train.lengths[users], model.embedding_dim), plan.device):
            for name, value in model.solve_private(train.select(block), serving).items():
                rows[name][block] = value.cpu().numpy()
        return
    if epochs == 0:
        return
    base = sampling.sampling_base(plan.seed, plan.server_round, purpose)
    recency = model.recency() if serving else 0.0
    if (factors := fold_in_kernel(model, plan)) is not None:
        table, mine = shared[factors.item].numpy(), rows[factors.user]
        fused_fold_in(table, mine, cohort, users, plan, epochs, base, recency)
        return
    for block in blocks(users, train.lengths[users] * (1 + plan.num_negatives), plan.device):
        own, never = train.select(block), cohort.never_negative.select(block)
        values, states = take(rows, names, block, plan.device)
        for epoch in range(epochs):
            samples, no_negatives = sampling.draw_epoch(
                base, epoch, cohort.keys[block], own, never, cohort.num_items, plan.num_negatives, shuffle=False
            )
            batch = batches.to(batches.whole_users(samples, own, no_negatives, recency), plan.device)
            leaves = {name: value.detach().requires_grad_(True) for name, value in values.items()}
            loss = functional_call(model, {**shared, **leaves}, (batch,))
            grads = torch.autograd.grad(loss.sum(), list(leaves.values()))
            step_rows(plan, values, states, dict(zip(names, grads, strict=True)))
        put(rows, block, values, states)
