"""Options of strategies: what several of them have in common."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Weighting = Literal["examples", "users", "uniform", "rows"]
Choice = str | dict[str, Any]
"""One of several parts by name, "median", or with options of its own, {"name": "trimmed-mean", "trim": 0.2}."""


class StrategyOptions(BaseModel):
    """Options of a strategy; unknown ones are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MeanOptions(StrategyOptions):
    """weighting: how nodes weight the deltas of their units; see `strategies.aggregators.WeightedMean`."""

    weighting: Weighting = "examples"


class WithAggregator(MeanOptions):
    """aggregator: the rule that makes one delta of all; see `strategies.compose`."""

    aggregator: Choice = "mean"


class WithServerOptimizer(MeanOptions):
    """server_optimizer: how the parameters move along the delta; see `strategies.compose`."""

    server_optimizer: Choice = "sgd"


class UnitOptions(StrategyOptions):
    """Options of rules that weight units and cannot count rows."""

    weighting: Literal["examples", "users", "uniform"] = "examples"
    server_optimizer: Choice = "sgd"
