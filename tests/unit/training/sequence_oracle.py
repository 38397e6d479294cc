"""The slow local training of SasRec that every engine must equal: one history at a time in float64, windows cut by
hand, torch.optim, no engine and no batch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import bind
from fedrec_app.models.sasrec import SasRec
from fedrec_app.seeding import rng
from fedrec_app.training import sequences
from fedrec_app.training.plan import Arrays, FitPlan
from fedrec_app.training.sampling import sampling_base
from tests.unit.models import slow_sasrec
from tests.unit.training.oracle import _optimizer, _step, catalog, shared_of

NUM_ITEMS = 12
LENGTH = 4


def cohort_of(*lists: Any) -> Cohort:
    train, nothing = Histories.from_lists(lists), Histories.from_lists([[]] * len(lists))
    return Cohort(tuple(f"u{user}" for user in range(len(lists))), NUM_ITEMS, train, nothing, nothing, train)


def make(**options: Any) -> SasRec:
    """Returns a small model, every parameter moved, so that no gradient is next to nothing."""
    model = SasRec(8, SasRec.Options(**{"max_length": LENGTH, "heads": 2, "layers": 1, **options}))
    bind(model, catalog(NUM_ITEMS), None, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def train_one_user(model: SasRec, cohort: Cohort, user: int, plan: FitPlan) -> tuple[Arrays, float]:
    """Returns the delta of a user, and his mean loss over the epochs."""
    mine = copy.deepcopy(model).double()
    before, optimizer, total = shared_of(mine), _optimizer(mine, plan), 0.0
    for epoch in range(plan.local_epochs):
        optimizer.zero_grad()
        loss = _loss(mine, cohort, user, plan, epoch)
        loss.backward()
        total += loss.item() / plan.local_epochs
        _pull(mine, before, plan)
        _step(optimizer, plan)
    delta = {name: after - before[name] for name, after in shared_of(mine).items()}
    if plan.clip_norm:
        norm = np.sqrt(sum(float(np.square(value).sum()) for value in delta.values()))
        delta = {name: min(1.0, plan.clip_norm / (norm + 1e-6)) * value for name, value in delta.items()}
    return delta, total


def train_pooled(model: SasRec, cohort: Cohort, plan: FitPlan, partition_id: int) -> tuple[Arrays, float]:
    """Returns the delta of a node, and the loss of an epoch, the mean of each user times his interactions."""
    mine = copy.deepcopy(model).double()
    before, optimizer, total = shared_of(mine), _optimizer(mine, plan), 0.0
    users = np.flatnonzero(cohort.train.lengths > 0)
    for epoch in range(plan.local_epochs):
        order = rng(plan.seed, "node-order", plan.server_round, epoch, partition_id).permutation(users)
        size = plan.batch_size or len(order)
        for at in range(0, len(order), size):
            optimizer.zero_grad()
            members = order[at : at + size]
            for user in members:
                loss = _loss(mine, cohort, int(user), plan, epoch)
                (loss / len(members)).backward()
                total += loss.item() * len(cohort.train[int(user)]) / plan.local_epochs
            _pull(mine, before, plan)
            _step(optimizer, plan)
    return {name: after - before[name] for name, after in shared_of(mine).items()}, total


def _loss(mine: SasRec, cohort: Cohort, user: int, plan: FitPlan, epoch: int) -> torch.Tensor:
    items = cohort.train[user].tolist()
    base = sampling_base(plan.seed, plan.server_round, "fit")
    alone = sequences.make(base, epoch, cohort.keys[[user]], Histories.from_lists([items]), mine)
    return slow_sasrec.loss(mine, items[-(LENGTH + 1) :], int(alone["noise"][0]))


def _pull(mine: SasRec, before: Arrays, plan: FitPlan) -> None:
    for name, parameter in mine.named_parameters():
        parameter.grad += plan.proximal_mu * (parameter.detach() - torch.from_numpy(before[name]))
