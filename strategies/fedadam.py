"""FedAdam: Adam on the server.

Adaptive Federated Optimization, Reddi et al., ICLR 2021, https://arxiv.org/abs/2003.00295 (Algorithm 2, FEDADAM).
"""

from __future__ import annotations

from strategies.adaptive import Adam, AdamOptions
from strategies.base import RecStrategy
from strategies.options import WithAggregator


class FedAdam(RecStrategy):
    """Adam on the mean delta."""

    name = "fedadam"
    summary_line = "Adam on the mean delta (Reddi et al., ICLR 2021)"

    class Options(AdamOptions, WithAggregator):
        """Options of Adam, and the aggregator."""

    def make_server_optimizer(self) -> Adam:
        """Returns Adam with these options."""
        return Adam(self.options)
