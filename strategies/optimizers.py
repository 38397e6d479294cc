"""Server optimisers: they move the parameters along the mean delta.

Adaptive Federated Optimization, Reddi et al., ICLR 2021, https://arxiv.org/abs/2003.00295 (Algorithms 1 and 2): the
mean delta stands for the negative gradient.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec_app.config import validate_options
from fedrec_app.records import Arrays
from strategies.options import StrategyOptions


class ServerOptimizer:
    """One step a round on the server.

    Args:
        options: of the optimiser: a mapping, or an object that has them as attributes.

    Raises:
        ConfigError: an option is unknown or out of range.
    """

    name: ClassVar[str] = ""
    summary_line: ClassVar[str] = ""
    Options: ClassVar[type[StrategyOptions]] = StrategyOptions

    def __init__(self, options: Any = None) -> None:
        if options is None or isinstance(options, dict):
            options = validate_options(self.Options, options or {}, f"server optimizer {self.name!r}")
        self.options: Any = options

    def step(self, params: Arrays, delta: Arrays) -> Arrays:
        """Returns the new parameters, dtypes kept; no argument is changed.

        Args:
            params: the current parameters.
            delta: what was aggregated.
        """
        raise NotImplementedError

    def serve(self, params: Arrays) -> Arrays:
        """Returns the parameters as they are judged and released; steps go on from those given.

        Args:
            params: after any step; not to be changed.
        """
        return params

    def state(self) -> Arrays:
        """Returns what the next step depends on, by name: a checkpoint keeps it."""
        return {}

    def load_state(self, state: Arrays) -> None:
        """Continues from what `state` returned."""
        if state:
            raise ValueError(f"server optimizer {self.name!r} has no state, found {sorted(state)}")


class SGDOptions(StrategyOptions):
    """Options of plain steps."""

    learning_rate: float = Field(default=1.0, gt=0, description="eta, factor on the step; 1 for plain averaging")


class SGD(ServerOptimizer):
    """params + learning_rate * delta; with a rate of 1 the federated average itself (McMahan et al., AISTATS 2017)."""

    name = "sgd"
    summary_line = "steps along the delta"
    Options = SGDOptions

    def step(self, params: Arrays, delta: Arrays) -> Arrays:
        """Returns the new parameters, dtypes kept."""
        rate = self.options.learning_rate
        return {name: added(p, delta[name] if rate == 1 else rate * delta[name]) for name, p in params.items()}


class MomentumOptions(SGDOptions):
    """Options of steps with momentum."""

    momentum: float = Field(default=0.9, ge=0, lt=1, description="beta, decay of the velocity v = beta v + delta")


class Momentum(ServerOptimizer):
    """v = momentum * v + delta; params + learning_rate * v.

    Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, Hsu, Qi & Brown, 2019,
    https://arxiv.org/abs/1909.06335 (FedAvgM, section 4.3).
    """

    name = "momentum"
    summary_line = "SGD with momentum (Hsu et al., 2019)"
    Options = MomentumOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._velocity: Arrays = {}

    def step(self, params: Arrays, delta: Arrays) -> Arrays:
        """Returns the new parameters, dtypes kept."""
        result: Arrays = {}
        for name, p in params.items():
            velocity = self.options.momentum * self._velocity.get(name, np.zeros(p.shape)) + delta[name]
            self._velocity[name] = np.asarray(velocity)
            result[name] = added(p, self.options.learning_rate * velocity)
        return result

    def state(self) -> Arrays:
        """Returns the velocities."""
        return dict(self._velocity)

    def load_state(self, state: Arrays) -> None:
        """Continues from what `state` returned."""
        self._velocity = dict(state)


def added(param: NDArray, step: NDArray) -> NDArray:
    """Returns param + step in the dtype of the parameter."""
    # Rounded while it is added up: of large tables no copy in float64 is made.
    return np.add(param, step, out=np.empty_like(param), casting="unsafe")
