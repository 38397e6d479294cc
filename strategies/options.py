"""Options of strategies: what several of them have in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Weighting = Literal["examples", "users", "uniform", "rows"]
Choice = str | dict[str, Any]
"""One of several parts by name, "median", or with options of its own, {"name": "trimmed-mean", "trim": 0.2}."""

UnitWeighting = Annotated[
    Literal["examples", "users", "uniform"],
    Field(description="by training examples (n_k), by users, or units alike (uniform)"),
]
ServerOptimizerChoice = Annotated[
    Choice,
    Field(description='step along the delta: sgd, momentum, adagrad, yogi, adam, subspace, or {"name": ..., options}'),
]


class StrategyOptions(BaseModel):
    """Options of a strategy; unknown ones are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MeanOptions(StrategyOptions):
    """Options of rules that average; `strategies.aggregators.WeightedMean` says more on weights."""

    weighting: Weighting = Field(
        default="examples",
        description="by training examples (n_k), by users, units alike (uniform), or item rows by their users (rows)",
    )


class WithAggregator(MeanOptions):
    """Options of strategies whose aggregator is free."""

    aggregator: Choice = Field(
        default="mean",
        description=(
            'how deltas become one: mean, median, trimmed-mean, krum, multi-krum, norm-bound, or {"name": ..., options}'
        ),
    )


class WithServerOptimizer(MeanOptions):
    """Options of strategies whose server optimiser is free."""

    server_optimizer: ServerOptimizerChoice = "sgd"


class UnitOptions(StrategyOptions):
    """Options of rules that weight units and cannot count rows."""

    weighting: UnitWeighting = "examples"
    server_optimizer: ServerOptimizerChoice = "sgd"
