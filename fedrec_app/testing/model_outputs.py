"""Checks of what a model computes: losses, scores, and private rows in closed form.

Each takes a `ModelCase` and raises a ConformanceError where the model breaks its rule.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedrec_app.conformance import check, require
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch, Recommender, with_parameters
from fedrec_app.testing.model_case import (
    FEW,
    NUM_ITEMS,
    ODD,
    ModelCase,
    Params,
    alone,
    batch_of,
    cohort_of,
    difference,
    differing,
    losses_of,
    not_finite,
    parameters,
    scores_of,
    without_values,
)
from fedrec_app.training import sampling

_EVERY = range(NUM_ITEMS)


@check
def check_loss(case: ModelCase) -> None:
    """The loss is a finite float32 number for each unit, and every shared parameter has a gradient."""
    users = cohort_of(ODD)
    model = case.spread(users)
    batch = batch_of(model, users)
    given = f"a batch of {len(users)} users"
    for name in model.shared_names():
        frozen = not model.get_parameter(name).requires_grad
        require("it is frozen, but engines would train it: a buffer stays as it is" if frozen else "", f"{name!r}")
    params = parameters(model)
    losses = losses_of(model, params, batch)
    shape = tuple(losses.shape)
    require("" if shape == (len(users),) else f"the loss has shape {shape}, not ({len(users)},)", given)
    require("" if losses.dtype == torch.float32 else f"the loss is {losses.dtype}, not torch.float32", given)
    require(not_finite(losses), f"{given}, the losses")
    for name, gradient in shared_gradients(model, params, losses).items():
        if gradient is None or not bool((gradient != 0).any()):
            require("the loss does not depend on it", f"{given}, {name!r}")
        else:
            require(not_finite(gradient), f"{given}, the gradient of {name!r}")


def shared_gradients(model: Recommender, params: Params, losses: Tensor) -> dict[str, Tensor | None]:
    """Returns the gradient of the sum of losses by each shared parameter, None where there is none."""
    names = model.shared_names()
    if not losses.requires_grad:
        return dict.fromkeys(names)
    gradients = torch.autograd.grad(losses.sum(), [params[name] for name in names], allow_unused=True)
    return dict(zip(names, gradients, strict=True))


@check
def check_units(case: ModelCase) -> None:
    """The loss of a unit does not depend on which others are in the batch, nor on their order."""
    users = cohort_of(ODD)
    model = case.spread(users)
    batch = batch_of(model, users)
    params = parameters(model)
    losses = losses_of(model, params, batch)
    for unit in range(len(users)):
        one = {name: tensor[unit : unit + 1] for name, tensor in batch.items()}
        require(difference(losses_of(model, params, one), losses[unit : unit + 1]), f"unit {unit} of five alone")
    backwards = {name: tensor.flip(0) for name, tensor in batch.items()}
    require(difference(losses_of(model, params, backwards), losses.flip(0)), "five units backwards")
    twice = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}
    require(difference(losses_of(model, params, twice), torch.cat([losses, losses])), "five units, each twice")


@check
def check_padding(case: ModelCase) -> None:
    """Cells of weight 0 change neither losses nor gradients, whatever item they hold."""
    users = cohort_of(ODD)
    model = case.spread(users)
    batch = batch_of(model, users)
    params = parameters(model)
    expected = losses_of(model, params, batch)
    gradients = shared_gradients(model, params, expected)
    for item in (0, NUM_ITEMS - 1):
        given = f"a batch with four more cells of weight 0 and item {item}"
        found = losses_of(model, params, _padded(batch, item))
        require(difference(found, expected), given)
        for name, gradient in shared_gradients(model, params, found).items():
            one, other = (torch.zeros(()) if g is None else g for g in (gradient, gradients[name]))
            require(difference(one, other), f"{given}, the gradient of {name!r}")


def _padded(batch: Batch, item: int) -> Batch:
    more = (len(batch["items"]), 4)
    columns = {"items": torch.full(more, item), "labels": torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(more)}
    columns["weights"] = torch.zeros(more)
    return {name: torch.cat([t, columns[name]], dim=1) if name in columns else t for name, t in batch.items()}


@check
def check_met_rows(case: ModelCase) -> None:
    """Without `whole_catalog` the loss needs those rows of item tables alone that are in the batch.

    Engines cut the parameters of `row_names` to these rows and number the items anew. A model that looks items up
    anywhere else, in features for instance, says `whole_catalog = True`.
    """
    users = cohort_of(FEW)
    model = case.spread(users)
    batch = batch_of(model, users, num_negatives=1)
    samples = batch["items"].numpy().copy()
    _, met = sampling.rename(samples, np.array([0, len(samples)]), 1, NUM_ITEMS)
    params = parameters(model)
    cut = {name: params[name][torch.from_numpy(met)] for name in model.row_names()}
    found = losses_of(model, {**params, **cut}, {**batch, "items": torch.from_numpy(samples)})
    require(difference(found, losses_of(model, params, batch)), f"item tables cut to the {len(met)} items of a batch")


@check
def check_scores(case: ModelCase) -> None:
    """Scores are finite floats, (users, items), the same each time and whatever else is scored."""
    users = cohort_of(ODD)
    model = case.spread(users)
    chosen = [2, 0, 3]
    histories = users.train.select(np.array(chosen))

    def score(who: list[int], items: list[int]) -> Tensor:
        return scores_of(model, users.train.select(np.array(who)), who, items)

    scores = score(chosen, list(_EVERY))
    given = f"{len(chosen)} users and {NUM_ITEMS} items"
    shape = tuple(scores.shape)
    expected = (len(histories), NUM_ITEMS)
    require("" if shape == expected else f"the scores have shape {shape}, not {expected}", given)
    require("" if scores.dtype.is_floating_point else f"the scores are {scores.dtype}, not floats", given)
    require(not_finite(scores), f"{given}, the scores")
    require(difference(score(chosen, list(_EVERY)), scores, exact=True), f"{given} a second time")
    some = [9, 1, 1, 4]
    require(difference(score(chosen, some), scores[:, some]), f"items {some} alone")
    if not model.couples_users:
        for place, user in enumerate(chosen):
            require(difference(score([user], list(_EVERY)), scores[place : place + 1]), f"user {user} alone")


@check
def check_inputs_unchanged(case: ModelCase) -> None:
    """`loss`, `encode` and `score` leave parameters, batches, histories and states as they were."""
    users = cohort_of(ODD)
    model, histories = case.spread(users), users.train
    batch = batch_of(model, users)
    state: dict[str, Tensor] = {}

    def encode() -> None:
        state.update(model.encode(histories, torch.arange(len(users))))

    calls: dict[str, Callable[[], object]] = {"loss": lambda: model.loss(batch)} if case.trained else {}
    calls |= {"encode": encode, "score": lambda: model.score(state, torch.arange(NUM_ITEMS))}
    for name, call in calls.items():
        before = _inputs(model, batch, histories, state if name == "score" else {})
        with torch.no_grad():
            call()
        after = _inputs(model, batch, histories, state if name == "score" else {})
        require(differing(after, before, exact=True), f"what there was before {name}()")


def _inputs(model: Recommender, batch: Batch, histories: Histories, state: dict[str, Tensor]) -> Params:
    given = {f"parameter {name}": parameter for name, parameter in model.named_parameters()}
    given |= {f"batch {name}": tensor for name, tensor in batch.items()}
    given |= {f"state {name}": tensor for name, tensor in state.items()}
    given["histories"] = torch.from_numpy(histories.items)
    return {name: tensor.detach().clone() for name, tensor in given.items()}


@check
def check_empty_history(case: ModelCase) -> None:
    """Users who did nothing yet have finite scores, beside others and among themselves."""
    for lists in ([[], [3, 5], []], [[], []]):
        users = cohort_of(lists)
        scores = scores_of(case.spread(users), users.train, range(len(users)), _EVERY)
        given = f"users with {', '.join(str(len(items)) for items in lists)} items"
        shape = tuple(scores.shape)
        expected = (len(users), NUM_ITEMS)
        require("" if shape == expected else f"the scores have shape {shape}, not {expected}", given)
        require(not_finite(scores), f"{given}, the scores")


@check
def check_follows_parameters(case: ModelCase) -> None:
    """Losses and scores follow the parameters as they are, not as they were when something was scored before."""
    users = cohort_of(ODD)
    model = case.bound(users)
    skeleton = without_values(model)
    new = {name: p.detach().clone() for name, p in case.spread(users).named_parameters()}
    _outputs(case, model, users)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(new[name])
    expected = _outputs(case, case.spread(users), users)
    if differing(_outputs(case, case.spread(users), users), expected):
        return  # not even the same for the same parameters, which check_scores and check_units are there to say
    require(differing(_outputs(case, model, users), expected), "other parameters after a first loss and score")
    made = _outputs(case, with_parameters(skeleton, new), users)
    require(differing(made, expected), "a copy of the model with other parameters")


def _outputs(case: ModelCase, model: Recommender, users: Cohort) -> Params:
    scores = {"scores": scores_of(model, users.train, range(len(users)), _EVERY)}
    return {**scores, "losses": losses_of(model, parameters(model), batch_of(model, users))} if case.trained else scores


@check
def check_solve_private(case: ModelCase) -> None:
    """Private rows in closed form fit, do not raise the loss, and depend on their user alone."""
    users = cohort_of(ODD)
    model = case.spread(users)
    batch = batch_of(model, users)
    for serving in (False, True):
        given = f"five users, serving={serving}"
        rows = model.solve_private(users.train, serving)
        wanted = sorted(model.private_names())
        require("" if sorted(rows) == wanted else f"there are rows of {sorted(rows)}, not of {wanted}", given)
        for name, value in rows.items():
            shape = tuple(model.get_parameter(name).shape)
            fits = tuple(value.shape) == shape and value.dtype == torch.float32
            found = f"{name!r} has shape {tuple(value.shape)} and is {value.dtype}, not {shape} and torch.float32"
            require("" if fits else found, given)
            require(not_finite(value), f"{given}, {name!r}")
        for user in range(len(users)):
            own = model.solve_private(alone(users, user).train, serving)
            mine = {name: value[user : user + 1] for name, value in rows.items()}
            require(differing(own, mine), f"{given}, user {user} alone")
    if case.trained:
        _require_no_worse(model, users, batch)


def _require_no_worse(model: Recommender, users: Cohort, batch: Batch) -> None:
    params = parameters(model)
    start = losses_of(model, params, batch)
    solved = losses_of(model, {**params, **model.solve_private(users.train, serving=False)}, batch)
    worse = torch.nonzero(solved > start + 1e-4 * (1 + start.abs()))
    if len(worse):
        user = int(worse[0])
        require(f"the loss of user {user} rises from {start[user]:.4g} to {solved[user]:.4g}", "the rows solved")
