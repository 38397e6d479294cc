"""FedAvgM: momentum on the server.

Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, Hsu, Qi & Brown, 2019,
https://arxiv.org/abs/1909.06335 (section 4.3).
"""

from __future__ import annotations

from strategies.base import RecStrategy
from strategies.optimizers import Momentum, MomentumOptions
from strategies.options import WithAggregator


class FedAvgM(RecStrategy):
    """Federated averaging with server momentum."""

    name = "fedavgm"
    summary_line = "momentum on the mean delta (Hsu et al., 2019)"

    class Options(MomentumOptions, WithAggregator):
        """Options of momentum, and the aggregator."""

    def make_server_optimizer(self) -> Momentum:
        """Returns momentum with these options."""
        return Momentum(self.options)
