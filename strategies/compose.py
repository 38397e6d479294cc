"""The two independent choices that a strategy is made of: an aggregator and a server optimiser, each by name."""

from __future__ import annotations

from typing import Any, TypeVar

from fedrec_app.errors import ConfigError
from fedrec_app.plugins import Registry, plug_in_code
from strategies.aggregators import Aggregator
from strategies.optimizers import ServerOptimizer
from strategies.options import Choice

AGGREGATORS = Registry(
    "aggregator",
    {
        "mean": "strategies.aggregators:WeightedMean",
        "median": "strategies.median:CoordinateMedian",
        "trimmed-mean": "strategies.trimmed_mean:CoordinateTrimmedMean",
        "krum": "strategies.krum:KrumSelection",
        "multi-krum": "strategies.multi_krum:MultiKrumSelection",
        "norm-bound": "strategies.norm_bound:BoundedMean",
    },
    "fedrec.aggregators",
    Aggregator,
    "fedrec_app.api.Aggregator",
)
SERVER_OPTIMIZERS = Registry(
    "server optimizer",
    {
        "sgd": "strategies.optimizers:SGD",
        "momentum": "strategies.optimizers:Momentum",
        "adagrad": "strategies.adaptive:Adagrad",
        "yogi": "strategies.adaptive:Yogi",
        "adam": "strategies.adaptive:Adam",
        "subspace": "strategies.subspace:Subspace",
    },
    "fedrec.server_optimizers",
    ServerOptimizer,
    "fedrec_app.api.ServerOptimizer",
)
PARTS: dict[str, Registry[Any]] = {"aggregator": AGGREGATORS, "server_optimizer": SERVER_OPTIMIZERS}
"""What options of strategies choose from, by the option's name."""

Part = TypeVar("Part", Aggregator, ServerOptimizer)


def make_aggregator(choice: Choice) -> Aggregator:
    """Returns the rule that was chosen; "package.module:Class" works as a name too.

    Raises:
        ConfigError: there is none of that name, or an option does not fit.
    """
    return _make(AGGREGATORS, choice)


def make_server_optimizer(choice: Choice) -> ServerOptimizer:
    """Returns the optimiser that was chosen; "package.module:Class" works as a name too.

    Raises:
        ConfigError: there is none of that name, or an option does not fit.
    """
    return _make(SERVER_OPTIMIZERS, choice)


def _make(parts: Registry[Part], choice: Choice) -> Part:
    options = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f'{parts.kind} is {choice}: a name or {{"name": ..., options}} is expected')
    found = parts.find(name)
    with plug_in_code(parts.kind, name, found, parts.group, ("options",)):
        return found(options)
