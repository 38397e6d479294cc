"""The slow, obvious local training that every engine must equal: one torch model a user, torch autograd,
torch.optim, all in float64 (in float32 the difference of parameters would be less exact than what it judges)."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch, Recommender, initialise
from fedrec_app.models.mf import MatrixFactorization
from fedrec_app.models.neumf import NeuMF
from fedrec_app.training import batches, node, sampling
from fedrec_app.training.plan import Arrays, FitPlan


def small_cohort(num_users: int = 7, num_items: int = 30, seed: int = 0) -> Cohort:
    generator = np.random.default_rng(seed)
    lists = [generator.permutation(num_items)[: 2 + int(generator.integers(0, 9))] for _ in range(num_users)]
    train = Histories.from_lists(lists)
    nothing = Histories.from_lists([[]] * num_users)
    return Cohort(tuple(f"u{i}" for i in range(num_users)), num_items, train, nothing, nothing, train)


def catalog(num_items: int = 30) -> Catalog:
    return Catalog.of_ids(f"{i:04d}" for i in range(num_items))


def make(name: str, cohort: Cohort, **options: object) -> Recommender:
    cls = {"mf": MatrixFactorization, "neumf": NeuMF}[name]
    model = cls(4, cls.Options(init_std=0.3, **options))
    return initialise(model, catalog(cohort.num_items), cohort, seed=1)


def shared_of(model: Recommender) -> Arrays:
    return {name: model.get_parameter(name).detach().numpy().copy() for name in model.shared_names()}


def private_of(model: Recommender) -> Arrays:
    return {name: model.get_parameter(name).detach().numpy().copy() for name in model.private_names()}


class Trained(NamedTuple):
    """What a user has after training: his delta of shared parameters, private rows, the items he met, and his loss
    summed over the positives of an epoch."""

    delta: Arrays
    own: Arrays
    met: set[int]
    loss: float


def train_one_user(model: Recommender, cohort: Cohort, user: int, plan: FitPlan) -> Trained:
    """Returns what the user has after training."""
    mine = copy.deepcopy(model).double()
    before, private = shared_of(mine), set(mine.private_names())
    optimizer = _optimizer(mine, plan)
    base = sampling.sampling_base(plan.seed, plan.server_round, "fit")
    parts = []
    for epoch in range(plan.local_epochs):
        samples, full = sampling.draw_epoch(
            base, epoch, cohort.keys, cohort.train, cohort.never_negative, cohort.num_items, plan.num_negatives
        )
        rows = samples[cohort.train.indptr[user] : cohort.train.indptr[user + 1]]
        size = plan.batch_size or len(rows)
        for at in range(0, len(rows), size):
            part = rows[None, at : at + size]
            ones = np.ones(part.shape[:2], dtype=np.float32)
            share = np.array([part.shape[1] / len(rows)])
            parts.append(_double(batches.make(np.array([user]), part, ones, full[[user]], share)))
    met: set[int] = set(range(cohort.num_items)) if model.whole_catalog else set()
    for batch in parts:
        met.update(batch["items"].flatten().tolist())
    strangers = np.setdiff1d(np.arange(cohort.num_items), list(met))
    total = 0.0
    for batch in parts:
        optimizer.zero_grad()
        loss = mine.loss(batch).sum()
        loss.backward()
        total += loss.item() * float(batch["labels"].sum())
        for name, parameter in mine.named_parameters():
            if plan.proximal_mu and name not in private:
                parameter.grad += plan.proximal_mu * (parameter.detach() - torch.from_numpy(before[name]))
            if name in mine.row_names():  # a user has no copy of the rows that he does not meet
                parameter.grad[strangers] = 0
        _step(optimizer, plan)
    delta = {name: after - before[name] for name, after in shared_of(mine).items()}
    if not model.whole_catalog:  # weight decay is for the rows that the user met
        for name in model.row_names():
            delta[name][strangers] = 0
    if plan.clip_norm:
        norm = np.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in delta.values()))
        factor = min(1.0, plan.clip_norm / (norm + 1e-6))
        delta = {name: factor * value for name, value in delta.items()}
    own = {name: array[user] for name, array in private_of(mine).items()}
    return Trained(delta, own, met, total / plan.local_epochs)


def train_pooled(model: Recommender, cohort: Cohort, plan: FitPlan, partition_id: int) -> tuple[Arrays, Arrays, float]:
    """Returns the delta of shared parameters of a node that pools its users, their private rows, and the loss summed
    over the positives of an epoch. Everybody must be in every mini-batch where unmoved rows would still be decayed, or
    carried on by Adam's momentum: torch's optimisers know no rows."""
    mine = copy.deepcopy(model).double()
    before = shared_of(mine)
    optimizer = _optimizer(mine, plan)
    everybody, total = np.arange(len(cohort)), 0.0
    for epoch in range(plan.local_epochs):
        for batch, members in node._mini_batches(model, cohort, everybody, plan, epoch, partition_id):
            optimizer.zero_grad()
            users = torch.from_numpy(members)[batch["user"]]
            losses = mine.loss({**_double(batch), "user": users})
            losses.mean().backward()
            total += losses.sum().item()
            for name in mine.shared_names():
                parameter = mine.get_parameter(name)
                parameter.grad += plan.proximal_mu * (parameter.detach() - torch.from_numpy(before[name]))
            for name in mine.private_names():
                for user in members:  # each of them follows the mean over his own examples
                    mine.get_parameter(name).grad[user] *= len(losses) / int((users == user).sum())
            _step(optimizer, plan)
    delta = {name: after - before[name] for name, after in shared_of(mine).items()}
    return delta, private_of(mine), total / plan.local_epochs


def _optimizer(model: Recommender, plan: FitPlan) -> torch.optim.Optimizer:
    """Returns torch's own; private rows that stand still have a rate of 0."""
    make_optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[plan.optimizer]
    private = set(model.private_names())
    return make_optimizer(
        [
            {"params": [p for n, p in model.named_parameters() if n not in private], "lr": plan.learning_rate},
            {"params": [p for n, p in model.named_parameters() if n in private], "lr": plan.private_learning_rate},
        ],
        weight_decay=plan.weight_decay,
    )


def _step(optimizer: torch.optim.Optimizer, plan: FitPlan) -> None:
    if plan.max_grad_norm:
        moving = [p for group in optimizer.param_groups if group["lr"] > 0 for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(moving, plan.max_grad_norm)
    optimizer.step()


def _double(batch: Batch) -> Batch:
    return {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}
