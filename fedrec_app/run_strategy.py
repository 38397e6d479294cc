"""The strategy of a run."""

from __future__ import annotations

import math
from dataclasses import replace

from flwr.serverapp.strategy import Strategy

from fedrec_app.config import PrivacyConfig, RunConfig, TrainConfig, parse_options
from fedrec_app.data import sources
from fedrec_app.data.sources.base import parse_options as parse_source_options
from fedrec_app.errors import ConfigError
from fedrec_app.models.base import Recommender
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.privacy.budget import UserLevel
from fedrec_app.schedules import Schedule
from fedrec_app.training.example_level import example_level_problem
from fedrec_app.training.node import POOLED_BATCH
from fedrec_app.training.plan import FitPlan
from strategies import closed_form
from strategies.base import RecStrategy
from strategies.registry import make_strategy, strategy_class
from strategies.rollcall import Roster
from strategies.settings import Settings


def strategy_of(
    config: RunConfig, model: Recommender, roster: Roster | None = None, private: UserLevel | None = None
) -> Strategy:
    """Returns the strategy of a run.

    Args:
        config: resolved.
        model: of the run; bound, if the strategy is to start.
        roster: the nodes of the run; None before anybody knows them.
        private: user-level privacy with its budget; None before the run starts, and where it has none.

    Raises:
        ConfigError: there is no such strategy, an option does not fit, or it makes no sense in this run.
    """
    c, train = config, config.train
    settings = Settings(
        seed=c.seed, fraction_train=c.strategy.fraction_train, min_nodes=c.strategy.min_nodes,
        row_names=tuple(model.row_names()), unit="node" if train.unit == "node" else "user",
        num_rounds=c.num_server_rounds, schedule=Schedule.parse(c.strategy.schedule, "strategy.schedule"),
        local_optimizer=train.optimizer, one_step=_takes_one_step(train, roster),
        user_fraction=float(train.user_fraction), privacy=private or _asked(config.privacy),
    )  # fmt: skip
    if isinstance(model, ClosedForm) and c.privacy.unit != "none":
        raise ConfigError(f'model {c.model.name!r} is solved from exact sums: it can only have privacy.unit="none"')
    if isinstance(model, ClosedForm) != (c.strategy.name == closed_form.NAME):
        kinds = ("is trained by gradients", "is solved in closed form")
        raise ConfigError(
            f"model {c.model.name!r} {kinds[isinstance(model, ClosedForm)]}, and strategy {c.strategy.name!r} is not "
            'for such models: leave strategy.name at "auto"'
        )
    if isinstance(model, ClosedForm):
        strategy = closed_form.ClosedForm(model.sums, settings, roster)
        if problem := strategy.problem(None):
            raise ConfigError(f"model {c.model.name!r} cannot be solved so: {problem}")
        return strategy
    _require_private(config, model)
    strategy = make_strategy(c.strategy.name, parse_options(c.strategy.options, "strategy.options"), settings, roster)
    if c.privacy.unit == "example":
        _require_example_level(config, model, strategy)
    return strategy


def _asked(privacy: PrivacyConfig) -> UserLevel | None:
    if privacy.unit != "user":
        return None
    return UserLevel(float(privacy.clip_norm), privacy.noise_multiplier, privacy.sampling_rate)


def _require_private(config: RunConfig, model: Recommender) -> None:
    """Raises ConfigError where strategy, model or data cannot be had with the privacy that is asked for."""
    name, unit = config.strategy.name, config.privacy.unit
    if unit == "none":
        return
    source = sources.resolve(config.data.name)
    listed = source.catalog_is_listed(parse_source_options(source, config.data.options))
    if not listed and not config.privacy.public_catalog:
        raise ConfigError(
            f"the items of data set {config.data.name!r} are those that users met, and an item that only one of them "
            "met would be released: give a list of items (for csv the option catalog), or set "
            "privacy.public-catalog=true where all of them are public anyway"
        )
    found = strategy_class(name)
    if unit == "user" and not (issubclass(found, RecStrategy) and found.user_level):
        raise ConfigError(
            f"strategy {name!r} with privacy.unit='user': it needs updates of nodes or weights by examples, or adds no "
            'noise; set strategy.name="dp-fedavg", whose server_optimizer may be any'
        )
    if model.couples_users:
        raise ConfigError(f"model {config.model.name!r} couples users, and privacy.unit is {unit!r}: set it to 'none'")


def _require_example_level(config: RunConfig, model: Recommender, strategy: Strategy) -> None:
    """Raises ConfigError where nodes would tell more than noised deltas, or could not make them."""
    if not isinstance(strategy, RecStrategy) or strategy.client_part is not None:
        raise ConfigError(
            f"strategy {config.strategy.name!r} with privacy.unit='example' learns of nodes more than noised deltas: "
            "use one of this package without a client part, such as fedavg or fedadam"
        )
    plan = FitPlan.of(config.train, config.seed, 1, config.num_server_rounds)
    if problem := example_level_problem(model, replace(plan, weighting=strategy.weighting)):
        raise ConfigError(problem)


def _takes_one_step(train: TrainConfig, roster: Roster | None) -> bool:
    """Returns whether it is certain that every unit takes one local step."""
    size = float(train.batch_size) or (math.inf if train.unit == "user" else POOLED_BATCH)
    if roster is not None and not any(member.num_examples for member in roster.partitions()):
        return False  # under privacy nobody says how many he has
    most = [member.num_examples for member in roster.partitions()] if roster is not None else []
    return train.local_epochs == 1 and max(most, default=math.inf) <= size
