"""Rules that turn the updates of a round into one delta."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, ClassVar, Literal

import numpy as np

from fedrec_app.config import validate_options
from fedrec_app.records import Arrays
from strategies.accumulator import UpdateSum
from strategies.options import StrategyOptions
from strategies.update import Update


class Aggregator:
    """A rule, whatever the server does with its result.

    Args:
        options: of the rule: a mapping, or an object that has them as attributes.

    Attributes:
        needs: "sums": any grouping of the same users gives the same; "individual": each node's update by itself.
        weighted: a weight of 3 counts like three nodes of weight 1.
        counts_rows: knows what to do with weights by row (weighting "rows").

    Raises:
        ConfigError: an option is unknown or out of range.
    """

    name: ClassVar[str] = ""
    summary_line: ClassVar[str] = ""
    needs: ClassVar[Literal["sums", "individual"]] = "individual"
    weighted: bool = False
    counts_rows: ClassVar[bool] = False
    Options: ClassVar[type[StrategyOptions]] = StrategyOptions

    def __init__(self, options: Any = None) -> None:
        if options is None or isinstance(options, dict):
            options = validate_options(self.Options, options or {}, f"aggregator {self.name!r}")
        self.options: Any = options

    def __call__(self, updates: Iterable[Update], params: Arrays, tables: Collection[str] = ()) -> Arrays:
        """Returns the delta by parameter name.

        Args:
            updates, params: as for `RecStrategy.aggregate`.
            tables: names of parameters with a row an item.
        """
        raise NotImplementedError

    def problem(self, num_nodes: int) -> str:
        """Returns why the rule makes no sense for this many nodes a round, or "": asked before a run starts."""
        return self.too_few(num_nodes)

    def too_few(self, num_nodes: int) -> str:
        """Returns why what the rule promises does not hold for so few nodes, or "".

        Asked in each round for those that answered and trained somebody; such a round is skipped.
        """
        return ""


class WeightedMean(Aggregator):
    """The weighted mean of the units' deltas: an exact sum, rounded to float64, over the sum of weights.

    Communication-Efficient Learning of Deep Networks from Decentralized Data, McMahan et al., AISTATS 2017,
    https://arxiv.org/abs/1602.05629 (Algorithm 1). The node has weighted each unit's delta:

        examples  n_k / n: by training examples (the paper's rule)
        users     by users: a pooled node counts as many times as it has users
        uniform   1 / N: every unit counts once, a user or a pooled node
        rows      as users, but each row of an item parameter is averaged over the users that trained it
                  (rows that nobody trained stay)
    """

    name = "mean"
    summary_line = "weighted mean (McMahan et al., AISTATS 2017)"
    needs = "sums"
    weighted = True
    counts_rows = True

    def __call__(self, updates: Iterable[Update], params: Arrays, tables: Collection[str] = ()) -> Arrays:
        """Returns the mean delta by parameter name, in float64; zeros where no weight came.

        Args:
            updates: consumed one by one, in any order, which leaves no trace; only the running sums are kept.
            params: the current parameters, for names and shapes.
            tables: not looked at.
        """
        total = UpdateSum.of(updates, params)
        result: Arrays = {}
        for name, param in params.items():
            count = total.count(name)
            weight = total.weight if count is None else count.reshape(-1, *([1] * (param.ndim - 1)))
            some = np.asarray(weight) > 0
            result[name] = np.where(some, total.delta(name) / np.where(some, weight, 1.0), 0.0)
        return result
