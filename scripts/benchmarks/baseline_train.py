"""The baseline of training: one torch model a user, as research code on federated recommenders does it.

For every user a deep copy of the server's model, item table and all, a torch optimiser, mini-batches of positives with
negatives drawn by numpy, and then the difference of all parameters added to the sum.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cohorts import Task, as_tensors
from fedrec_app.models.neumf import NeuMF
from fedrec_app.training.plan import Arrays, FitPlan

Draw = Callable[[int], NDArray[np.int64]]
"""From a user's position to his (n, 1 + k) items: a shuffled positive and its negatives in each row."""


class PlainMF(nn.Module):
    """Dot product of a user and item embeddings; parameters are named as in `fedrec_app.models.mf`."""

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        self.item_embedding = nn.Parameter(torch.empty(num_items, dim))
        self.user_embedding = nn.Parameter(torch.empty(1, dim))

    def forward(self, items: Tensor) -> Tensor:
        """Returns (n,) logits of (n,) items."""
        return (F.embedding(items, self.item_embedding) * self.user_embedding).sum(-1)


class PlainNeuMF(nn.Module):
    """NeuMF as in the paper; parameters are named as in `fedrec_app.models.neumf`."""

    def __init__(self, num_items: int, dim: int, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.item_gmf = nn.Parameter(torch.empty(num_items, dim))
        self.item_mlp = nn.Parameter(torch.empty(num_items, dim))
        self.item_bias = nn.Parameter(torch.empty(num_items))
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([2 * dim, *layers]))
        self.output = nn.Linear(dim + layers[-1], 1)
        self.user_gmf = nn.Parameter(torch.empty(1, dim))
        self.user_mlp = nn.Parameter(torch.empty(1, dim))

    def forward(self, items: Tensor) -> Tensor:
        """Returns (n,) logits of (n,) items."""
        product = F.embedding(items, self.item_gmf) * self.user_gmf
        hidden = torch.cat([self.user_mlp.expand(len(items), -1), F.embedding(items, self.item_mlp)], dim=-1)
        for layer in self.mlp:
            hidden = torch.relu(layer(hidden))
        return self.output(torch.cat([product, hidden], dim=-1))[:, 0] + self.item_bias[items]


def drawn_by_numpy(task: Task, plan: FitPlan) -> Draw:
    """Returns the usual sampling: positives shuffled, negatives from all items that the user has not."""
    generator = np.random.default_rng([plan.seed, plan.server_round])

    def draw(user: int) -> NDArray[np.int64]:
        positives = generator.permutation(task.cohort.train[user])
        others = np.ones(task.cohort.num_items, dtype=bool)
        others[positives] = False
        negatives = generator.choice(np.flatnonzero(others), size=(len(positives), plan.num_negatives))
        return np.column_stack([positives, negatives])

    return draw


def one_model_a_user(task: Task, rows: Arrays, plan: FitPlan, draw: Draw | None = None) -> tuple[Arrays, float]:
    """Returns the sum of all users' deltas, weighted by their training interactions, and of their losses.

    Args:
        task: model and users.
        rows: private rows; changed in place.
        plan: one local epoch of SGD in mini-batches.
        draw: the samples of a user; `drawn_by_numpy` when absent.
    """
    draw = draw or drawn_by_numpy(task, plan)
    server = _plain(task)
    before = as_tensors(task.shared)
    private = as_tensors(rows)
    sums = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    losses = 0.0
    for user in range(len(task.cohort)):
        local = copy.deepcopy(server)
        own = {name: local.get_parameter(name) for name in private}
        with torch.no_grad():
            for name, param in own.items():
                param.copy_(private[name][user])
        optimizer = torch.optim.SGD(
            [
                {"params": [local.get_parameter(name) for name in before], "lr": plan.learning_rate},
                {"params": list(own.values()), "lr": plan.private_learning_rate},
            ]
        )
        samples = draw(user)
        for start in range(0, len(samples), plan.batch_size):
            batch = samples[start : start + plan.batch_size]
            labels = torch.zeros(batch.shape)
            labels[:, 0] = 1.0
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(local(torch.from_numpy(batch.reshape(-1))), labels.reshape(-1))
            loss.backward()
            optimizer.step()
            losses += loss.item() * len(batch)
        with torch.no_grad():
            for name, start_value in before.items():
                sums[name].add_(local.get_parameter(name) - start_value, alpha=len(samples))
            for name, param in own.items():
                private[name][user] = param[0]
    return {name: tensor.numpy() for name, tensor in sums.items()}, losses


def _plain(task: Task) -> nn.Module:
    dim, num_items = task.model.embedding_dim, task.cohort.num_items
    if isinstance(task.model, NeuMF):
        model: nn.Module = PlainNeuMF(num_items, dim, task.model.options.layers)
    else:
        model = PlainMF(num_items, dim)
    with torch.no_grad():
        for name, tensor in as_tensors(task.shared).items():
            model.get_parameter(name).copy_(tensor)
    return model
