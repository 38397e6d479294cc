"""Users who take any number of steps with any optimiser, any model: a chunk of them at a time, vectorised.

Each user of a chunk has his own copy of the shared parameters (of item tables only the rows that he meets), stacked
along a first axis; `torch.func.vmap` of the gradient of one user's loss moves all of them one step. Users are sorted by
their number of steps, so that those who are done drop off the end of the stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad_and_value, vmap

from fedrec_app.compiled import njit
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch
from fedrec_app.training import batches, optimizers, sampling, sequences
from fedrec_app.training.clipped_sums import add_clipped_copies
from fedrec_app.training.job import Job
from fedrec_app.training.one_user import loss_of_one
from fedrec_app.training.plan import FitPlan
from fedrec_app.training.private_rows import put, take

CPU_FLOATS = 1 << 24
GPU_SHARE = 0.25
COPIES = 6
"""Arrays as large as a user's parameters that are alive at once: copy, start, gradient, moments, scratch."""

Stack = dict[str, Tensor]


def several_steps(job: Job, users: NDArray[np.int64]) -> None:
    """Trains users; the sums and their private rows change.

    Args:
        job: the fit.
        users: (num_users,) positions.
    """
    for chunk in _chunks(job, users):
        _fit_chunk(job, chunk)


def _floats(job: Job, users: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns (num_users,) about how many numbers each user needs to be trained."""
    plan, (fixed, row) = job.plan, job.sizes
    lengths, num_items = job.cohort.train.lengths[users], job.cohort.num_items
    samples = lengths * (1 + plan.num_negatives)
    batch = np.minimum(samples, plan.batch_size * (1 + plan.num_negatives)) if plan.batch_size else samples
    if job.model.sampling == "sequence":  # scores after each item that is read
        length, scored = job.model.max_length, sequences.num_scored(job.model, num_items)
        fixed, batch = fixed + np.minimum(lengths, length) * scored, 0 * batch
        samples = np.minimum(lengths, length + 1) + scored
    met = np.minimum(samples * plan.local_epochs, num_items)
    if not job.cuts_tables:
        met[:] = num_items
    return COPIES * (fixed + met * row) + 4 * batch * row


def _chunks(job: Job, users: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yields users by falling number of steps, as many at a time as memory holds: a constant on a processor, whose
    caches want few, and a share of what is free on a GPU."""
    order = np.lexsort((job.cohort.train.lengths[users], job.steps(users)))[::-1]
    floats = _floats(job, users)
    most = CPU_FLOATS
    if job.plan.device != "cpu":
        free, _ = torch.cuda.mem_get_info(job.plan.device)
        most = int(free * GPU_SHARE) // 4
    start, widest = 0, 0.0
    for stop, user in enumerate(order):
        # Everybody in a chunk is padded to the widest.
        wider = max(widest, float(floats[user]))
        if stop > start and (stop + 1 - start) * wider > most:
            yield users[order[start:stop]]
            start, wider = stop, float(floats[user])
        widest = wider
    if len(order):
        yield users[order[start:]]


@dataclass(frozen=True)
class _Chunk:
    """Samples of a chunk of users, most steps first.

    Attributes:
        users: (U,) positions.
        steps: (U,) number of steps, falling.
        train: what they did.
        samples: (num_epochs * num_rows, 1 + k) samples of all epochs, items by their place among those the user met.
        no_negatives: (U,) who has none.
        met: the items that each of them met.
    """

    users: NDArray[np.int64]
    steps: NDArray[np.int64]
    train: Histories
    samples: NDArray[np.int64]
    no_negatives: NDArray[np.bool_]
    met: Histories

    @classmethod
    def of(cls, job: Job, users: NDArray[np.int64]) -> _Chunk:
        train, samples, no_negatives = job.samples(users)
        if job.cuts_tables:
            ends, items = sampling.rename(samples, train.indptr, job.plan.local_epochs, job.cohort.num_items)
            met = Histories(ends, items)
        else:
            met = _every_item(job, users)
        return cls(users, job.steps(users), train, samples, no_negatives, met)

    def batch(self, step: int, active: int, size: int) -> tuple[Batch, NDArray[np.int64]]:
        """Returns the batch of the first `active` users in a step, with a first axis of users, and (active,) how many
        positives each of them has in it."""
        lengths = self.train.lengths[:active]
        width = np.where(size > 0, size, lengths)
        epoch, nth = np.divmod(step, -(-lengths // width))
        positives = np.minimum(lengths - nth * width, width)
        at = np.arange(positives.max())
        filled = at[None, :] < positives[:, None]
        first = epoch * len(self.train.items) + self.train.indptr[:active] + nth * width
        items = self.samples[np.where(filled, first[:, None] + at, 0)] * filled[:, :, None]
        own = np.zeros(active, dtype=np.int64)
        weights = filled.astype(np.float32)
        return batches.make(own, items, weights, self.no_negatives[:active], positives / lengths), positives


@dataclass(frozen=True)
class _Sequences:
    """Sequences of a chunk of users, who take a step an epoch; attributes as of `_Chunk`, and the batches."""

    users: NDArray[np.int64]
    steps: NDArray[np.int64]
    train: Histories
    epochs: list[Batch]
    met: Histories

    @classmethod
    def of(cls, job: Job, users: NDArray[np.int64]) -> _Sequences:
        epochs = [job.sequences(users, epoch) for epoch in range(job.plan.local_epochs)]
        if job.cuts_tables:
            epochs, met = sequences.renumber(epochs, job.cohort.num_items, together=False)
        else:
            met = _every_item(job, users)
        return cls(users, job.steps(users), job.cohort.train.select(users), epochs, met)

    def batch(self, step: int, active: int, size: int) -> tuple[Batch, NDArray[np.int64]]:
        """Returns the batch of an epoch, see `_Chunk.batch`."""
        batch = {name: tensor[:active] for name, tensor in self.epochs[step].items()}
        batch["user"] = torch.zeros_like(batch["user"])
        return batch, self.train.lengths[:active]


def _every_item(job: Job, users: NDArray[np.int64]) -> Histories:
    num_items = job.cohort.num_items
    return Histories(np.arange(len(users) + 1) * num_items, np.tile(np.arange(num_items), len(users)))


def _fit_chunk(job: Job, users: NDArray[np.int64]) -> None:
    plan, tables = job.plan, set(job.model.row_names())
    chunk = (_Sequences if job.model.sampling == "sequence" else _Chunk).of(job, users)
    places = torch.from_numpy(chunk.met.padded()).to(plan.device)
    start = {
        name: tensor[places] if name in tables else tensor.expand(len(users), *tensor.shape)
        for name, tensor in job.shared.items()
    }
    local = dict(start)
    states = {name: optimizers.empty_state(plan.optimizer, tensor, rows=True) for name, tensor in local.items()}
    own, own_states = take(job.rows, job.model.private_names(), users, plan.device)
    judged = plan.part is not None and plan.part.weighed_by_outcome
    losses_before = _losses(job, chunk, {**start, **own}) if judged else None
    losses = _take_steps(job, chunk, start, local, states, own, own_states)
    if job.moves_private:
        put(job.rows, users, own, own_states)
    kept = np.ones(len(users), dtype=np.bool_)
    if plan.clip_norm:
        kept = add_clipped_copies(job, users, local, chunk.met)
    else:
        _add_up(job, chunk, local, losses_before)
    for count in job.sums.count.values():
        weights = kept * job.weights(users)
        count += np.bincount(chunk.met.items, np.repeat(weights, chunk.met.lengths), len(count))
    job.tally(users[kept], (losses.cpu().double().numpy() / (plan.local_epochs * chunk.train.lengths))[kept])


def _take_steps(
    job: Job, chunk: _Chunk | _Sequences, start: Stack, local: Stack, states: dict[str, Stack], own: Stack,
    own_states: dict[str, Stack],
) -> Tensor:  # fmt: skip
    """Moves the stacks through all steps, in the dictionaries given; returns (U,) losses summed over positives."""
    plan = job.plan
    total = torch.zeros(len(chunk.users), device=plan.device)
    gradient = vmap(grad_and_value(loss_of_one, argnums=1), in_dims=(None, 0, 0))
    for step in range(int(chunk.steps[0])):
        active = int(np.searchsorted(-chunk.steps, -step, side="left"))
        batch, positives = chunk.batch(step, active, plan.batch_size)
        stack = {name: tensor[:active] for name, tensor in {**local, **own}.items()}
        grads, loss = gradient(job.model, stack, batches.to(batch, plan.device))
        total[:active] += loss.detach() * torch.from_numpy(positives).to(plan.device)
        if plan.proximal_mu:
            for name in local:
                grads[name] = grads[name] + plan.proximal_mu * (local[name][:active] - start[name][:active])
        if plan.part is not None:
            for name in local:
                grads[name] = plan.part.gradient(name, grads[name], local[name][:active], start[name][:active])
        if plan.max_grad_norm:
            grads = _clipped(job, chunk, grads, active)
        _step(plan, plan.learning_rate, local, states, grads, active)
        if job.moves_private:
            _step(plan, plan.private_learning_rate, own, own_states, grads, active)
    return total


def _losses(job: Job, chunk: _Chunk | _Sequences, stack: Stack) -> NDArray[np.float64]:
    """Returns (U,) each user's mean loss over the samples of the first epoch."""
    batch, _ = chunk.batch(0, len(chunk.users), 0)
    losses = vmap(loss_of_one, in_dims=(None, 0, 0))(job.model, stack, batches.to(batch, job.plan.device))
    return losses.detach().cpu().double().numpy()


def _clipped(job: Job, chunk: _Chunk | _Sequences, grads: Stack, active: int) -> Stack:
    """Returns the gradients of what moves, each of the first `active` users' bounded over all of it together."""
    still = set() if job.moves_private else set(job.model.private_names())
    moving = {name: grad for name, grad in grads.items() if name not in still}
    lengths = torch.from_numpy(chunk.met.lengths[:active]).to(job.plan.device)
    for name in job.model.row_names():
        # Padding decays too, so the proximal term pulls it back: that is nobody's gradient.
        filled = torch.arange(moving[name].shape[1], device=job.plan.device) < lengths[:, None]
        moving[name] = moving[name] * filled.reshape(*filled.shape, *([1] * (moving[name].ndim - 2)))
    return optimizers.clip(moving, job.plan.max_grad_norm, each=True)


def _step(plan: FitPlan, rate: float, stack: Stack, states: dict[str, Stack], grads: Stack, active: int) -> None:
    """Moves the first `active` users of each stack one step, in the dictionaries given."""
    for name, tensor in stack.items():
        state = {key: value[:active] for key, value in states[name].items()}
        moved, state = optimizers.step(plan.optimizer, tensor[:active], grads[name], state, rate, plan.weight_decay)
        stack[name] = _prefix(tensor, moved)
        states[name] = {key: _prefix(states[name][key], value) for key, value in state.items()}


def _prefix(whole: Tensor, first: Tensor) -> Tensor:
    """Returns `whole` with its first rows replaced."""
    if len(first) == len(whole):
        return first
    whole[: len(first)] = first
    return whole


def _add_up(job: Job, chunk: _Chunk | _Sequences, local: Stack, losses_before: NDArray[np.float64] | None) -> None:
    """Adds weighted deltas of the users of a chunk to the sums."""
    sums, tables, met = job.sums, set(job.model.row_names()), chunk.met
    after = {name: tensor.cpu().numpy() for name, tensor in local.items()}
    before = {name: tensor.cpu().numpy() for name, tensor in job.shared.items()}
    squares = None
    if losses_before is not None:
        squares = np.zeros(len(chunk.users))
        for name, values in after.items():
            if name in tables:
                _square_rows(squares, met.indptr, met.items, *_flat(before[name], values))
            else:
                delta = (values - before[name]).reshape(len(values), -1)
                squares += np.square(delta, dtype=np.float64).sum(1)
    factors = job.factors(chunk.users, losses_before, squares)
    for name, values in after.items():
        total = sums.delta[name]
        if name in tables:
            _add_rows(total.reshape(len(total), -1), met.indptr, met.items, *_flat(before[name], values), factors)
        else:
            total += np.tensordot(factors, (values - before[name]).astype(np.float64), axes=1)


def _flat(table: NDArray, values: NDArray) -> tuple[NDArray, NDArray]:
    """Returns a table as (num_rows, width) and the rows of users as (U, M, width)."""
    return table.reshape(len(table), -1), values.reshape(*values.shape[:2], -1)


@njit(cache=True, nogil=True)
def _add_rows(
    total: NDArray[np.float64],
    indptr: NDArray[np.int64],
    items: NDArray[np.int64],
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    factors: NDArray[np.float64],
) -> None:
    """Adds `factors` times what changed of each user's rows to the rows of their items.

    Args:
        total: (num_items, width) changed.
        indptr, items: the items of each user's rows, as in `Histories`.
        before: (num_items, width) what every user began with.
        after: (U, M, width) their rows now; the first ones of each user are used.
        factors: (U,) of users.
    """
    for user in range(len(factors)):
        first = indptr[user]
        for row in range(indptr[user + 1] - first):
            item = items[first + row]
            for column in range(total.shape[1]):
                total[item, column] += factors[user] * np.float64(after[user, row, column] - before[item, column])


@njit(cache=True, nogil=True)
def _square_rows(
    squares: NDArray[np.float64],
    indptr: NDArray[np.int64],
    items: NDArray[np.int64],
    before: NDArray[np.float32],
    after: NDArray[np.float32],
) -> None:
    """Adds the squared L2 norm of what changed of each user's rows to (U,) `squares`; see `_add_rows`."""
    for user in range(len(squares)):
        first = indptr[user]
        for row in range(indptr[user + 1] - first):
            item = items[first + row]
            for column in range(before.shape[1]):
                squares[user] += np.float64(after[user, row, column] - before[item, column]) ** 2
