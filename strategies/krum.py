"""Krum: the node whose update lies closest to others.

Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, Blanchard et al., NeurIPS 2017,
https://arxiv.org/abs/1703.02757. A node's score is the sum of the squared distances between its mean delta and the
n - f - 2 nearest others; Krum takes the delta with the lowest score.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec_app.records import Arrays
from strategies.aggregators import Aggregator
from strategies.base import RecStrategy
from strategies.options import StrategyOptions, UnitOptions
from strategies.stacking import as_rows, mean_blocks, taking_part
from strategies.update import Update


class KrumOptions(StrategyOptions):
    """Options of Krum, as an aggregator."""

    num_malicious: int = Field(default=1, ge=0, description="f, how many nodes may lie; 2 f + 3 must take part")


class KrumSelection(Aggregator):
    """The mean delta of the node closest to its neighbours; between equal scores, the lowest partition."""

    name = "krum"
    summary_line = "the node closest to its neighbours (Blanchard et al., NeurIPS 2017)"
    Options = KrumOptions

    def __call__(self, updates: Iterable[Update], params: Arrays, tables: Collection[str] = ()) -> Arrays:
        """Returns the mean of the chosen nodes' mean deltas, in float64; zeros where no weight came."""
        given = sorted(taking_part(list(updates)), key=lambda update: update.partition_id)
        scores = krum_scores(_distances(given, params), self.options.num_malicious)
        chosen = [given[i] for i in np.argsort(scores, kind="stable")[: self.num_chosen(len(given))]]
        result: Arrays = {name: np.zeros(param.shape) for name, param in params.items()}
        for name, param in params.items() if chosen else ():
            flat = as_rows(result[name])
            for rows, block in mean_blocks(chosen, name, param):
                flat[rows] = block.mean(axis=0)
        return result

    def num_chosen(self, num_nodes: int) -> int:
        """Returns how many of so many nodes are averaged."""
        return 1

    def too_few(self, num_nodes: int) -> str:
        """Returns that there are too few nodes for what the paper proves: n > 2 f + 2."""
        f = self.options.num_malicious
        if num_nodes > 2 * f + 2:
            return ""
        return f"{num_nodes} nodes are too few for num_malicious {f}: at least {2 * f + 3} are needed"


def krum_scores(distances: NDArray[np.float64], num_malicious: int) -> NDArray[np.float64]:
    """Returns (n,) sums of squared distances to the n - f - 2 nearest others, to one of them at least.

    Args:
        distances: (n, n) squared distances.
        num_malicious: f.
    """
    n = len(distances)
    nearest = np.sort(distances + np.diag(np.full(n, np.inf)), axis=1)
    return nearest[:, : max(min(n - num_malicious - 2, n - 1), min(n - 1, 1))].sum(axis=1)


def _distances(updates: Sequence[Update], params: Arrays) -> NDArray[np.float64]:
    """Returns (n, n) squared distances between mean deltas, infinite where float64 cannot tell."""
    products = np.zeros((len(updates), len(updates)))
    with np.errstate(over="ignore", invalid="ignore"):
        for name, param in params.items() if updates else ():
            for _, block in mean_blocks(updates, name, param):
                flat = block.reshape(len(updates), -1)
                products += flat @ flat.T
        squares = np.diag(products)
        distances = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
    return np.where(np.isnan(distances), np.inf, distances)


class Krum(RecStrategy):
    """Krum, and any server optimiser."""

    name = "krum"
    summary_line = KrumSelection.summary_line

    class Options(KrumOptions, UnitOptions):
        """Options of Krum, as a strategy."""

    def make_aggregator(self) -> KrumSelection:
        """Returns Krum with these options."""
        return KrumSelection(self.options)
