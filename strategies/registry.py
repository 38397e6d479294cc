"""Strategies by name: built in, an entry point of the group `fedrec.strategies`, or "package.module:Class" (stock
Flower strategies too)."""

from __future__ import annotations

import inspect
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedrec_app.errors import ConfigError, unknown
from fedrec_app.plugins import Registry, plug_in_code
from fedrec_app.schedules import Schedule
from strategies.base import RecStrategy
from strategies.rollcall import Roster
from strategies.settings import Settings

GROUP = "fedrec.strategies"
BUILT_IN = {
    "fedavg": "strategies.fedavg:FedAvg",
    "fedavgm": "strategies.fedavgm:FedAvgM",
    "fedadam": "strategies.fedadam:FedAdam",
    "fedyogi": "strategies.fedyogi:FedYogi",
    "fedadagrad": "strategies.fedadagrad:FedAdagrad",
    "fedprox": "strategies.fedprox:FedProx",
    "scaffold": "strategies.scaffold:Scaffold",
    "fednova": "strategies.fednova:FedNova",
    "qfedavg": "strategies.qfedavg:QFedAvg",
    "fedbuff": "strategies.fedbuff:FedBuff",
    "median": "strategies.median:Median",
    "trimmed-mean": "strategies.trimmed_mean:TrimmedMean",
    "krum": "strategies.krum:Krum",
    "multi-krum": "strategies.multi_krum:MultiKrum",
    "norm-bound": "strategies.norm_bound:NormBound",
    "dp-fedavg": "strategies.dp_fedavg:DPFedAvg",
}
STRATEGIES = Registry(
    "strategy", BUILT_IN, GROUP, Strategy, "fedrec_app.api.RecStrategy (or flwr.serverapp.strategy.Strategy)"
)
CALLED_WITH = ("options", "settings", "roster")
"""What the constructor of a RecStrategy is called with, by position."""


def strategy_class(name: str) -> type[Strategy]:
    """Returns the class of a strategy.

    Raises:
        ConfigError: no such strategy, or the class found is not a Flower strategy; see `Registry.find`.
    """
    return STRATEGIES.find(name)


def make_strategy(name: str, options: dict[str, Any], settings: Settings, roster: Roster | None) -> Strategy:
    """Returns the strategy, ready to start.

    Args:
        name: see the module.
        options: of the strategy; a stock Flower strategy takes them as arguments of its constructor.
        settings: what the run tells its strategy. A stock strategy gets those that its constructor knows: it
            samples the same share of nodes, and waits for no more of them than answered the roll-call.
        roster: the nodes of the run; None while nobody knows them.

    Raises:
        ConfigError: an option is unknown or does not fit, the strategy makes no sense in this run, or its constructor
            fails.
    """
    found = strategy_class(name)
    if issubclass(found, RecStrategy):
        return _ours(name, found, options, settings, roster)
    if settings.schedule != Schedule():
        raise ConfigError(f"strategy {name!r} is not of this package and knows no strategy.schedule: leave it constant")
    known = _parameters(found)
    if wrong := [key for key in options if key.replace("-", "_") not in known]:
        raise ConfigError(unknown(f"option of strategy {name!r}", wrong[0], known))
    least = settings.min_nodes if roster is None else min(settings.min_nodes, len(roster.members))
    offered = {
        "fraction_train": settings.fraction_train,
        "fraction_evaluate": 1.0,
        "min_train_nodes": least,
        "min_evaluate_nodes": least,
        "min_available_nodes": least,
    }
    arguments = {key: value for key, value in offered.items() if key in known}
    arguments.update({key.replace("-", "_"): value for key, value in options.items()})
    with plug_in_code("strategy", name, found, GROUP, ()):
        try:
            return found(**arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"strategy {name!r} refuses its options {options}: {error}") from error


def _ours(
    name: str, found: type[RecStrategy], options: dict[str, Any], settings: Settings, roster: Roster | None
) -> RecStrategy:
    with plug_in_code("strategy", name, found, GROUP, CALLED_WITH):
        strategy = found(options, settings, roster)
        if "evaluation" not in vars(strategy):
            raise ConfigError(
                f"strategy {name!r}: the __init__ of {found.__name__} does not call "
                f"super().__init__({', '.join(CALLED_WITH)})"
            )
        problem = strategy.problem(strategy.nodes_a_round())
    if problem:
        raise ConfigError(f"strategy {name!r} makes no sense here: {problem}")
    return strategy


def _parameters(found: type) -> set[str]:
    """Returns the arguments that a constructor takes, those it hands on to its parents included."""
    known: set[str] = set()
    for cls in found.__mro__:
        if "__init__" not in vars(cls) or cls is object:
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        known |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return known
