"""SCAFFOLD: control variates correct the drift of nodes whose users differ.

SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, Karimireddy et al., ICML 2020,
https://arxiv.org/abs/1910.06378 (Algorithm 1, option II). A node steps along g - c_i + c; after K steps of rate eta
from x to y it sets c_i to c_i - c + (x - y) / (K eta) and sends the change. With w_i the weights of the nodes,

    x = x + learning rate * sum_S w_i (y_i - x) / sum_S w_i
    c = c + sum_S w_i (change of c_i) / sum over all nodes of w_i

(the paper has equal weights). The node keeps c_i; it never leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from fedrec_app.client_part import ClientPart
from fedrec_app.errors import StateError
from fedrec_app.records import Arrays
from strategies.accumulator import UpdateSum
from strategies.base import RecStrategy
from strategies.options import UnitOptions
from strategies.rollcall import Roster
from strategies.settings import Settings
from strategies.update import Update

if TYPE_CHECKING:
    from torch import Tensor


class ScaffoldPart(ClientPart):
    """The node's control variate: `memory` holds c_i, `received` c."""

    has_controls = True
    sgd_only = True

    def gradient(self, name: str, grad: Tensor, param: Tensor, start: Tensor) -> Tensor:
        """Returns g - c_i + c."""
        correction = self.received[name] - self.memory.get(name, np.float32(0))
        if correction.shape != tuple(param.shape):
            raise StateError(f"the control variate of {name!r} has shape {correction.shape}, not {tuple(param.shape)}")
        return grad + grad.new_tensor(correction)

    def finish(self, delta: Arrays, steps: int, learning_rate: float) -> tuple[Arrays, Arrays]:
        """Returns the change of c_i, and c_i: as it was where this fit diverged, whose reply the server drops."""
        with np.errstate(over="ignore", invalid="ignore"):
            change = {
                name: np.asarray(-self.received[name] - d / (steps * learning_rate), dtype=np.float32)
                for name, d in delta.items()
            }
            after = {name: np.asarray(self.memory.get(name, 0) + c, dtype=np.float32) for name, c in change.items()}
        return change, after if all(np.isfinite(array).all() for array in after.values()) else self.memory


class Scaffold(RecStrategy):
    """Federated averaging of pooled nodes with control variates."""

    name = "scaffold"
    summary_line = "control variates against drift, for pooled nodes (Karimireddy et al., ICML 2020)"
    Options = UnitOptions
    client_part = ScaffoldPart

    def __init__(
        self, options: BaseModel | dict[str, Any] | None = None, settings: Settings = Settings(),
        roster: Roster | None = None,
    ) -> None:  # fmt: skip
        super().__init__(options, settings, roster)
        self._controls: Arrays = {}

    def controls(self) -> Arrays:
        """Returns c."""
        return {n: self._controls.get(n, np.zeros(p.shape)).astype(p.dtype) for n, p in self._params.items()}

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        """Returns the weighted mean delta, and moves c; zeros where no weight came."""
        total = UpdateSum.of(updates, params)
        if total.weight <= 0:
            return {name: np.zeros(param.shape) for name, param in params.items()}
        everybody = max(math.fsum(self.expected_weight(member) for member in self.members), total.weight)
        for name in params:
            self._controls[name] = np.asarray(self._controls.get(name, 0) + total.control(name) / everybody)
        return {name: total.delta(name) / total.weight for name in params}

    def problem(self, num_nodes: int | None) -> str:
        """Returns that the rule is for all users of a node."""
        if self.settings.user_fraction < 1:
            return "c is the mean of the c_i only while a node's weight stays what it was: set train.user-fraction=1"
        return super().problem(num_nodes)

    def state(self) -> Arrays:
        """Returns c and the server optimiser's state."""
        own = {f"control/{name}": array for name, array in self._controls.items()}
        return {**own, **{f"optimizer/{name}": array for name, array in super().state().items()}}

    def load_state(self, state: Arrays) -> None:
        """Continues from what `state` returned."""
        self._controls = {k.removeprefix("control/"): v for k, v in state.items() if k.startswith("control/")}
        rest = {k.removeprefix("optimizer/"): v for k, v in state.items() if k.startswith("optimizer/")}
        super().load_state(rest)
