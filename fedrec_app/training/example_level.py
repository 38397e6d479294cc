"""DP-SGD inside a node that pools its users: what the node sends says little about any one example.

Deep Learning with Differential Privacy, Abadi et al., CCS 2016, https://arxiv.org/abs/1607.00133, Algorithm 1, with
Poisson sampling and a fixed denominator. One step, for shared parameters and private rows p together, of n examples:

    S ~ each example with probability q;   g = [sum over S of clip(grad loss_i(p), C) + N(0, (z C)^2 I)] / (q n)

An example is one interaction with its negatives, or of a model of sequences one user's sequence: all that the user did.

Private rows never leave the node, but they are inside the mechanism. The next gradients of a user's other examples
depend on his row, so a row that followed an example without bound and noise would carry it into all of them, and from
there into what is sent. Hence one norm over the shared parameters and the user's row, and noise on the rows of all
users in every step, of those who were not drawn too.

Whatever else an example's gradient could learn of other examples is cut off: negatives are drawn for each example alone
from all items but its own, not from those that its user has not met; "share" is the average user's, not this one's; a
row follows the sum over its examples, not the mean over those that happened to be drawn. The optimiser, weight decay
and FedProx's pull see noised sums only.

Neighbours are two data sets of a node of which one has an example where the other has nothing ("zero-out", Kairouz et
al., Practical and Private (Deep) Learning without Sampling or Shuffling, ICML 2021, section 2): n, and which users have
examples, count as known. Sampling, negatives and noise come from the operating system's entropy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, vmap

from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.errors import ConfigError
from fedrec_app.models.base import Batch, Recommender
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.mechanism import add_noise
from fedrec_app.privacy.node_accountant import NodeAccountant
from fedrec_app.privacy.sampling import poisson
from fedrec_app.training import batches, optimizers, sampling, sequences
from fedrec_app.training.job import Job
from fedrec_app.training.one_user import loss_of_one
from fedrec_app.training.plan import Arrays, FitPlan, FitSums
from fedrec_app.training.private_rows import put, step_rows, take
from fedrec_app.training.users import load_shared

CPU_FLOATS, GPU_FLOATS = 1 << 24, 1 << 28
"""Numbers that gradients of single examples may take at a time."""
COPIES = 5
"""Floats for each number of a gradient: in float32 and float64, clipped and not."""

Tensors = dict[str, Tensor]


def example_level_problem(model: Recommender, plan: FitPlan) -> str:
    """Returns why a model cannot be trained as settings say with privacy of examples, and what to set, or "".

    Args:
        model: bound or not.
        plan: of a pooled node.
    """
    unit = 'privacy.unit="example"'
    if isinstance(model, ClosedForm):
        return f"model {model.name!r} is solved from counts and not trained by gradients: {unit} needs another model"
    if model.couples_users:
        return f"model {model.name!r} couples users, so no example has a gradient of its own: {unit} needs another"
    if model.solves_private:
        return (
            f"model {model.name!r} solves private rows in closed form, which no noise protects: {unit} needs "
            f'rows that are trained, for mf model.options=\'{{"loss": "bce"}}\' and train.num-negatives=4'
        )
    if plan.private_epochs and model.private_names():
        return (
            f"train.private-epochs={plan.private_epochs} fits private rows without noise: {unit} needs "
            "train.private-epochs=0"
        )
    if plan.max_grad_norm:
        return (
            f"train.max-grad-norm={plan.max_grad_norm:g} bounds the gradient of a mini-batch, and with {unit} "
            "privacy.clip-norm bounds that of each example: set train.max-grad-norm=0"
        )
    if plan.unit != "node":
        return f'{unit} needs train.unit="node", found {plan.unit!r}'
    if plan.user_fraction < 1:
        return (
            f"train.user-fraction={plan.user_fraction:g} draws users from the public seed: {unit} needs "
            "train.user-fraction=1, and samples by privacy.sampling-rate"
        )
    if plan.weighting not in ("users", "uniform"):
        return f'weighting {plan.weighting!r} tells how many examples there are: {unit} needs "users" or "uniform"'
    if plan.part is not None:
        return f"a strategy with a client part may learn more of nodes than deltas: {unit} needs another one"
    return ""


def fit_examples(
    model: Recommender,
    cohort: Cohort,
    shared: Arrays,
    rows: Arrays,
    plan: FitPlan,
    release: Gaussian,
    clip_norm: float,
    accountant: NodeAccountant,
) -> FitSums:
    """Returns the node's weighted delta as sums over one unit, charged before; private rows are changed in place.

    Counts and the loss are 0 in it; the weight is the number of users with examples ("users") or 1 ("uniform").

    Args:
        model: bound to the catalog and the cohort.
        cohort: the users of this node.
        shared: parameters received, float32, by name; not changed.
        rows: private rows and optimiser states of the cohort; changed in place, those of all users in every step. Their
            rate counts for the mean over a user's examples, of a user who has as many as the average.
        plan: what to do; `release.count` stands for the local epochs, and the sampling rate for `batch_size`.
        release: z, q and the number of steps: what is charged is what is done.
        clip_norm: C, bound of the L2 norm of an example's gradient, over the shared parameters and its user's rows.
        accountant: of this node.

    Raises:
        ConfigError: see `example_level_problem`.
        StateError: the ledger cannot be charged; nothing was trained.
    """
    if problem := example_level_problem(model, plan):
        raise ConfigError(problem)
    start = load_shared(model, shared, plan.device)
    sums = FitSums.zeros(shared, [])
    accountant.charge(release, plan.server_round)
    examples, num_users = _examples(model, cohort), int((cohort.train.lengths > 0).sum())
    if len(examples) == 0:
        return sums
    local = {name: tensor.clone() for name, tensor in start.items()}
    states = {name: optimizers.empty_state(plan.optimizer, t, rows=False) for name, t in local.items()}
    everybody = np.arange(len(cohort))
    own, own_states = take(rows, model.private_names(), everybody, plan.device)
    job = Job(model, cohort, start, rows, plan, sums)
    expected = release.sampling_rate * len(examples)
    for _ in range(release.count):
        chosen = examples[poisson(len(examples), release.sampling_rate)]
        total = clipped_sum(job, {**local, **own}, chosen, clip_norm)
        noised = add_noise({n: t.cpu().numpy() for n, t in total.items()}, release.noise_multiplier, clip_norm)
        grads = {name: (torch.from_numpy(noised[name]) / expected).float().to(plan.device) for name in noised}
        _step_shared(plan, local, states, start, grads)
        step_rows(plan, own, own_states, {name: num_users * grads[name] for name in own})
    put(rows, everybody, own, own_states)
    sums.weight = 1.0 if plan.weighting == "uniform" else float(num_users)
    for name, tensor in local.items():
        sums.delta[name] += sums.weight * (tensor - start[name]).cpu().double().numpy()
    return sums


def clipped_sum(job: Job, values: Tensors, chosen: NDArray[np.int64], clip_norm: float) -> Tensors:
    """Returns the sum of clipped gradients of examples by parameter, float64; private ones have rows of everybody.

    Each is cut to clip_norm / (norm + 1e-6) of itself where that is below 1, as Opacus' `DPOptimizer` does. One that is
    not finite is left out: no factor would bound it.

    Args:
        job: the fit.
        values: shared parameters and private rows of the cohort, as they are now.
        chosen: (k,) examples: rows of `cohort.train`, or users of a model of sequences.
        clip_norm: C.
    """
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in values.items()}
    tables, private = set(job.model.row_names()), set(job.model.private_names())
    for block in _blocks(job, chosen):
        batch, met = _draw(job, block)
        users = torch.from_numpy(_owners(job, block)).to(job.plan.device)
        rows_of = {name: users for name in private}
        if met is not None:
            places = torch.from_numpy(met.padded()).to(job.plan.device)
            rows_of.update({name: places for name in tables})
        grads = _gradients(job, values, rows_of, batches.to(batch, job.plan.device))
        for name, clipped in optimizers.clip(_finite(grads), clip_norm, each=True).items():
            if name in rows_of:
                at = rows_of[name]
                total[name].index_add_(0, at.flatten(), clipped.flatten(0, at.ndim - 1))
            else:
                total[name] += clipped.sum(0)
    return total


def _gradients(job: Job, values: Tensors, rows_of: Tensors, batch: Batch) -> Tensors:
    """Returns the gradient of each example by parameter, stacked along a first axis.

    Args:
        job: the fit.
        values: as of `clipped_sum`.
        rows_of: parameters of which an example needs some rows only -> the rows, (B,) one each or (B, m).
        batch: of B examples, with items numbered by their place among these rows.
    """
    stack = {name: tensor[rows_of[name]] if name in rows_of else tensor for name, tensor in values.items()}
    axes = {name: 0 if name in rows_of else None for name in stack}
    return vmap(grad(loss_of_one, argnums=1), in_dims=(None, axes, 0))(job.model, stack, batch)


def _finite(grads: Tensors) -> Tensors:
    """Returns gradients in float64, zero where any number of the same example's is not finite."""
    # In float64 the norm of finite float32 numbers is finite, and takes a fraction of the time of looking at each.
    norms = [torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1, dtype=torch.float64) for g in grads.values()]
    whole = torch.stack(norms).isfinite().all(0)
    return {
        name: torch.where(whole.reshape(-1, *([1] * (grad.ndim - 1))), grad.double(), 0.0)
        for name, grad in grads.items()
    }


def _step_shared(plan: FitPlan, local: Tensors, states: dict[str, Tensors], start: Tensors, grads: Tensors) -> None:
    """Moves the shared parameters one step, in the dictionaries given."""
    for name in local:
        gradient = grads[name] + plan.proximal_mu * (local[name] - start[name])
        local[name], states[name] = optimizers.step(
            plan.optimizer, local[name], gradient, states[name], plan.learning_rate, plan.weight_decay
        )


def _examples(model: Recommender, cohort: Cohort) -> NDArray[np.int64]:
    """Returns (n,) all examples: rows of `cohort.train`, or for a model of sequences users who have something there."""
    if model.sampling == "sequence":
        return np.flatnonzero(cohort.train.lengths > 0)
    return np.arange(len(cohort.train.items))


def _owners(job: Job, block: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the user of each of these examples."""
    return block if job.model.sampling == "sequence" else job.cohort.train.indptr.searchsorted(block, side="right") - 1


def _blocks(job: Job, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yields examples, as many at a time as memory holds."""
    model, plan, num_items, tables = job.model, job.plan, job.cohort.num_items, set(job.model.row_names())
    met, cells = 1 + plan.num_negatives, 0
    if model.sampling == "sequence":
        scored = sequences.num_scored(model, num_items)
        met, cells = 2 * (model.max_length + 1) + scored, model.max_length * scored
    row = sum(tensor[0].numel() for name, tensor in job.shared.items() if name in tables)
    fixed = sum(tensor.numel() for name, tensor in job.shared.items() if name not in tables)
    floats = COPIES * (fixed + row * (min(met, num_items) if job.cuts_tables else num_items)) + cells
    size = max(1, (CPU_FLOATS if plan.device == "cpu" else GPU_FLOATS) // max(floats, 1))
    for at in range(0, len(chosen), size):
        yield chosen[at : at + size]


def _draw(job: Job, block: NDArray[np.int64]) -> tuple[Batch, Histories | None]:
    """Returns the batch of these examples and, where item tables are cut, the items that each of them met, by whose
    place in his list the batch numbers them."""
    model, cohort = job.model, job.cohort
    if model.sampling == "sequence":
        base = np.uint64(int.from_bytes(os.urandom(8)))
        batch, met = sequences.make(base, 0, cohort.keys[block], cohort.train.select(block), model), None
        if job.cuts_tables:
            (batch,), met = sequences.renumber([batch], cohort.num_items, together=False)
        return {**batch, "user": torch.zeros_like(batch["user"])}, met
    samples = with_negatives(cohort.train.items[block], cohort.num_items, job.plan.num_negatives)
    met = None
    if job.cuts_tables:
        met = Histories(*sampling.rename(samples, np.arange(len(block) + 1), 1, cohort.num_items))
    nobody = np.zeros(len(block), dtype=np.int64)
    weights = np.ones((len(block), 1), dtype=np.float32)
    share = np.full(len(block), (cohort.train.lengths > 0).sum() / len(cohort.train.items))
    return batches.make(nobody, samples[:, None], weights, np.full(len(block), cohort.num_items < 2), share), met


def with_negatives(items: NDArray[np.int64], num_items: int, num_negatives: int) -> NDArray[np.int64]:
    """Returns (B, 1 + k) items, each followed by negatives drawn uniformly from all others, from OS entropy.

    Args:
        items: (B,) positives.
        num_items: size of the catalog; with one item the negatives repeat it.
        num_negatives: k.
    """
    drawn = np.random.default_rng().integers(0, max(num_items - 1, 1), (len(items), num_negatives))
    drawn += (drawn >= items[:, None]) & (num_items > 1)
    return np.concatenate([items[:, None], drawn], axis=1)
