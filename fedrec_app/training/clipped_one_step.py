"""Users who take one plain gradient step and whose deltas are clipped: the gradients of a block of them, any model.

Gradients of single users come from one forward pass under `torch.func.vmap`, every user with parameters of his own that
take no memory, and one backward pass; Opacus' optimiser clips and adds them up. A block holds a bounded number of
numbers, so memory does not grow with users.

Ghost clipping (Li, Tramer, Liang & Hashimoto, Large Language Models Can Be Strong Differentially Private Learners, ICLR
2022, section 4) has the norms of layers without their gradients, and pays with a second backward pass. Opacus' own
(`GradSampleModuleFastGradientClipping`, 1.6.0) can do none of our models: it takes what a module with parameters is
called with for one tensor, and a recommender owns its parameters and is called with a batch of several; and it refuses
parameters that are used twice, as a Transformer reads and scores items by one table. Its norm is not that of two.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import vmap

from fedrec_app.training import batches, sequences
from fedrec_app.training.clipped_sums import add_clipped, users_at_a_time
from fedrec_app.training.job import Job
from fedrec_app.training.one_user import loss_of_one
from fedrec_app.training.private_rows import put, step_rows, take


def fit_clipped(job: Job, users: NDArray[np.int64]) -> None:
    """Trains users who take one step of "sgd"; the sums and their private rows change.

    Args:
        job: the fit, with a clipping norm and no weight decay.
        users: (num_users,) positions.
    """
    longest = int(job.cohort.train.lengths[users].max())
    if job.model.sampling == "sequence":
        num_met = 2 * min(longest, job.model.max_length + 1) + sequences.num_scored(job.model, job.cohort.num_items)
    else:
        num_met = longest * (1 + job.plan.num_negatives)
    size = users_at_a_time(job, num_met if job.cuts_tables else job.cohort.num_items)
    for part in np.array_split(users, -(-len(users) // size)):
        _fit_block(job, part)


def _fit_block(job: Job, users: NDArray[np.int64]) -> None:
    model, plan, sums = job.model, job.plan, job.sums
    whole, met = job.whole(users)
    batch = batches.to({**whole, "user": torch.zeros_like(whole["user"])}, plan.device)
    tables, places = set(model.row_names() if job.cuts_tables else []), torch.from_numpy(met).to(plan.device)
    shared = {name: tensor[places] if name in tables else tensor for name, tensor in job.shared.items()}
    # A user a place along the first axis, and so a gradient each; plain autograd holds less than `torch.func.grad`.
    copies = {name: tensor.expand(len(users), *tensor.shape).detach() for name, tensor in shared.items()}
    own, own_states = take(job.rows, model.private_names(), users, plan.device)
    leaves = {name: tensor.requires_grad_() for name, tensor in {**copies, **own}.items()}
    losses = vmap(loss_of_one, in_dims=(None, 0, 0))(model, leaves, batch)
    # A loss that is scaled has deltas for gradients: of a large model it costs to make these of those.
    scale = 1.0 if job.moves_private else -plan.learning_rate
    found = torch.autograd.grad(scale * losses.sum(), list(leaves.values()), materialize_grads=True)
    grads = dict(zip(leaves, found, strict=True))
    deltas = {name: -plan.learning_rate * grads[name] if job.moves_private else grads[name] for name in shared}
    kept = add_clipped(job, users, deltas, met)
    if job.moves_private:
        step_rows(plan, own, own_states, {name: grads[name] for name in own})
        put(job.rows, users, own, own_states)
    for count in sums.count.values():
        count[met] += job.weights_met(whole, kept.astype(np.float64), met)
    job.tally(users[kept], losses.detach().cpu().double().numpy()[kept])
