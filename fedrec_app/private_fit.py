"""What privacy makes of a node's fit, and of what the node says about itself.

A node follows the settings of the run and not what a message says: whatever it is asked for, it sends nothing but sums
of clipped deltas over users drawn in secret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from fedrec_app.config import PrivacyConfig, RunConfig
from fedrec_app.errors import FedrecError
from fedrec_app.evaluation.sums import MetricSums
from fedrec_app.privacy.accounting import noise_for
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.node_accountant import release_of_a_round, steps_a_round
from fedrec_app.records import Ask, Said
from fedrec_app.training.plan import FitPlan, FitSums


def user_level(plan: FitPlan, privacy: PrivacyConfig, ask: Mapping[str, Any]) -> FitPlan:
    """Returns the fit of users drawn in secret, each delta clipped, all weighing 1.

    Args:
        plan: as the settings say.
        privacy: of the run, with unit "user".
        ask: keys of `records.Ask`.

    Raises:
        FedrecError: the message does not ask for clipped deltas.
    """
    bound = ask.get(Ask.CLIP_NORM)
    clips = isinstance(bound, float) and 0 < bound < math.inf
    if ask.get(Ask.UPDATE) != "delta" or not clips:
        raise FedrecError(
            f'privacy.unit="user": a node sends sums of clipped deltas alone, and this message asks for '
            f"{Ask.UPDATE}={ask.get(Ask.UPDATE)!r}, {Ask.CLIP_NORM}={bound!r}"
        )
    return replace(plan, weighting="users", clip_norm=bound, secret_rate=privacy.sampling_rate)


@lru_cache(maxsize=8)
def example_release(config: RunConfig) -> Gaussian:
    """Returns what a node releases in a round under example-level privacy; server and nodes find the same.

    Args:
        config: resolved, with `privacy.unit` "example".

    Raises:
        ConfigError: no noise reaches the target.
    """
    privacy, epochs = config.privacy, int(config.train.local_epochs)
    steps = config.num_server_rounds * steps_a_round(epochs, privacy.sampling_rate)
    noise = privacy.noise_multiplier or noise_for(
        privacy.target_epsilon, privacy.delta, privacy.sampling_rate, steps, reserved_releases(config)
    )
    return release_of_a_round(noise, privacy.sampling_rate, epochs)


def reserved_releases(config: RunConfig) -> list[Gaussian]:
    """Returns what is charged at the end of a private run, for the figures of the test part."""
    privacy = config.privacy
    return [Gaussian(privacy.metrics_noise_multiplier)] if privacy.metrics == "noised" else []


def withheld(metrics: dict[str, Any], sums: FitSums, ask: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a private node says beside its deltas: who took part, and how well he did, stays with it.

    Args:
        metrics: what it would say without privacy.
        sums: of the fit.
        ask: keys of `records.Ask`.
    """
    said = {**metrics, Said.NUM_EXAMPLES: 0, Said.NUM_USERS: 0, Said.WEIGHT: 0.0, Said.LOSS: 0.0}
    if ask.get(Ask.COUNT_UNCLIPPED):
        said[Said.CENTRED] = float(sums.centred_unclipped)
    return said


def released_metrics(config: RunConfig) -> tuple[str, ...]:
    """Returns the metrics of the test part that are released with noise: few, as each costs noise on all."""
    metric = config.evaluate.metric
    k = metric.partition("@")[2]
    return tuple(dict.fromkeys((metric, f"hr@{k}", f"ndcg@{k}")))


def require_releasable(config: RunConfig, part: str) -> None:
    """Raises FedrecError where metrics of this part stay on the node."""
    privacy = config.privacy
    if privacy.unit == "none" or privacy.metrics == "exact" or (privacy.metrics == "noised" and part == "test"):
        return
    raise FedrecError(f'metrics of the {part} part stay here: privacy.metrics="{privacy.metrics}"')


def released(sums: MetricSums, config: RunConfig) -> MetricSums:
    """Returns what leaves the node of its users' metrics; the server adds noise before it tells anybody."""
    if config.privacy.unit == "none" or config.privacy.metrics == "exact":
        return sums
    names = released_metrics(config)
    columns = [*(sums.names.index(name) for name in names), len(sums.names)]
    return MetricSums(
        names, sums.sums[:1, columns], np.zeros_like(sums.item_counts), sums.num_users, 0, sums.num_users, 0,
        sums.list_length,
    )  # fmt: skip
