"""Server optimisers: they move the parameters along the mean delta.

Adaptive Federated Optimization, Reddi et al., ICLR 2021, https://arxiv.org/abs/2003.00295 (Algorithm 2): the mean delta
stands for the negative gradient.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from fedrec_app.records import Arrays


class ServerOptimizer(Protocol):
    """One step on the server; `state` is what a checkpoint keeps."""

    def step(self, params: Arrays, delta: Arrays) -> Arrays:
        """Returns the new parameters, dtypes kept; neither argument is changed."""
        ...

    def state(self) -> Arrays:
        """Returns what the next step depends on, by name."""
        ...

    def load_state(self, state: Arrays) -> None:
        """Continues from what `state` returned."""
        ...


class SGD:
    """params + learning_rate * delta; with a rate of 1 the federated average itself (McMahan et al., AISTATS 2017)."""

    def __init__(self, learning_rate: float = 1.0) -> None:
        self.learning_rate = learning_rate

    def step(self, params: Arrays, delta: Arrays) -> Arrays:
        """Returns the new parameters, dtypes kept."""
        result: Arrays = {}
        for name, p in params.items():
            step = delta[name] if self.learning_rate == 1 else self.learning_rate * delta[name]
            # Rounded while it is added up: of large tables no copy in float64 is made.
            result[name] = np.add(p, step, out=np.empty_like(p), casting="unsafe")
        return result

    def state(self) -> Arrays:
        """Returns nothing: plain steps have no memory."""
        return {}

    def load_state(self, state: Arrays) -> None:
        """Continues from what `state` returned."""
        if state:
            raise ValueError(f"SGD has no state, found {sorted(state)}")


class Adam:
    """FedAdam (Reddi et al., ICLR 2021), with Adam's bias correction (Kingma & Ba, ICLR 2015) unless switched off.

    Args:
        learning_rate: server learning rate eta.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        tau: degree of adaptivity, added to the root of the second moment.
        bias_correction: whether moments are divided by 1 - beta^t; the paper's algorithm does without.
    """

    def __init__(
        self, learning_rate: float, beta_1: float, beta_2: float, tau: float, bias_correction: bool = True
    ) -> None:
        self.learning_rate, self.beta_1, self.beta_2, self.tau = learning_rate, beta_1, beta_2, tau
        self.bias_correction = bias_correction
        self._steps = 0
        self._first: Arrays = {}
        self._second: Arrays = {}

    def step(self, params: Arrays, delta: Arrays) -> Arrays:
        """Returns the new parameters, dtypes kept."""
        self._steps += 1
        result: Arrays = {}
        for name, p in params.items():
            d = delta[name].astype(np.float64)
            first = self.beta_1 * self._first.get(name, np.zeros_like(d)) + (1 - self.beta_1) * d
            second = self.beta_2 * self._second.get(name, np.zeros_like(d)) + (1 - self.beta_2) * d * d
            # Of 0-d arrays numpy makes scalars, which a checkpoint cannot keep.
            self._first[name], self._second[name] = np.asarray(first), np.asarray(second)
            if self.bias_correction:
                first = first / (1 - self.beta_1**self._steps)
                second = second / (1 - self.beta_2**self._steps)
            result[name] = (p + self.learning_rate * first / (np.sqrt(second) + self.tau)).astype(p.dtype)
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
