"""FedAdam: Adam on the server.

Adaptive Federated Optimization, Reddi et al., ICLR 2021, https://arxiv.org/abs/2003.00295 (Algorithm 2, FEDADAM).
"""

from __future__ import annotations

from pydantic import Field

from strategies.base import MeanOptions, RecStrategy
from strategies.optimizers import Adam


class FedAdam(RecStrategy):
    """Adam on the mean delta."""

    name = "fedadam"
    summary_line = "Adam on the mean delta (Reddi et al., ICLR 2021)"

    class Options(MeanOptions):
        """Adam's settings; tau is the degree of adaptivity, bias_correction is Adam's and not in the paper."""

        learning_rate: float = Field(default=0.01, gt=0)
        beta_1: float = Field(default=0.9, ge=0, lt=1)
        beta_2: float = Field(default=0.99, ge=0, lt=1)
        tau: float = Field(default=1e-6, gt=0)
        bias_correction: bool = True

    def make_server_optimizer(self) -> Adam:
        """Returns Adam with these options."""
        o = self.options
        return Adam(o.learning_rate, o.beta_1, o.beta_2, o.tau, o.bias_correction)
