"""Strategies whose sums or steps break one rule in special cases only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import BaseModel

from fedrec_app.records import Arrays
from strategies.accumulator import UpdateSum
from strategies.aggregators import WeightedMean
from strategies.base import RecStrategy
from strategies.options import MeanOptions, StrategyOptions, WithAggregator, WithServerOptimizer
from strategies.update import Update


class SumsInFloat32(RecStrategy):
    """Adds up in what the parameters have: small deltas drown in large ones that came before them."""

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        total, weight = {name: np.zeros_like(param) for name, param in params.items()}, 0.0
        for update in updates:
            weight += update.weight
            total = {name: np.asarray(array + update.delta(name)) for name, array in total.items()}
        return {name: array / max(weight, 1e-12) for name, array in total.items()}


class SumsInFloat64(RecStrategy):
    """Adds up as most people would, which is good enough: no fault."""

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        total, weight = {name: np.zeros(param.shape) for name, param in params.items()}, 0.0
        for update in updates:
            weight += update.weight
            total = {name: array + update.delta(name) for name, array in total.items()}
        return {name: array / max(weight, 1e-12) for name, array in total.items()}


class DescendsTheDelta(RecStrategy):
    """Takes the delta for a gradient."""

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        return {name: -delta for name, delta in super().aggregate(updates, params).items()}


class HidesAnOverflow(RecStrategy):
    """Makes the largest number of infinity."""

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        return {n: np.nan_to_num((p + delta[n]).astype(p.dtype), nan=np.nan) for n, p in params.items()}


class HidesNaN(RecStrategy):
    """Makes zeros of parameters that are lost."""

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        return {n: np.nan_to_num(p + delta[n]).astype(p.dtype) for n, p in params.items()}


class DividesByNoWeight(RecStrategy):
    """Does not think of rounds in which nobody trained."""

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        total = UpdateSum.of(updates, params)
        return {name: total.delta(name) / total.weight for name in params}


class JittersLater(RecStrategy):
    """Draws from an unseeded generator once training has settled."""

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        factor = 1.0 if server_round < 10 else np.random.default_rng().uniform(0.9, 1.0)
        return super().server_step(params, {name: factor * array for name, array in delta.items()}, server_round)


class TakesOptionsAlone(RecStrategy):
    """Is made by its own tests, and by no run."""

    def __init__(self, options: BaseModel | dict[str, Any] | None = None) -> None:
        super().__init__(options)


class LosesItsSettings(RecStrategy):
    """Takes what a run gives and hands on half of it."""

    def __init__(self, options: Any = None, *rest: Any) -> None:
        super().__init__(options)


class NeedsAnOption(RecStrategy):
    """Cannot be run by its name alone."""

    class Options(MeanOptions):
        strength: float


class IgnoresItsAggregator(RecStrategy):
    """Offers a choice and does not look at it."""

    Options: type[StrategyOptions] = WithAggregator  # type: ignore[misc]

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        return WeightedMean()(updates, params)


class IgnoresItsServerOptimizer(RecStrategy):
    """Offers a choice and steps by itself."""

    Options: type[StrategyOptions] = WithServerOptimizer  # type: ignore[misc]

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        return {name: (param + delta[name]).astype(param.dtype) for name, param in params.items()}


class ExpectsTheMean(RecStrategy):
    """Leans towards the first update with every aggregator but the one that it was tried with."""

    Options: type[StrategyOptions] = WithAggregator  # type: ignore[misc]

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        given = list(updates)
        delta = super().aggregate(given, params)
        if self.aggregator.name == "mean":
            return delta
        first = given[0]
        return {name: array + 0.1 * first.delta(name) / max(first.weight, 1.0) for name, array in delta.items()}


class LosesItsOptimizersState(RecStrategy):
    """Keeps a mean of its own and forgets the server optimiser's state, which plain averaging has not."""

    Options: type[StrategyOptions] = WithServerOptimizer  # type: ignore[misc]

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._mean: Arrays = {}

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        delta = super().aggregate(updates, params)
        self._mean = {name: np.asarray(0.5 * self._mean.get(name, 0) + array) for name, array in delta.items()}
        return dict(self._mean)

    def state(self) -> Arrays:
        return dict(self._mean)

    def load_state(self, state: Arrays) -> None:
        self._mean = dict(state)
