"""Rules that turn the updates of a round into one delta."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from fedrec_app.records import Arrays
from strategies.update import Update

Weighting = Literal["examples", "users", "uniform", "rows"]


class WeightedMean:
    """The weighted mean of the units' deltas, added up in float64.

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
            updates: consumed one by one; only the running sums are kept.
            params: the current parameters, for names and shapes.
        """
        sums = {name: np.zeros(p.shape, dtype=np.float64) for name, p in params.items()}
        counts: Arrays = {}
        weight = 0.0
        for update in updates:
            weight += update.weight
            for name, total in sums.items():
                total += update.delta(name)
                count = update.count(name)
                if count is not None:
                    counts[name] = counts.get(name, np.zeros(len(count), dtype=np.float64)) + count
        result: Arrays = {}
        for name, total in sums.items():
            if name in counts:
                rows = np.where(counts[name] > 0, counts[name], 1.0)
                result[name] = total / rows.reshape(-1, *([1] * (total.ndim - 1)))
            else:
                result[name] = total / weight if weight > 0 else total
        return result
