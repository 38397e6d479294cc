"""Which settings go together under differential privacy."""

from __future__ import annotations

from typing import Any

from fedrec_app.errors import ConfigError

UNITS = {"user": "user", "example": "node"}
"""`privacy.unit` -> the `train.unit` that it needs."""


def privacy_problem(privacy: Any, data: Any, train: Any, strategy: Any, evaluate: Any) -> str:
    """Returns why these sections of a run's settings do not go together, or "".

    Args:
        privacy, data, train, strategy, evaluate: sections; values may still be "auto".
    """
    if privacy.unit == "none":
        given = [key for key in ("noise-multiplier", "target-epsilon") if getattr(privacy, key.replace("-", "_"))]
        return (
            f'privacy.{given[0]} has no effect with privacy.unit="none": set it to "user" or "example"' if given else ""
        )
    if not privacy.noise_multiplier and not privacy.target_epsilon:
        return f'privacy.unit="{privacy.unit}" needs privacy.target-epsilon or privacy.noise-multiplier'
    if train.unit not in ("auto", UNITS[privacy.unit]):
        return f'privacy.unit="{privacy.unit}" needs train.unit="{UNITS[privacy.unit]}", found "{train.unit}"'
    if train.user_fraction < 1:
        return (
            "train.user-fraction draws users from the public seed, which no privacy can be claimed for: set it to 1"
            + (" and set privacy.sampling-rate" if privacy.unit == "user" else "")
        )
    if strategy.fraction_train < 1:
        return (
            "strategy.fraction-train < 1 leaves nodes out in the open, which no privacy can be claimed for: set it to 1"
        )
    if data.protocol == "temporal":
        return (
            'data.protocol="temporal" cuts at quantiles of all times, so each user moves what others train on, '
            'which no privacy budget is charged for: set it to "leave-one-out"'
        )
    if data.k_core:
        return "data.k-core keeps users by what others did, which no privacy budget is charged for: set it to 0"
    if evaluate.early_stopping_rounds:
        return (
            "evaluate.early-stopping-rounds looks at validation in every round, which no privacy budget is charged "
            "for: set it to 0"
        )
    if privacy.unit == "example" and not privacy.delta:
        return (
            'privacy.unit="example" needs privacy.delta, well below 1 / examples of a node: nobody tells the server '
            "how many there are"
        )
    return ""


def require_exact_metrics(config: Any, why: str) -> None:
    """Raises ConfigError where privacy keeps metrics from whoever needs them exact, and for each round.

    Args:
        config: of the run.
        why: what needs them.
    """
    if config.privacy.unit != "none" and config.privacy.metrics != "exact":
        raise ConfigError(
            f'{why}, and privacy.metrics="{config.privacy.metrics}" withholds the figures that this needs: where the '
            'data is public, set privacy.metrics="exact"'
        )
