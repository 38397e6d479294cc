"""Coordinate-wise trimmed mean.

Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, Yin et al., ICML 2018,
https://arxiv.org/abs/1803.01498 (Algorithm 1, option II).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import numpy as np
from pydantic import Field

from fedrec_app.records import Arrays
from strategies.aggregators import Aggregator
from strategies.base import RecStrategy
from strategies.options import StrategyOptions, UnitOptions
from strategies.stacking import as_rows, mean_blocks, taking_part
from strategies.update import Update


class TrimOptions(StrategyOptions):
    """Options of the trimmed mean, as an aggregator."""

    trim: float = Field(
        default=0.1, gt=0, lt=0.5, description="beta, share of the nodes left out at each end of every coordinate"
    )


class CoordinateTrimmedMean(Aggregator):
    """The mean over nodes of each coordinate of their mean deltas, without the floor(trim n) smallest and largest.

    Of three nodes or more at least one is left out at each end: nodes that do not answer must not switch trimming off.
    """

    name = "trimmed-mean"
    summary_line = "coordinate-wise trimmed mean over nodes (Yin et al., ICML 2018)"
    Options = TrimOptions

    def __call__(self, updates: Iterable[Update], params: Arrays, tables: Collection[str] = ()) -> Arrays:
        """Returns the trimmed means, in float64; zeros where no weight came."""
        given = taking_part(list(updates))
        cut = max(self._cut(len(given)), int(len(given) > 2))
        result: Arrays = {name: np.zeros(param.shape) for name, param in params.items()}
        for name, param in params.items() if given else ():
            flat = as_rows(result[name])
            for rows, block in mean_blocks(given, name, param):
                kept = np.sort(block, axis=0)[cut : len(given) - cut]
                flat[rows] = kept.mean(axis=0)
        return result

    def problem(self, num_nodes: int) -> str:
        """Returns that nothing would be trimmed."""
        if (found := self.too_few(num_nodes)) or self._cut(num_nodes):
            return found
        least = math.ceil(1000 / num_nodes) / 1000
        return f"trim {self.options.trim} of {num_nodes} nodes leaves nobody out: at least {least} does"

    def too_few(self, num_nodes: int) -> str:
        """Returns that nobody would be left."""
        return f"trimming both ends of {num_nodes} nodes leaves nobody: at least 3 are needed" if num_nodes < 3 else ""

    def _cut(self, num_nodes: int) -> int:
        return min(int(self.options.trim * num_nodes + 1e-9), (num_nodes - 1) // 2)


class TrimmedMean(RecStrategy):
    """The coordinate-wise trimmed mean, and any server optimiser."""

    name = "trimmed-mean"
    summary_line = CoordinateTrimmedMean.summary_line

    class Options(TrimOptions, UnitOptions):
        """Options of the trimmed mean, as a strategy."""

    def make_aggregator(self) -> CoordinateTrimmedMean:
        """Returns the trimmed mean with these options."""
        return CoordinateTrimmedMean(self.options)
