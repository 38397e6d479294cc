"""Checks of models that are trained on sequences: what is in front of one, what comes after an item, and where it ends.

Each takes a `ModelCase` of a model with `sampling = "sequence"` and raises a ConformanceError where the model breaks
its rule.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedrec_app.conformance import check, require
from fedrec_app.models.base import Batch
from fedrec_app.seeding import rng
from fedrec_app.testing.model_case import (
    NUM_ITEMS,
    SEED,
    ModelCase,
    alone,
    batch_of,
    cohort_of,
    difference,
    losses_of,
    not_finite,
    parameters,
    scores_of,
)
from fedrec_app.testing.model_outputs import shared_gradients

_EVERY = range(NUM_ITEMS)


@check
def check_front_padding(case: ModelCase) -> None:
    """Cells in front of a sequence change neither its loss nor gradients, whatever they hold, nor do longer users."""
    room = case.make().max_length
    lists = [_items(length, length) for length in sorted({2, (room + 1) // 2 + 1, room, room + 1, room + 3})]
    users = cohort_of(lists)
    model = case.spread(users)
    params = parameters(model)
    whole = batch_of(model, users)
    together, widest = losses_of(model, params, whole), whole["items"].shape[1]
    for user, items in enumerate(lists):
        batch = batch_of(model, alone(users, user))
        expected = losses_of(model, params, batch)
        given = f"a user of {len(items)} items"
        require(difference(together[user : user + 1], expected), f"{given} beside longer ones")
        gradients = shared_gradients(model, params, expected)
        more = min(3, widest - batch["items"].shape[1])
        for item in (0, NUM_ITEMS - 1):
            found = losses_of(model, params, _behind(batch, more, item))
            told = f"{given} behind {more} cells of item {item}"
            require(difference(found, expected), told)
            _require_same(shared_gradients(model, params, found), gradients, told)


def _behind(batch: Batch, more: int, item: int) -> Batch:
    """Returns a batch with more cells in front, which are not there and weigh nothing."""
    shape = (len(batch["items"]), more)
    absent, ids = torch.zeros(shape), torch.full(shape, item)
    front = {"items": ids, "targets": ids, "present": absent, "weights": absent, "hidden": absent}
    return {name: torch.cat([front[name], t], dim=1) if name in front else t for name, t in batch.items()}


def _require_same(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], given: str) -> None:
    for name, gradient in found.items():
        one, other = (torch.zeros(()) if g is None else g for g in (gradient, expected[name]))
        require(difference(one, other), f"{given}, the gradient of {name!r}")


@check
def check_causality(case: ModelCase) -> None:
    """What a user did later changes no earlier loss, neither the items nor the targets after a cell; and nothing that
    is hidden changes any, which is all that is asked of a model whose rules say `masked`."""
    room = min(case.make().max_length, NUM_ITEMS - 1)
    users = cohort_of([_items(room + 1, 0)])
    model = case.spread(users)
    params, batch = parameters(model), batch_of(model, users)
    width = batch["items"].shape[1]
    if "hidden" in batch:
        hidden = batch["hidden"] > 0
        items = torch.where(hidden, (batch["items"] + 5) % NUM_ITEMS, batch["items"])
        expected, found = (losses_of(model, params, {**batch, "items": those}) for those in (batch["items"], items))
        given = f"a sequence of {width} cells of which {int(hidden.sum())} are hidden, and other items in these"
        require(difference(found, expected), given)
    if model.sequence_rules.masked:
        return
    for last in range(width - 1):
        # Only the cells up to `last` weigh.
        until = {**batch, "weights": batch["weights"] * (torch.arange(width) <= last)}
        expected = losses_of(model, params, until)
        gradients = shared_gradients(model, params, expected)
        others = {name: _other_after(until[name], last) for name in ("items", "targets")}
        found = losses_of(model, params, {**until, **others})
        given = f"a sequence of {width} cells of which the first {last + 1} weigh, and other items after them"
        require(difference(found, expected), given)
        _require_same(shared_gradients(model, params, found), gradients, given)


def _other_after(items: Tensor, last: int) -> Tensor:
    """Returns items with others in their place after this cell."""
    return torch.cat([items[:, : last + 1], (items[:, last + 1 :] + 5) % NUM_ITEMS], dim=1)


@check
def check_last_items(case: ModelCase) -> None:
    """Scores follow the last `max_length` items and no others; a history that is longer is cut."""
    room = case.make().max_length
    whole = _items(room + 3, 1)
    users = cohort_of([whole, whole[-room:], [*_items(3, 2), *whole[-room:]]])
    scores = scores_of(case.spread(users), users.train, range(3), _EVERY)
    given = f"max_length = {room}, the scores of"
    require(difference(scores[1:2], scores[:1]), f"{given} a user of the last {room} of {room + 3} items alone")
    require(difference(scores[2:], scores[:1]), f"{given} a user of other items before those")


@check
def check_one_item(case: ModelCase) -> None:
    """A user of one item, who has no next one, has loss 0, no gradient and finite scores."""
    users = cohort_of([[3], _items(5, 3)])
    model = case.spread(users)
    params, batch = parameters(model), batch_of(model, users)
    for given, one in (
        ("one item", batch_of(model, alone(users, 0))),
        ("one item, beside a longer user", {name: tensor[:1] for name, tensor in batch.items()}),
    ):
        losses = losses_of(model, params, one)
        require(difference(losses, torch.zeros(1), exact=True), f"{given}, the loss")
        for name, gradient in shared_gradients(model, params, losses).items():
            none = gradient is None or not bool((gradient != 0).any())
            require("" if none else "it is not 0", f"{given}, the gradient of {name!r}")
    require(not_finite(scores_of(model, users.train, [0, 1], _EVERY)), "one item, the scores")


def _items(length: int, number: int) -> list[int]:
    """Returns items of a user, the same for the same number."""
    return rng(SEED, "conformance", "sequence", number).integers(0, NUM_ITEMS, length).tolist()
