"""What the checks of models are made of: a model under its own recipe, and users whose histories are odd or alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call

from fedrec_app.config import RunConfig, Scalar, parse_options, validate_options
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.errors import ConfigError, unknown
from fedrec_app.models.base import Batch, Recommender, Sampling, bind, initialise, with_parameters
from fedrec_app.models.closed_form import ClosedForm, Sums
from fedrec_app.records import Arrays, from_record, to_record
from fedrec_app.seeding import rng
from fedrec_app.training import batches, sampling, sequences

NUM_ITEMS = 12
SEED = 1
ODD = ([3], range(12), [4, 0, 7, 2, 9], [1, 1, 2, 2, 5, 1], range(11))
"""One item; every item; a plain user; repeats; all items but one."""
FEW = ([4, 0, 7], [1, 5])
"""With a negative for each positive they meet ten items of twelve at most."""
_SPREAD = 0.2
_COMPANY = 24

Params = dict[str, Tensor]


@dataclass(frozen=True)
class ModelCase:
    """A model class, its options, and the settings that it trains under.

    Attributes:
        model: the class.
        options: its options by name; defaults without them.
        settings: flat settings by dotted key, over the model's recipe ("train.num-negatives", "num-server-rounds").
    """

    model: type[Recommender]
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether the model has a loss and is trained by it; one of the class `ClosedForm` is solved."""
        return not issubclass(self.model, ClosedForm)

    @property
    def num_rounds(self) -> int:
        """How many rounds a run takes at most."""
        return self.config.num_server_rounds if self.trained else 1

    @cached_property
    def asked(self) -> RunConfig:
        """The settings before the model's recipe fills those at "auto" in."""
        own = {"model.name": self.model.name or self.model.__name__, "model.options": json.dumps(dict(self.options))}
        return RunConfig.from_flat({**own, **self.settings})

    @cached_property
    def config(self) -> RunConfig:
        """The settings with the model's recipe."""
        return self.asked.resolve(self.model.recipe)

    def make(self) -> Recommender:
        """Returns a new model, not bound yet."""
        options = parse_options(self.config.model.options, "model.options")
        schema = validate_options(self.model.Options, options, f"model {self.config.model.name!r}")
        return self.model(int(self.config.model.embedding_dim), schema)

    def empty(self, users: Cohort | None, items: Catalog | None = None) -> Recommender:
        """Returns a new model bound, its private rows as `bind` left them; arguments as for `bound`."""
        return bind(self.make(), items or catalog(), users, SEED)

    def bound(self, users: Cohort | None, items: Catalog | None = None, seed: int = SEED) -> Recommender:
        """Returns a new model with the parameters that a run starts with.

        Args:
            users: of the node; None on the server.
            items: the kit's twelve items without it.
            seed: of the run.
        """
        return initialise(self.make(), items or catalog(), users, seed)

    def spread(self, users: Cohort, items: Catalog | None = None) -> Recommender:
        """Returns a new model with every parameter moved by noise, so that nothing hides in zeros.

        What a user's private rows are moved by depends on the user alone. Shared parameters that are solved, which may
        mean nothing with noise on them, are those of `company` instead.
        """
        model = self.bound(users, items)
        private = set(model.private_names())
        solved = {} if self.trained else self.sums([company(users.num_items)], items).solve()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in solved:
                    parameter.copy_(torch.from_numpy(solved[name]))
                    continue
                if name in private:
                    shape = parameter.shape[1:]
                    rows = [rng(SEED, "conformance", name, user).standard_normal(shape) for user in users.user_ids]
                    noise = np.stack(rows) if rows else np.zeros(parameter.shape)
                else:
                    noise = rng(SEED, "conformance", name).standard_normal(parameter.shape)
                parameter += _SPREAD * torch.from_numpy(np.asarray(noise)).to(parameter.dtype)
        return model

    def node(self, users: Cohort, items: Catalog | None = None) -> ClosedForm:
        """Returns a model that is solved as a node has it that is asked for statistics: its parameters have no values.

        Args:
            users: of the node.
            items: the kit's without it.
        """
        return cast(ClosedForm, without_values(self.bound(users, items)))

    def statistics(self, users: Cohort, items: Catalog | None = None) -> Arrays:
        """Returns the statistics of a node as they arrive; arguments as for `node`."""
        return from_record(to_record(self.node(users, items).statistics(users)))

    def sums(self, nodes: Sequence[Cohort] = (), items: Catalog | None = None) -> Sums:
        """Returns what the server makes of the statistics of nodes.

        Args:
            nodes: their users, in the order in which they answer.
            items: the kit's without it.
        """
        sums = cast(ClosedForm, self.bound(None, items)).sums()
        for users in nodes:
            sums.add(self.statistics(users, items), num_training(users))
        return sums


def num_training(users: Cohort) -> int:
    """Returns how many users have something to train on: what a node says of itself."""
    return int((users.train.lengths > 0).sum())


def without_values(model: Recommender) -> Recommender:
    """Returns a copy of a model whose parameters have shapes alone: what a process keeps between messages."""
    return with_parameters(model, {name: p.detach().to("meta") for name, p in model.named_parameters()})


def company(num_items: int = NUM_ITEMS, most: int = 0) -> Cohort:
    """Returns users to solve parameters from; one of them did nothing, and one came back to what he had.

    Args:
        num_items: of the catalog.
        most: items of a user; half the catalog without it.
    """
    generator = rng(SEED, "conformance", "company", num_items, most)
    lists = [generator.permutation(num_items)[: most or num_items // 2].tolist() for _ in range(_COMPANY)]
    return cohort_of([[], [*lists[1], *lists[1][:1]], *lists[2:]], num_items)


def catalog(num_items: int = NUM_ITEMS) -> Catalog:
    """Returns items with a title, one of two categories in turn, a text and a year."""
    kinds = [("even", "odd")[item % 2] for item in range(num_items)]
    features = pd.DataFrame(
        {
            "title": [f"Title {item}" for item in range(num_items)],
            "category": kinds,
            "text": [f"An {kind} item" for kind in kinds],
            "year": [1990 + item % 30 for item in range(num_items)],
        }
    )
    return Catalog(tuple(f"i{item:03d}" for item in range(num_items)), features)


def cohort_of(
    lists: Sequence[Sequence[int]], num_items: int = NUM_ITEMS, held_out: Sequence[Sequence[int]] | None = None
) -> Cohort:
    """Returns users who did this, oldest first, and who perhaps have items held out for validation and test."""
    nothing = Histories.from_lists([[] for _ in lists])
    train = Histories.from_lists([list(items) for items in lists])
    validation, test = nothing, nothing
    if held_out is not None:
        validation, test = (Histories.from_lists([[pair[at]] for pair in held_out]) for at in (0, 1))
    return Cohort(tuple(f"user {user}" for user in range(len(lists))), num_items, train, validation, test, train)


def alone(users: Cohort, user: int) -> Cohort:
    """Returns the cohort of one user."""
    return users.select(np.array([user]))


def batch_of(model: Recommender, users: Cohort, num_negatives: int = 2) -> Batch:
    """Returns the batch whose units are users, each with all that he did, of the kind that the model trains on.

    Raises:
        ConfigError: there is no such kind.
    """
    base = sampling.sampling_base(SEED, 1, "conformance")
    if model.sampling == "sequence":
        return sequences.make(base, 0, users.keys, users.train, model)
    if model.sampling != "pointwise":
        raise ConfigError(unknown("sampling", model.sampling, get_args(Sampling)))
    samples, no_negatives = sampling.draw_epoch(
        base, 0, users.keys, users.train, users.never_negative, users.num_items, num_negatives
    )
    return batches.whole_users(samples, users.train, no_negatives)


def parameters(model: Recommender) -> Params:
    """Returns copies of all parameters, to differentiate by."""
    return {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}


def losses_of(model: Recommender, params: Params, batch: Batch) -> Tensor:
    """Returns (num_units,) losses, in the way that engines ask for them."""
    return functional_call(model, params, (batch,))


def shared_of(model: Recommender) -> Arrays:
    """Returns copies of the shared parameters by name."""
    return {name: model.get_parameter(name).detach().numpy().copy() for name in model.shared_names()}


def rows_of(model: Recommender) -> Arrays:
    """Returns copies of the private rows by name."""
    return {name: model.get_parameter(name).detach().numpy().copy() for name in model.private_names()}


def scores_of(model: Recommender, histories: Histories, users: Sequence[int], items: Sequence[int]) -> Tensor:
    """Returns (num_users, num_items) scores of users of the cohort that the model is bound to.

    Args:
        model: bound.
        histories: what each of these users did.
        users: their rows in the private parameters.
        items: positions in the catalog.
    """
    with torch.no_grad():
        state = model.encode(histories, torch.tensor(list(users), dtype=torch.int64))
        return model.score(state, torch.tensor(list(items), dtype=torch.int64))


def difference(
    found: Tensor | np.ndarray, expected: Tensor | np.ndarray, exact: bool = False, within: float = 1e-4
) -> str:
    """Returns how numbers differ in shape or, by more than rounding, in value, or "".

    Args:
        found: numbers.
        expected: what they should be.
        exact: to the last bit.
        within: rounding, a share of the largest number expected (and of 0.1, where all are small).
    """
    one, other = (a.detach().double().numpy() if isinstance(a, Tensor) else a for a in (found, expected))
    if one.shape != other.shape:
        return f"the shape is {one.shape}, not {other.shape}"
    scale = float(np.abs(other[np.isfinite(other)]).max(initial=0.0))
    tolerance = 0.0 if exact else within * (0.1 + scale)
    wrong = np.argwhere(~np.isclose(one, other, rtol=0.0, atol=tolerance, equal_nan=True))
    if not len(wrong):
        return ""
    place = tuple(int(at) for at in wrong[0])
    return f"it is {one[place]:.6g} at {place}, not {other[place]:.6g}"


def differing(found: Mapping[str, Any], expected: Mapping[str, Any], exact: bool = False, within: float = 1e-4) -> str:
    """Returns how named numbers differ, or ""; see `difference`."""
    if found.keys() != expected.keys():
        return f"the names are {sorted(found)}, not {sorted(expected)}"
    for name in expected:
        if problem := difference(found[name], expected[name], exact, within):
            return f"{name!r}: {problem}"
    return ""


def not_finite(values: Tensor) -> str:
    """Returns that numbers are not all finite, or ""."""
    return "" if bool(torch.isfinite(values).all()) else "it holds NaN or infinity"
