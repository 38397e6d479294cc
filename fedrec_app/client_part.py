"""What a strategy changes on the node: its client part.

class Halve(ClientPart):
    def gradient(self, name, grad, param, start):
        return grad / 2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from fedrec_app.records import Arrays

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Units:
    """Units (users, or one pooled node) whose deltas are about to be added up; every array has one number a unit.

    Attributes:
        weights: of the deltas, by the weighting that the strategy asked for.
        examples: training interactions.
        steps: local steps.
        learning_rate: of these steps.
        losses: mean loss at the parameters received; only for parts that are `weighed_by_outcome`.
        squared_norms: of the deltas; only for those too.
    """

    weights: NDArray
    examples: NDArray
    steps: NDArray
    learning_rate: float
    losses: NDArray | None = None
    squared_norms: NDArray | None = None


class ClientPart:
    """One fit on one node, as a strategy wants it; every method may be left as it is.

    Args:
        options: of the strategy, validated.
        received: "control/<name>" arrays that came with the parameters, by the parameter's name.
        memory: what `finish` left on this node in the last round whose reply the server used, {} at first.

    Attributes:
        scalars: names of the sums that `weigh` adds to a reply; none of them is ever negative.
        has_controls: "control/<name>" arrays travel beside the parameters and beside the deltas, shaped like these.
        weighed_by_outcome: `weigh` looks at losses and norms.
        sgd_only: its rule is derived for local SGD; other local optimisers are refused.
    """

    scalars: ClassVar[tuple[str, ...]] = ()
    has_controls: ClassVar[bool] = False
    weighed_by_outcome: ClassVar[bool] = False
    sgd_only: ClassVar[bool] = False

    def __init__(self, options: Any, received: Arrays, memory: Arrays) -> None:
        self.options, self.received, self.memory = options, received, memory

    def gradient(self, name: str, grad: Tensor, param: Tensor, start: Tensor) -> Tensor:
        """Returns the gradient that a local step follows; called for each shared parameter.

        Args:
            name: of the parameter.
            grad: of the loss.
            param: the parameter now.
            start: the parameter received. All three may have a leading axis of users, and may hold some rows of a
                table only.
        """
        return grad

    def weigh(self, units: Units) -> tuple[NDArray, dict[str, NDArray]]:
        """Returns (n,) what each unit's delta is multiplied with before deltas are added up, and (n,) numbers by name
        that are added up beside them.

        Args:
            units: the units.
        """
        return units.weights, {}

    def finish(self, delta: Arrays, steps: int, learning_rate: float) -> tuple[Arrays, Arrays]:
        """Returns the controls to send, by the parameter's name, and the memory to leave on the node.

        Only for pooled nodes (`train.unit = "node"`): users have no memory, and a run that would need one is refused.

        Args:
            delta: of the node, not weighted.
            steps: that it took.
            learning_rate: of these steps.
        """
        return {}, self.memory

    @classmethod
    def changes_gradients(cls) -> bool:
        """Returns whether local steps are not plain ones."""
        return cls.gradient is not ClientPart.gradient

    @classmethod
    def weighs(cls) -> bool:
        """Returns whether deltas are not multiplied with their weights alone."""
        return cls.weigh is not ClientPart.weigh

    @classmethod
    def remembers(cls) -> bool:
        """Returns whether the part leaves a memory on the node, or sends controls."""
        return cls.has_controls or cls.finish is not ClientPart.finish
