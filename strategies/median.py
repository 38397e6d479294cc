"""Coordinate-wise median.

Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, Yin et al., ICML 2018,
https://arxiv.org/abs/1803.01498 (Algorithm 1, option I). Of an item that fewer than half of the nodes train the median
is zero: with few users a node it stops most items from learning (see docs/strategies.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from fedrec_app.records import Arrays
from strategies.aggregators import Aggregator
from strategies.base import RecStrategy
from strategies.options import UnitOptions
from strategies.stacking import as_rows, mean_blocks, taking_part
from strategies.update import Update


class CoordinateMedian(Aggregator):
    """The median over nodes of each coordinate of their mean deltas, however many users are behind each node."""

    name = "median"
    summary_line = "coordinate-wise median over nodes (Yin et al., ICML 2018)"

    def __call__(self, updates: Iterable[Update], params: Arrays, tables: Collection[str] = ()) -> Arrays:
        """Returns the medians, in float64; zeros where no weight came."""
        given = taking_part(list(updates))
        result: Arrays = {name: np.zeros(param.shape) for name, param in params.items()}
        for name, param in params.items() if given else ():
            flat = as_rows(result[name])
            for rows, block in mean_blocks(given, name, param):
                flat[rows] = np.median(block, axis=0)
        return result


class Median(RecStrategy):
    """The coordinate-wise median, and any server optimiser."""

    name = "median"
    summary_line = CoordinateMedian.summary_line
    Options = UnitOptions

    def make_aggregator(self) -> CoordinateMedian:
        """Returns the median."""
        return CoordinateMedian()
