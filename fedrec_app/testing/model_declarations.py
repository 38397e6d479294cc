"""Checks of what a model declares: its options, its recipe, and which parameters it has.

Each takes a `ModelCase` and raises a ConformanceError where the model breaks its rule.
"""

from __future__ import annotations

import math

import torch

from fedrec_app.config import RunConfig, parse_options
from fedrec_app.conformance import check, require, require_options
from fedrec_app.errors import unknown
from fedrec_app.models.base import ModelOptions, Recommender
from fedrec_app.testing.model_case import NUM_ITEMS, ODD, ModelCase, catalog, cohort_of, differing, shared_of
from strategies.base import RecStrategy
from strategies.closed_form import NAME
from strategies.registry import strategy_class


@check
def check_options(case: ModelCase) -> None:
    """Options have defaults that do, and one that the model does not have is refused."""
    require("" if case.model.name else "its `name` is empty", "the class")
    require_options(case.model.Options, ModelOptions)


@check
def check_recipe(case: ModelCase) -> None:
    """The recipe has settings that may be "auto" alone, a value for each of them, and a strategy that exists."""
    settings = RunConfig().flat()
    allowed = [key for key, value in settings.items() if value == "auto"] + ["strategy.options"]
    for key in case.model.recipe:
        if key not in settings:
            require(unknown("setting", key, settings), f"recipe[{key!r}]")
        require("" if key in allowed else "it is never 'auto', so this value is never used", f"recipe[{key!r}]")
    config = case.config
    if case.model.couples_users and config.train.unit == "user":
        require("the model couples users, which needs train.unit = 'node'", "recipe['train.unit'] = 'user'")
    if not case.trained:
        needed = f"a model that is solved needs {NAME!r}"
        require("" if config.strategy.name == NAME else needed, f"the strategy {config.strategy.name!r}")
        case.make()
        return
    strategy = strategy_class(config.strategy.name)
    if issubclass(strategy, RecStrategy):
        strategy(parse_options(config.strategy.options, "strategy.options"))
    case.make()


@check
def check_names(case: ModelCase) -> None:
    """Every parameter is shared or private and not both; those with a row an item are shared."""
    for given, users in (("five users", cohort_of(ODD)), ("no cohort", None)):
        model = case.empty(users)
        existing = [name for name, _ in model.named_parameters()]
        shared, private, rows = model.shared_names(), model.private_names(), model.row_names()
        for kind, names in (("shared", shared), ("private", private), ("row", rows)):
            for name in names:
                require("" if name in existing else f"there is no parameter {name!r}", f"{given}, {kind}_names()")
            require("" if len(set(names)) == len(names) else f"a name comes twice: {names}", f"{given}, {kind}_names()")
        both = sorted(set(shared) & set(private))
        require(f"{both[0]!r} is private too" if both else "", f"{given}, shared_names()")
        left = [name for name in existing if name not in {*shared, *private}]
        require(f"{left[0]!r} is neither shared nor private" if left else "", f"{given}, the parameters")
        strange = [name for name in rows if name not in shared]
        require(f"{strange[0]!r} is not shared" if strange else "", f"{given}, row_names()")
        if private and not case.trained and not model.solves_private:
            require("nothing gives it values: `solves_private` is not said", f"{given}, the private {private[0]!r}")
        require("" if shared else "there is none: nothing would be learned together", f"{given}, shared_names()")


@check
def check_shapes(case: ModelCase) -> None:
    """Parameters are float32; private ones have a row a user, and those of `row_names` a row an item."""
    for num_users in (0, 1, len(ODD)):
        model = case.empty(cohort_of(ODD[:num_users]))
        for name, parameter in model.named_parameters():
            is_float = parameter.dtype == torch.float32
            require("" if is_float else f"{name!r} is {parameter.dtype}, not torch.float32", f"{num_users} users")
        for name in model.private_names():
            _require_rows(model, name, num_users, f"{num_users} users")
    for num_items in (NUM_ITEMS, NUM_ITEMS + 3):
        model = case.empty(None, catalog(num_items))
        for name in model.row_names():
            _require_rows(model, name, num_items, f"a catalog of {num_items} items")
        for name in model.private_names():
            _require_rows(model, name, 0, "no cohort")
    for name, number in (("private_std", model.private_std()), ("recency", model.recency())):
        fine = math.isfinite(number) and number >= 0
        require("" if fine else f"it is {number}, not a number of at least 0", f"{name}()")
    if model.sampling == "sequence":
        _require_sequences(model)


def _require_sequences(model: Recommender) -> None:
    """Requires what batches of sequences are made by."""
    length, crop = model.max_length, model.crop
    whole = isinstance(length, int) and length >= 1
    require("" if whole else f"it is {length}, not a whole number of at least 1", "`max_length`")
    require("" if 0 <= crop <= 1 else f"it is {crop}, not a share from 0 to 1", "`crop`")


def _require_rows(model: Recommender, name: str, rows: int, given: str) -> None:
    shape = tuple(model.get_parameter(name).shape)
    require("" if shape[:1] == (rows,) else f"{name!r} has shape {shape}, not ({rows}, ...)", given)


@check
def check_seed(case: ModelCase) -> None:
    """The same seed gives the same parameters and buffers, to the last bit."""
    users = cohort_of(ODD)
    one, other = (dict(case.bound(users).state_dict()) for _ in range(2))
    require(differing(other, one, exact=True), "the same seed and users twice")


@check
def check_cohort(case: ModelCase) -> None:
    """Shared parameters do not depend on the users of a node: none, one or many."""
    server, again = shared_of(case.bound(None)), shared_of(case.bound(None))
    if differing(again, server, exact=True):
        return  # not even twice the same without users, which check_seed is there to say
    for num_users in (0, 1, len(ODD)):
        found = shared_of(case.bound(cohort_of(ODD[:num_users])))
        require(differing(found, server, exact=True), f"{num_users} users, the shared parameters")
