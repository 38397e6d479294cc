"""Norm bounds: no node moves the model, nor any one item of it, by more than it may.

Can You Really Backdoor Federated Learning?, Sun et al., 2019, https://arxiv.org/abs/1911.07963 (section 4, norm
thresholding), with a cap on each row of an item table: who promotes one item puts all of his norm into one row, which a
bound on the whole update does not see.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec_app.records import DELTA, Arrays
from strategies.accumulator import UpdateSum
from strategies.aggregators import Aggregator
from strategies.base import RecStrategy
from strategies.options import StrategyOptions, UnitOptions
from strategies.stacking import as_rows, mean_norm, taking_part
from strategies.update import Update


class BoundOptions(StrategyOptions):
    """Options of the bounds, as an aggregator."""

    max_norm: Annotated[float, Field(gt=0)] | Literal["median"] = Field(
        default="median",
        description="C, largest L2 norm of a node's mean delta; \"median\": the median of the round's norms",
    )
    rows: int = Field(
        default=50, ge=0, description="a row of an item table is at most C / sqrt(rows) long; 0: no bound on rows"
    )


class BoundedMean(Aggregator):
    """The weighted mean of the nodes' deltas, each scaled to the bound first, and then each of its items' rows."""

    name = "norm-bound"
    summary_line = "mean of updates of bounded norm, overall and by item row (Sun et al., 2019)"
    Options = BoundOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        # A median of norms counts nodes.
        self.weighted = self.options.max_norm != "median"

    def __call__(self, updates: Iterable[Update], params: Arrays, tables: Collection[str] = ()) -> Arrays:
        """Returns the mean delta, in float64; zeros where no weight came."""
        given = taking_part(list(updates))
        norms = [mean_norm(update, params) for update in given]
        bound = self._bound(norms)
        total = UpdateSum(params)
        for update, norm in zip(given, norms, strict=True):
            scaled = update.scaled(min(1.0, bound / norm) if norm > 0 else 1.0)
            total.add(self._capped(scaled, [name for name in tables if name in params], bound))
        weight = total.weight if given else 1.0
        return {name: total.delta(name) / weight for name in params}

    def _bound(self, norms: list[float]) -> float:
        if self.options.max_norm != "median":
            return float(self.options.max_norm)
        return float(np.median(norms)) if norms else 0.0

    def _capped(self, update: Update, tables: Collection[str], bound: float) -> Update:
        if not self.options.rows:
            return update
        longest = bound / math.sqrt(self.options.rows) * update.weight
        capped = {DELTA + name: _shortened(update.arrays[DELTA + name], longest) for name in tables}
        return replace(update, arrays={**update.arrays, **capped})


def _shortened(table: NDArray, longest: float) -> NDArray:
    """Returns the table with no row longer than that."""
    norms = np.sqrt(np.square(as_rows(table), dtype=np.float64).sum(axis=1))
    factors = np.minimum(1.0, longest / np.where(norms > 0, norms, 1.0))
    return (table * factors.reshape(-1, *([1] * (table.ndim - 1)))).astype(table.dtype)


class NormBound(RecStrategy):
    """The mean of updates of bounded norm, and any server optimiser."""

    name = "norm-bound"
    summary_line = BoundedMean.summary_line

    class Options(BoundOptions, UnitOptions):
        """Options of the bounds, as a strategy."""

    def make_aggregator(self) -> BoundedMean:
        """Returns the bounded mean with these options."""
        return BoundedMean(self.options)
