"""What a run tells its strategy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedrec_app.privacy.budget import UserLevel
from fedrec_app.schedules import Schedule


@dataclass(frozen=True)
class Settings:
    """What a run tells its strategy.

    Attributes:
        seed: of the draws of nodes.
        fraction_train: share of the nodes that train in a round.
        min_nodes: a round with fewer valid updates is skipped.
        row_names: parameters with a row an item; nodes may send some of their rows alone.
        unit: whether users or pooled nodes are the units that weights refer to.
        num_rounds: of the run, for schedules.
        schedule: of the server's learning rate.
        local_optimizer: what units take their local steps with.
        one_step: whether every unit takes one local step and no more.
        user_fraction: share of a node's users that train in a round.
        privacy: what user-level differential privacy asks for; None: nothing.
    """

    seed: int = 0
    fraction_train: float = 1.0
    min_nodes: int = 1
    row_names: tuple[str, ...] = ()
    unit: Literal["user", "node"] = "user"
    num_rounds: int = 1
    schedule: Schedule = field(default_factory=Schedule)
    local_optimizer: str = "sgd"
    one_step: bool = False
    user_fraction: float = 1.0
    privacy: UserLevel | None = None
