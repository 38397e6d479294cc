"""q-FedAvg: units that fare badly count more.

Fair Resource Allocation in Federated Learning, Li et al., ICLR 2020, https://arxiv.org/abs/1905.10497 (Algorithm 2).
With F_k the loss of a unit at the parameters received, d_k its delta and L = 1 / local learning rate:

    delta = sum_k w_k F_k^q d_k / sum_k w_k (F_k^q + q L F_k^(q-1) |d_k|^2)

which is the paper's update, numerator and denominator divided by L. With q = 0 it is the weighted mean.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec_app.client_part import ClientPart, Units
from fedrec_app.records import Arrays
from strategies.accumulator import UpdateSum
from strategies.base import RecStrategy
from strategies.options import UnitOptions, UnitWeighting
from strategies.update import Update

CURVATURE = "q-curvature"


class QFedAvgPart(ClientPart):
    """Multiplies each unit's delta with its loss to the power of q, and adds up the denominator."""

    scalars = (CURVATURE,)
    weighed_by_outcome = True
    sgd_only = True

    def weigh(self, units: Units) -> tuple[NDArray, dict[str, NDArray]]:
        """Returns w F^q, and w (F^q + q L F^(q-1) |d|^2)."""
        q = self.options.q
        # Of a loss of zero the paper's implementation takes 1e-10 too.
        losses = np.maximum(np.asarray(units.losses), 1e-10)
        factors = units.weights * losses**q
        bend = q / units.learning_rate * losses ** (q - 1) * np.asarray(units.squared_norms)
        return factors, {CURVATURE: factors + units.weights * bend}


class QFedAvg(RecStrategy):
    """Federated averaging that favours units with a high loss."""

    name = "qfedavg"
    summary_line = "fairness over units: losses to the power of q weigh (Li et al., ICLR 2020)"
    client_part = QFedAvgPart

    class Options(UnitOptions):
        """Options of the fairness."""

        q: float = Field(
            default=1.0, ge=0, le=5, description="power of a unit's loss; 0: weighted mean, larger: more even losses"
        )
        weighting: UnitWeighting = "uniform"

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        """Returns the sum of weighed deltas over the sum of their curvatures."""
        total = UpdateSum.of(updates, params)
        curvature = total.scalar(CURVATURE)
        if curvature <= 0:
            return {name: np.zeros(param.shape) for name, param in params.items()}
        return {name: total.delta(name) / curvature for name in params}
