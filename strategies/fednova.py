"""FedNova: units that take more local steps do not pull the model further.

Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, Wang et al., NeurIPS 2020,
https://arxiv.org/abs/2007.07481 (equations 8 and 9, local SGD without momentum: |a_i| is the number of steps). With p_i
the share of the weights, tau_i the steps and d_i the delta of a unit, the delta is

    (sum_i p_i tau_i) * (sum_i p_i d_i / tau_i)
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedrec_app.client_part import ClientPart, Units
from fedrec_app.records import Arrays
from strategies.accumulator import UpdateSum
from strategies.base import RecStrategy
from strategies.options import UnitOptions
from strategies.update import Update

STEPS = "weighted-steps"


class FedNovaPart(ClientPart):
    """Divides each unit's delta by its steps, and adds up weighted steps beside it."""

    scalars = (STEPS,)
    sgd_only = True

    def weigh(self, units: Units) -> tuple[NDArray, dict[str, NDArray]]:
        """Returns w / tau, and w * tau."""
        return units.weights / units.steps, {STEPS: units.weights * units.steps}


class FedNova(RecStrategy):
    """Normalised averaging."""

    name = "fednova"
    summary_line = "normalised averaging of unequal numbers of local steps (Wang et al., NeurIPS 2020)"
    client_part = FedNovaPart

    Options = UnitOptions

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        """Returns the mean number of steps times the mean delta a step; zeros where no weight came."""
        total = UpdateSum.of(updates, params)
        if total.weight <= 0:
            return {name: np.zeros(param.shape) for name, param in params.items()}
        steps = total.scalar(STEPS) / total.weight
        return {name: total.delta(name) * (steps / total.weight) for name in params}
