"""Checks of a model in training: the engines that train users, and whether it learns what it should.

Each takes a `ModelCase` and raises a ConformanceError where the model breaks its rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec_app.config import parse_options
from fedrec_app.conformance import check, require
from fedrec_app.data.cohort import Cohort
from fedrec_app.errors import ConfigError
from fedrec_app.models.base import Batch, Recommender, initial_private, with_parameters
from fedrec_app.records import COUNT, DELTA, Arrays
from fedrec_app.seeding import rng
from fedrec_app.testing.model_case import (
    NUM_ITEMS,
    ODD,
    SEED,
    ModelCase,
    alone,
    catalog,
    cohort_of,
    difference,
    differing,
    losses_of,
    rows_of,
    scores_of,
    shared_of,
)
from fedrec_app.training import batches
from fedrec_app.training.job import Job
from fedrec_app.training.node import fit_node
from fedrec_app.training.plan import FitPlan, FitSums
from fedrec_app.training.private_rows import with_optimizer_state
from fedrec_app.training.serving import scorer
from fedrec_app.training.users import fit_users, load_shared
from strategies.base import RecStrategy
from strategies.registry import strategy_class
from strategies.settings import Settings
from strategies.update import Update

_PLAN = FitPlan(seed=SEED, server_round=1, learning_rate=0.05, private_learning_rate=0.05, num_negatives=3)
_ALIKE = ([0, 1, 2, 3], [5, 3, 1, 0], [2, 4, 5, 1])
"""Four items of six each: batches of two need no padding, and with six draws for each item nobody leaves one out."""
_BOARD_USERS, _BOARD_ITEMS, _TAKEN, _TOP = 40, 60, 22, 10


@check
def check_several_steps(case: ModelCase) -> None:
    """The engine of several steps runs (`torch.func.vmap` of the loss), and does what training each user alone does."""
    users = cohort_of(_ALIKE, 6)
    plan = replace(_PLAN, batch_size=2, local_epochs=2)
    model = case.spread(users, catalog(6))
    shared, first = shared_of(model), rows_of(model)
    rows = {name: array.copy() for name, array in first.items()}
    sums = fit_users(model, users, shared, rows, plan, "several-steps")
    # What is solved in closed form stays as it was solved.
    begun = rows if model.solves_private else first
    delta = {name: np.zeros(array.shape) for name, array in shared.items()}
    own = {name: array.copy() for name, array in begun.items()}
    for user in range(len(users)):
        before = {**shared, **{name: array[user : user + 1] for name, array in begun.items()}}
        after = _trained_alone(model, alone(users, user), before, plan)
        for name in shared:
            delta[name] += len(users.train[user]) * (after[name] - before[name])
        for name in own:
            own[name][user] = after[name][0]
    given = "three users, two epochs"
    require(differing(sums.delta, delta), f"{given}, the sum of deltas")
    require(differing(rows, own), f"{given}, the private rows")


def _trained_alone(model: Recommender, users: Cohort, before: Arrays, plan: FitPlan) -> Arrays:
    """Returns the parameters and the private row of the one user there is after plain gradient steps."""
    job = Job(model, users, load_shared(model, {n: before[n] for n in model.shared_names()}), {}, plan, FitSums({}))
    fixed = set(model.private_names()) if model.solves_private else set()
    params = {name: torch.from_numpy(array.copy()).requires_grad_(name not in fixed) for name, array in before.items()}
    moving = [name for name in params if name not in fixed]
    for batch in _batches_alone(job):
        gradients = torch.autograd.grad(losses_of(model, params, batch).sum(), [params[name] for name in moving])
        for name, gradient in zip(moving, gradients, strict=True):
            rate = plan.private_learning_rate if name in model.private_names() else plan.learning_rate
            params[name] = (params[name] - rate * gradient).detach().requires_grad_()
    return {name: tensor.detach().numpy() for name, tensor in params.items()}


def _batches_alone(job: Job) -> list[Batch]:
    """Returns the batches of the one user there is, without padding: parts of his samples, or a sequence an epoch."""
    user, size = np.array([0]), job.plan.batch_size
    if job.model.sampling == "sequence":
        return [job.sequences(user, epoch) for epoch in range(job.plan.local_epochs)]
    train, samples, none = job.samples(user)
    ones = np.ones((1, size), dtype=np.float32)
    share = np.array([size / len(train.items)])
    return [batches.make(user, part[None], ones, none, share) for part in np.split(samples, len(samples) // size)]


@check
def check_factorization(case: ModelCase) -> None:
    """A model that says it is a factorisation is one: compiled loops train it as its loss does."""
    users = cohort_of(_ALIKE, 6)
    found, rows = [], []
    for engine in ("fused", "one-step"):
        model = case.spread(users, catalog(6))
        own = rows_of(model)
        found.append(fit_users(model, users, shared_of(model), own, _PLAN, engine).delta)
        rows.append(own)
    require(differing(found[0], found[1]), "one step of three users, the sum of deltas by compiled loops")
    require(differing(rows[0], rows[1]), "one step of three users, the private rows by compiled loops")


@check
def check_placement(case: ModelCase) -> None:
    """A user's delta, private rows and scores do not depend on who else is on his node."""
    users = cohort_of(ODD)
    together = case.spread(users)
    for user in range(len(users)):
        one = alone(users, user)
        apart = case.spread(one)
        shared, given = shared_of(apart), f"user {user} on a node of his own, and on one with four others"
        if differing(shared_of(together), shared, exact=True):
            return  # shared parameters depend on the cohort, which check_cohort is there to say
        if case.trained:
            rows = rows_of(apart)
            mine = {name: array.copy() for name, array in rows.items()}
            plan = replace(_PLAN, num_negatives=2)
            expected = fit_users(apart, one, shared, rows, plan, "one-step")
            found = fit_users(together, one, shared, mine, plan, "one-step")
            require(differing(found.delta, expected.delta), f"{given}, his delta")
            require(differing(mine, rows), f"{given}, his private rows")
        scores, again = (scores_of(apart, one.train, [0], range(NUM_ITEMS)) for _ in range(2))
        if not difference(again, scores, exact=True):  # which check_scores is there to say
            require(
                difference(scores_of(together, one.train, [user], range(NUM_ITEMS)), scores), f"{given}, his scores"
            )


@check
def check_training_reduces_the_loss(case: ModelCase) -> None:
    """Training under the recipe takes the loss of planted data below its start."""
    losses = []
    for fitted in _rounds(case):
        losses.append(fitted.loss)
        if losses[-1] < losses[0] - 0.01 * abs(losses[0]):
            return
    require(f"the loss is {losses[0]:.4g} first and {losses[-1]:.4g} at last", _told(case))


@check
def check_learns_tastes(case: ModelCase) -> None:
    """A run under the recipe ranks the item held out far better than chance on planted data.

    Even users take even items, odd users odd ones, each as often as the other: only tastes tell them apart. A model
    that has none says so with the class attribute `personal = False`.
    """
    chance = _TOP / (_BOARD_ITEMS - _TAKEN + 1)
    bound = chance + 3 * sqrt(chance * (1 - chance) / _BOARD_USERS)
    rate = 0.0
    for number, fitted in enumerate(_rounds(case), start=1):
        if number % 4 == 0 or number == case.num_rounds:
            rate = _hit_rate(fitted)
            if rate > bound:
                return
    require(f"HR@{_TOP} is {rate:.3f}; chance is {chance:.3f} and {bound:.3f} is asked for", _told(case))


def _told(case: ModelCase) -> str:
    return f"{case.num_rounds} rounds of {_BOARD_USERS} users, {_BOARD_ITEMS} items"


@dataclass(frozen=True)
class _Fitted:
    """A model after a round: its parameters, who it was trained on, and their mean loss during the round."""

    case: ModelCase
    skeleton: Recommender
    cohort: Cohort
    shared: Arrays
    rows: Arrays
    loss: float
    number: int

    def model(self) -> Recommender:
        """Returns the model to write to, as a message would find it."""
        values = {**self.shared, **{name: self.rows[name] for name in self.skeleton.private_names()}}
        return with_parameters(self.skeleton, {name: torch.from_numpy(a.copy()) for name, a in values.items()})


def _board() -> Cohort:
    generator = rng(SEED, "conformance", "board")
    half = _BOARD_ITEMS // 2
    taken = [[2 * int(i) + user % 2 for i in generator.permutation(half)[:_TAKEN]] for user in range(_BOARD_USERS)]
    return cohort_of([items[:-2] for items in taken], _BOARD_ITEMS, [items[-2:] for items in taken])


def _rounds(case: ModelCase) -> Iterator[_Fitted]:
    """Yields the model after each round of one node, under the recipe of the model; without what a strategy changes on
    the nodes."""
    config, users, items = case.config, _board(), catalog(_BOARD_ITEMS)
    if not case.trained:
        model = case.bound(users, items)
        yield _Fitted(case, model, users, case.sums([users], items).solve(), rows_of(model), 0.0, 1)
        return
    found = strategy_class(config.strategy.name)
    if not issubclass(found, RecStrategy):
        raise ConfigError(f"strategy.name is {config.strategy.name!r}: the kit trains with strategies of ours alone")
    model = case.bound(users, items)
    settings = Settings(SEED, row_names=tuple(model.row_names()), unit=cast(Any, config.train.unit))
    strategy = found(parse_options(config.strategy.options, "strategy.options"), settings)
    rows = with_optimizer_state(initial_private(model, users.keys, SEED), str(config.train.optimizer))
    fitted = _Fitted(case, model, users, shared_of(model), rows, 0.0, 0)
    for number in range(1, config.num_server_rounds + 1):
        plan = replace(FitPlan.of(config.train, SEED, number, config.num_server_rounds), weighting=strategy.weighting)
        fresh = fitted.model()
        if plan.unit == "node":
            sums = fit_node(fresh, users, fitted.shared, rows, plan, 0)
        else:
            sums = fit_users(fresh, users, fitted.shared, rows, plan)
        arrays = {DELTA + name: delta for name, delta in sums.delta.items()}
        arrays |= {COUNT + name: count for name, count in sums.count.items()}
        scalars = {"weight": sums.weight, "num-users": sums.num_users, "num-examples": sums.num_examples}
        mean = strategy.aggregate(iter([Update(arrays, scalars)]), fitted.shared)
        shared = strategy.server_step(fitted.shared, mean, number)
        fitted = replace(fitted, shared=shared, loss=sums.loss / sums.num_examples, number=number)
        yield fitted


def _hit_rate(fitted: _Fitted) -> float:
    """Returns the share of users whose test item is among the first ten of those that they have not; ties count as
    misses."""
    users, config = fitted.cohort.before("test"), fitted.case.config
    everybody = np.arange(len(users))
    plan = FitPlan.to_serve(config.train, SEED, fitted.number)
    rows = {name: array.copy() for name, array in fitted.rows.items()}
    epochs = int(config.evaluate.fold_in_epochs)
    ask = scorer(fitted.model(), fitted.shared, rows, users, everybody, plan, epochs, "fold-in-test")
    scores = ask(everybody).cpu().double().numpy()
    targets = scores[everybody, users.test.items]
    scores[users.train.matrix(users.num_items)] = -np.inf
    return float(np.mean(_not_below(scores, targets) <= _TOP))


def _not_below(scores: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.int64]:
    return (~(scores < targets[:, None])).sum(axis=1)
