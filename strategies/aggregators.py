"""Rules that turn the updates of a round into one delta."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from fedrec_app.records import Arrays
from strategies.accumulator import UpdateSum
from strategies.update import Update

Weighting = Literal["examples", "users", "uniform", "rows"]


class WeightedMean:
    """The weighted mean of the units' deltas: an exact sum, rounded to float64, over the sum of weights.

    Communication-Efficient Learning of Deep Networks from Decentralized Data, McMahan et al., AISTATS 2017,
    https://arxiv.org/abs/1602.05629 (Algorithm 1). The node has weighted each unit's delta:

        examples  n_k / n: by training examples (the paper's rule)
        users     by users: a pooled node counts as many times as it has users
        uniform   1 / N: every unit counts once, a user or a pooled node
        rows      as users, but each row of an item parameter is averaged over the users that trained it
                  (rows that nobody trained stay)
    """

    def __call__(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        """Returns the mean delta by parameter name, in float64; zeros where no weight came.

        Args:
            updates: consumed one by one, in any order, which leaves no trace; only the running sums are kept.
            params: the current parameters, for names and shapes.
        """
        total = UpdateSum(params)
        for update in updates:
            total.add(update)
        result: Arrays = {}
        for name, param in params.items():
            count = total.count(name)
            weight = total.weight if count is None else count.reshape(-1, *([1] * (param.ndim - 1)))
            result[name] = total.delta(name) / np.where(weight > 0, weight, 1.0)
        return result
