"""The two independent choices that a strategy is made of: an aggregator and a server optimiser, each by name."""

from __future__ import annotations

from typing import TypeVar

from fedrec_app.errors import ConfigError
from fedrec_app.plugins import find, plug_in_code
from strategies.aggregators import Aggregator
from strategies.optimizers import ServerOptimizer
from strategies.options import Choice

AGGREGATORS = {
    "mean": "strategies.aggregators:WeightedMean",
    "median": "strategies.median:CoordinateMedian",
    "trimmed-mean": "strategies.trimmed_mean:CoordinateTrimmedMean",
    "krum": "strategies.krum:KrumSelection",
    "multi-krum": "strategies.multi_krum:MultiKrumSelection",
    "norm-bound": "strategies.norm_bound:BoundedMean",
}
SERVER_OPTIMIZERS = {
    "sgd": "strategies.optimizers:SGD",
    "momentum": "strategies.optimizers:Momentum",
    "adagrad": "strategies.adaptive:Adagrad",
    "yogi": "strategies.adaptive:Yogi",
    "adam": "strategies.adaptive:Adam",
}

Part = TypeVar("Part", Aggregator, ServerOptimizer)


def make_aggregator(choice: Choice) -> Aggregator:
    """Returns the rule that was chosen; "package.module:Class" works as a name too.

    Raises:
        ConfigError: there is none of that name, or an option does not fit.
    """
    return _make("aggregator", choice, AGGREGATORS, Aggregator)


def make_server_optimizer(choice: Choice) -> ServerOptimizer:
    """Returns the optimiser that was chosen; "package.module:Class" works as a name too.

    Raises:
        ConfigError: there is none of that name, or an option does not fit.
    """
    return _make("server optimizer", choice, SERVER_OPTIMIZERS, ServerOptimizer)


def _make(kind: str, choice: Choice, built_in: dict[str, str], contract: type[Part]) -> Part:
    options = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f'{kind} is {choice}: a name or {{"name": ..., options}} is expected')
    group = f"fedrec.{kind.replace(' ', '_')}s"
    found = find(kind, name, built_in, group)
    if not issubclass(found, contract):
        raise ConfigError(f"{kind} {name!r} is {found.__name__}, which is not a {contract.__name__}")
    with plug_in_code(kind, name, found, group, ("options",)):
        return found(options)
