"""FedAdagrad: Adagrad on the server.

Adaptive Federated Optimization, Reddi et al., ICLR 2021, https://arxiv.org/abs/2003.00295 (Algorithm 2, FEDADAGRAD).
"""

from __future__ import annotations

from strategies.adaptive import Adagrad, AdagradOptions
from strategies.base import RecStrategy
from strategies.options import WithAggregator


class FedAdagrad(RecStrategy):
    """Adagrad on the mean delta."""

    name = "fedadagrad"
    summary_line = "Adagrad on the mean delta (Reddi et al., ICLR 2021)"

    class Options(AdagradOptions, WithAggregator):
        """Options of Adagrad, and the aggregator."""

    def make_server_optimizer(self) -> Adagrad:
        """Returns Adagrad with these options."""
        return Adagrad(self.options)
