"""FedProx: a proximal term holds local models near the one they started from.

Federated Optimization in Heterogeneous Networks, Li et al., MLSys 2020, https://arxiv.org/abs/1812.06127 (equation 2):
a unit minimises its loss plus mu / 2 times the squared distance from the parameters received. Every engine of local
training adds mu * (parameters - parameters received) to its gradients, so the strategy only has to ask for it.
"""

from __future__ import annotations

from pydantic import Field

from fedrec_app.records import Ask
from strategies.base import RecStrategy
from strategies.options import WithAggregator, WithServerOptimizer


class FedProx(RecStrategy):
    """Federated averaging of units that are pulled towards the common model."""

    name = "fedprox"
    summary_line = "proximal term in local training (Li et al., MLSys 2020)"

    class Options(WithAggregator, WithServerOptimizer):
        """Options of the pull."""

        mu: float = Field(
            default=0.01, gt=0, description="a unit's loss gets mu / 2 times the squared distance from the common model"
        )

    def ask(self) -> dict[str, bool | int | float | str]:
        """Returns mu, under the key that Flower's own FedProx sends."""
        return {Ask.PROXIMAL_MU: self.options.mu}

    def problem(self, num_nodes: int | None) -> str:
        """Returns that one local step is too few: at its start the proximal term is zero."""
        if self.settings.one_step:
            return "every unit takes one local step, at whose start the proximal term is zero: set train.local-epochs=2"
        return super().problem(num_nodes)
