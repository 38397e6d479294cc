"""Weighted federated averaging.

Communication-Efficient Learning of Deep Networks from Decentralized Data, McMahan et al., AISTATS 2017,
https://arxiv.org/abs/1602.05629. The next parameters are the current ones plus the weighted mean delta, times a server
learning rate (1 in the paper: then they are the weighted mean of the clients' models).
"""

from __future__ import annotations

from strategies.base import RecStrategy
from strategies.optimizers import SGD, SGDOptions
from strategies.options import WithAggregator


class FedAvg(RecStrategy):
    """Weighted federated averaging."""

    name = "fedavg"
    summary_line = "weighted mean of the clients' models (McMahan et al., AISTATS 2017)"

    class Options(SGDOptions, WithAggregator):
        """Options of plain steps, and the aggregator."""

    def make_server_optimizer(self) -> SGD:
        """Returns plain steps along the mean delta."""
        return SGD(self.options)
