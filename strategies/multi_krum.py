"""Multi-Krum: the mean of the nodes whose updates lie closest to others.

Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, Blanchard et al., NeurIPS 2017,
https://arxiv.org/abs/1703.02757 (section 4); scores as in `strategies.krum`.
"""

from __future__ import annotations

from pydantic import Field

from strategies.base import RecStrategy
from strategies.krum import KrumOptions, KrumSelection
from strategies.options import UnitOptions


class MultiKrumOptions(KrumOptions):
    """Options of Multi-Krum, as an aggregator."""

    num_selected: int = Field(default=0, ge=0, description="m, how many nodes are averaged; 0: n - f")


class MultiKrumSelection(KrumSelection):
    """The mean of the mean deltas of several nodes close to their neighbours."""

    name = "multi-krum"
    summary_line = "mean of the nodes closest to their neighbours (Blanchard et al., NeurIPS 2017)"
    Options = MultiKrumOptions

    def num_chosen(self, num_nodes: int) -> int:
        """Returns m, or n - f without it or where that is less: nodes that do not answer let no more liars in."""
        most = min(max(num_nodes - self.options.num_malicious, 1), num_nodes)
        return min(self.options.num_selected or most, most)

    def problem(self, num_nodes: int) -> str:
        """Returns that there are too few nodes, or that some who lie would be averaged in any case."""
        m, most = self.options.num_selected, num_nodes - self.options.num_malicious
        if (found := super().problem(num_nodes)) or m <= most:
            return found
        return (
            f"num_selected {m} of {num_nodes} nodes takes in some of num_malicious {num_nodes - most}: at most {most}"
        )


class MultiKrum(RecStrategy):
    """Multi-Krum, and any server optimiser."""

    name = "multi-krum"
    summary_line = MultiKrumSelection.summary_line

    class Options(MultiKrumOptions, UnitOptions):
        """Options of Multi-Krum, as a strategy."""

    def make_aggregator(self) -> MultiKrumSelection:
        """Returns Multi-Krum with these options."""
        return MultiKrumSelection(self.options)
