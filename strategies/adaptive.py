"""Adaptive server optimisers: Adam, Yogi and Adagrad on the mean delta.

Adaptive Federated Optimization, Reddi et al., ICLR 2021, https://arxiv.org/abs/2003.00295 (Algorithm 2). With d the
mean delta, m the first and v the second moment:

    m = beta_1 m + (1 - beta_1) d
    v = v + d^2                                  Adagrad
    v = v - (1 - beta_2) d^2 sign(v - d^2)       Yogi
    v = beta_2 v + (1 - beta_2) d^2              Adam
    params + learning_rate * m / (sqrt(v) + tau)

v starts at tau^2, the least that the paper allows; Adam's at 0, with the bias correction of Kingma & Ba (ICLR 2015).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec_app.records import Arrays
from strategies.optimizers import ServerOptimizer, added
from strategies.options import StrategyOptions


class AdagradOptions(StrategyOptions):
    """Options of Adagrad."""

    learning_rate: float = Field(default=0.03, gt=0, description="eta, factor on the step m / (sqrt(v) + tau)")
    beta_1: float = Field(default=0.0, ge=0, lt=1, description="decay of the first moment m, the mean of deltas")
    tau: float = Field(default=1e-3, gt=0, description="degree of adaptivity, added to sqrt(v); v starts at tau^2")


class YogiOptions(StrategyOptions):
    """Options of Yogi."""

    learning_rate: float = Field(default=0.01, gt=0, description="eta, factor on the step m / (sqrt(v) + tau)")
    beta_1: float = Field(default=0.9, ge=0, lt=1, description="decay of the first moment m, the mean of deltas")
    beta_2: float = Field(default=0.99, ge=0, lt=1, description="decay of the second moment v, of squared deltas")
    tau: float = Field(default=1e-3, gt=0, description="degree of adaptivity, added to sqrt(v); v starts at tau^2")


class AdamOptions(YogiOptions):
    """Options of Adam."""

    tau: float = Field(default=1e-6, gt=0, description="degree of adaptivity, added to sqrt(v); v starts at 0")
    bias_correction: bool = Field(
        default=True, description="divide m and v by 1 - beta^t, as Kingma & Ba do and Reddi et al. do not"
    )


class Adaptive(ServerOptimizer):
    """What the three have in common: both moments and the step."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._steps = 0
        self._first: Arrays = {}
        self._second: Arrays = {}

    def second_moment(self, before: NDArray | None, squared: NDArray) -> NDArray:
        """Returns v after a delta with these squares; `before` is None at the first."""
        raise NotImplementedError

    def corrected(self, moment: NDArray, beta: float) -> NDArray:
        """Returns a moment as the step uses it."""
        return moment

    def step(self, params: Arrays, delta: Arrays) -> Arrays:
        """Returns the new parameters, dtypes kept."""
        o = self.options
        self._steps += 1
        result: Arrays = {}
        for name, p in params.items():
            d = delta[name].astype(np.float64)
            # Of 0-d arrays numpy makes scalars, which a checkpoint cannot keep.
            first = np.asarray(o.beta_1 * self._first.get(name, np.zeros_like(d)) + (1 - o.beta_1) * d)
            second = np.asarray(self.second_moment(self._second.get(name), d * d))
            self._first[name], self._second[name] = first, second
            root = np.sqrt(self.corrected(second, getattr(o, "beta_2", 0.0)))
            result[name] = added(p, o.learning_rate * self.corrected(first, o.beta_1) / (root + o.tau))
        return result

    def state(self) -> Arrays:
        """Returns the number of steps and both moments."""
        arrays: Arrays = {"steps": np.array(self._steps, dtype=np.int64)}
        arrays.update({f"first/{name}": array for name, array in self._first.items()})
        arrays.update({f"second/{name}": array for name, array in self._second.items()})
        return arrays

    def load_state(self, state: Arrays) -> None:
        """Continues from what `state` returned."""
        self._steps = int(state["steps"])
        self._first = {k.removeprefix("first/"): v for k, v in state.items() if k.startswith("first/")}
        self._second = {k.removeprefix("second/"): v for k, v in state.items() if k.startswith("second/")}


class Adagrad(Adaptive):
    """Steps that shrink with all squared deltas so far."""

    name = "adagrad"
    summary_line = "Adagrad (Reddi et al., ICLR 2021)"
    Options = AdagradOptions

    def second_moment(self, before: NDArray | None, squared: NDArray) -> NDArray:
        """Returns v + d^2."""
        return (self.options.tau**2 if before is None else before) + squared


class Yogi(Adaptive):
    """Adam whose second moment grows by no more than (1 - beta_2) d^2 a step."""

    name = "yogi"
    summary_line = "Yogi (Zaheer et al., NeurIPS 2018; Reddi et al., ICLR 2021)"
    Options = YogiOptions

    def second_moment(self, before: NDArray | None, squared: NDArray) -> NDArray:
        """Returns v - (1 - beta_2) d^2 sign(v - d^2)."""
        v = np.full_like(squared, self.options.tau**2) if before is None else before
        return v - (1 - self.options.beta_2) * squared * np.sign(v - squared)


class Adam(Adaptive):
    """Decaying means of deltas and their squares."""

    name = "adam"
    summary_line = "Adam (Kingma & Ba, ICLR 2015; Reddi et al., ICLR 2021)"
    Options = AdamOptions

    def second_moment(self, before: NDArray | None, squared: NDArray) -> NDArray:
        """Returns beta_2 v + (1 - beta_2) d^2."""
        beta = self.options.beta_2
        return beta * (np.zeros_like(squared) if before is None else before) + (1 - beta) * squared

    def corrected(self, moment: NDArray, beta: float) -> NDArray:
        """Returns the moment over 1 - beta^t, unless that is switched off."""
        return moment / (1 - beta**self._steps) if self.options.bias_correction else moment
