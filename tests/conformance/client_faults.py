"""Strategies whose client part, or what the server sends for it, breaks one rule."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec_app.client_part import ClientPart, Units
from fedrec_app.records import Arrays
from strategies.base import RecStrategy


class _WithControls(ClientPart):
    has_controls = True

    def finish(self, delta: Arrays, steps: int, learning_rate: float) -> tuple[Arrays, Arrays]:
        return {name: np.asarray(-array, dtype=np.float32) for name, array in delta.items()}, {}


class SendsNoControls(RecStrategy):
    """Has a part with controls and never sends any."""

    client_part = _WithControls


class SendsControlsToNobody(RecStrategy):
    """Sends controls, and forgets to say that its part has some."""

    client_part = ClientPart

    def controls(self) -> Arrays:
        return {name: np.zeros_like(param) for name, param in self._params.items()}


class _Misspells(ClientPart):
    def gradient(self, name: str, grad: Any, param: Any, start: Any) -> Any:
        return grad.nonsense()


class MisspellsInTheGradient(RecStrategy):
    """Calls what there is not, where only nodes come."""

    client_part = _Misspells


class _MixesUsers(ClientPart):
    def gradient(self, name: str, grad: Any, param: Any, start: Any) -> Any:
        return grad / (1 + grad.abs().mean())


class MixesUsers(RecStrategy):
    """Takes a mean over whoever is in the batch."""

    client_part = _MixesUsers


class _MixesRows(ClientPart):
    def gradient(self, name: str, grad: Any, param: Any, start: Any) -> Any:
        return grad - grad.mean(dim=-2, keepdim=True) if name == "table" else grad


class MixesRows(RecStrategy):
    """Centres over the rows that happen to be there."""

    client_part = _MixesRows


class _AddsInPlace(ClientPart):
    def gradient(self, name: str, grad: Any, param: Any, start: Any) -> Any:
        return grad.add_(param - start)


class AddsToTheGradientInPlace(RecStrategy):
    """Writes into the gradient that it was given."""

    client_part = _AddsInPlace


class _Widens(ClientPart):
    def gradient(self, name: str, grad: Any, param: Any, start: Any) -> Any:
        return grad.double() / 2


class WidensTheGradient(RecStrategy):
    """Forgets to go back to float32."""

    client_part = _Widens


class _ReadsAMisspeltAttribute(ClientPart):
    def weigh(self, units: Units) -> tuple[NDArray, dict[str, NDArray]]:
        return units.wieghts, {}  # type: ignore[attr-defined]


class WeighsByNothing(RecStrategy):
    """Misspells what there is of units."""

    client_part = _ReadsAMisspeltAttribute


class _Undeclared(ClientPart):
    def weigh(self, units: Units) -> tuple[NDArray, dict[str, NDArray]]:
        return units.weights, {"units": np.ones(len(units.weights))}


class ReturnsAnUndeclaredScalar(RecStrategy):
    """Adds up what no reply has."""

    client_part = _Undeclared


class _Negative(ClientPart):
    scalars = ("change",)

    def weigh(self, units: Units) -> tuple[NDArray, dict[str, NDArray]]:
        return units.weights, {"change": 2.0 - units.steps}


class AddsUpNegativeNumbers(RecStrategy):
    """Adds up what the server drops a reply for."""

    client_part = _Negative


class _WeighsByShare(ClientPart):
    def weigh(self, units: Units) -> tuple[NDArray, dict[str, NDArray]]:
        return units.weights / units.weights.sum(), {}


class WeighsByShareOfTheGroup(RecStrategy):
    """Divides by the weight of whoever is weighed together."""

    client_part = _WeighsByShare


class _ForgetsControls(_WithControls):
    def finish(self, delta: Arrays, steps: int, learning_rate: float) -> tuple[Arrays, Arrays]:
        return {}, {}


class AnswersWithoutControls(RecStrategy):
    """Sends controls and gets none back: nodes would send zeros for it."""

    client_part = _ForgetsControls

    def controls(self) -> Arrays:
        return {name: np.zeros_like(param) for name, param in self._params.items()}


class _KeepsNumbers(ClientPart):
    def finish(self, delta: Arrays, steps: int, learning_rate: float) -> tuple[Arrays, Arrays]:
        return {}, {"norm": float(sum(np.square(array).sum() for array in delta.values()))}  # type: ignore[dict-item]


class KeepsNumbersInItsMemory(RecStrategy):
    """Leaves a memory that no node can keep."""

    client_part = _KeepsNumbers


class _KeepsEverything(ClientPart):
    def finish(self, delta: Arrays, steps: int, learning_rate: float) -> tuple[Arrays, Arrays]:
        return {}, {"user-keys": np.zeros(2, dtype=np.uint64)}


class TakesANameOfTheNode(RecStrategy):
    """Names its memory as the node's own file does."""

    client_part = _KeepsEverything
