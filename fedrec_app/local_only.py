"""Local-only training, the canary: every user trains alone, from item embeddings of his own, and no server sees
anything.

Alone there is nothing to aggregate: a user takes the step of the strategy's server optimiser on his own delta. What a
strategy does because there are others (its aggregator, its client part, a pull towards the common model) is left out.

A model without side information cannot know an item that its user never met, so it must score at chance (HR@10 of
about .1 among 99 negatives). Anything better means that evaluation leaks: published code scores .998 here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec_app.config import RunConfig, parse_options
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort, Part
from fedrec_app.errors import ConfigError
from fedrec_app.evaluation.evaluate import evaluate_cohort
from fedrec_app.evaluation.metrics import finalise
from fedrec_app.evaluation.sums import MetricSums
from fedrec_app.models.base import Recommender, initialise
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.models.registry import make_model, model_class
from fedrec_app.records import Arrays
from fedrec_app.schedules import Schedule
from fedrec_app.seeding import stream_key
from fedrec_app.training.plan import FitPlan
from fedrec_app.training.private_rows import with_optimizer_state
from fedrec_app.training.serving import scorer
from fedrec_app.training.users import fit_users
from strategies.base import RecStrategy
from strategies.registry import strategy_class
from strategies.settings import Settings
from strategies.step import scaled


def local_only(
    config: RunConfig,
    catalog: Catalog,
    cohort: Cohort,
    part: Part,
    on_user: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Returns metrics of users who each train alone for `num-server-rounds` rounds, as `finalise` gives them.

    Args: as for `local_only_sums`.

    Raises:
        ConfigError: see `local_strategy`.
    """
    return finalise(local_only_sums(config, catalog, cohort, part, on_user=on_user))


def local_only_sums(
    config: RunConfig,
    catalog: Catalog,
    cohort: Cohort,
    part: Part,
    num_bootstrap: int = 0,
    on_user: Callable[[int], None] = lambda done: None,
) -> MetricSums:
    """Returns the metrics of users who each train alone, summed; draws are those of a run on the same split.

    Args:
        config: resolved; its strategy's step is taken by each user on his own deltas.
        catalog: the items.
        cohort: the users.
        part: what is predicted.
        num_bootstrap: number of bootstrap rows.
        on_user: called with the number of users done, of those who have something held out.

    Raises:
        ConfigError: see `local_strategy`.
    """
    done = 0

    def score_block(users: NDArray[np.int64]) -> torch.Tensor:
        nonlocal done
        rows = []
        for user in users:
            rows.append(_train_alone(config, catalog, cohort, int(user), part))
            done += 1
            on_user(done)
        return torch.stack(rows)

    return evaluate_cohort(score_block, cohort, part, config.evaluate.ks, config.data.seed, num_bootstrap)


def local_rounds(config: RunConfig) -> int:
    """Returns how many rounds each user takes alone: one for a model that is solved."""
    return 1 if issubclass(model_class(config.model.name), ClosedForm) else config.num_server_rounds


def local_strategy(config: RunConfig) -> RecStrategy:
    """Returns whose step a user takes alone.

    Raises:
        ConfigError: the strategy is not of this package: it has no step that can be taken without a server.
    """
    found = strategy_class(config.strategy.name)
    if not issubclass(found, RecStrategy):
        raise ConfigError(f"local-only training needs a strategy of ours, not {config.strategy.name!r}")
    schedule = Schedule.parse(config.strategy.schedule, "strategy.schedule")
    settings = Settings(config.seed, num_rounds=config.num_server_rounds, schedule=schedule)
    return found(parse_options(config.strategy.options, "strategy.options"), settings)


def _train_alone(config: RunConfig, catalog: Catalog, cohort: Cohort, user: int, part: Part) -> torch.Tensor:
    alone = cohort.select(np.array([user]))
    own_seed = stream_key(config.seed, "local-only", alone.user_ids[0]) % 2**31
    model = initialise(make_model(config.model), catalog, alone, own_seed)
    if isinstance(model, ClosedForm):
        return _solve_alone(config, model, alone, part)
    shared: Arrays = {n: model.get_parameter(n).detach().numpy().copy() for n in model.shared_names()}
    rows: Arrays = {n: model.get_parameter(n).detach().numpy().copy() for n in model.private_names()}
    rows = with_optimizer_state(rows, str(config.train.optimizer))
    strategy = local_strategy(config)
    for local_round in range(1, config.num_server_rounds + 1):
        plan = FitPlan.of(config.train, config.seed, local_round, config.num_server_rounds)
        sums = fit_users(model, alone, shared, rows, plan)
        if sums.weight == 0:
            continue  # he does not take part in this round
        delta = {name: total / sums.weight for name, total in sums.delta.items()}
        after = strategy.server_step(shared, delta, local_round)
        shared = scaled(shared, after, strategy.settings.schedule.factor(local_round, config.num_server_rounds))
    return _scores(config, model, shared, rows, alone, part)


def _solve_alone(config: RunConfig, model: ClosedForm, alone: Cohort, part: Part) -> torch.Tensor:
    sums = model.sums()
    sums.add(model.statistics(alone), len(alone))
    return _scores(config, model, sums.solve(), {}, alone, part)


def _scores(
    config: RunConfig, model: Recommender, shared: Arrays, rows: Arrays, alone: Cohort, part: Part
) -> torch.Tensor:
    plan = FitPlan.to_serve(config.train, config.seed, config.num_server_rounds)
    epochs = int(config.evaluate.fold_in_epochs)
    scores = scorer(model, shared, rows, alone.before(part), np.array([0]), plan, epochs, f"fold-in-{part}")
    return scores(np.array([0]))[0]
