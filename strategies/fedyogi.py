"""FedYogi: Yogi on the server.

Adaptive Federated Optimization, Reddi et al., ICLR 2021, https://arxiv.org/abs/2003.00295 (Algorithm 2, FEDYOGI).
"""

from __future__ import annotations

from strategies.adaptive import Yogi, YogiOptions
from strategies.base import RecStrategy
from strategies.options import WithAggregator


class FedYogi(RecStrategy):
    """Yogi on the mean delta."""

    name = "fedyogi"
    summary_line = "Yogi on the mean delta (Reddi et al., ICLR 2021)"

    class Options(YogiOptions, WithAggregator):
        """Options of Yogi, and the aggregator."""

    def make_server_optimizer(self) -> Yogi:
        """Returns Yogi with these options."""
        return Yogi(self.options)
