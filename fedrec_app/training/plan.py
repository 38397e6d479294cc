"""What one local fit is to do, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedrec_app.config import TrainConfig

Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class FitPlan:
    """One local fit.

    Attributes:
        seed, server_round: what the randomness of this fit is derived from, together with the user.
        unit: whether every user trains from the shared parameters on his own, or the node pools its users.
        user_fraction: share of users that take part, drawn from (seed, round, user).
        weighting: how deltas of users are weighted in the sum.
        local_epochs: passes over the training interactions.
        batch_size: positives in a mini-batch, each with its negatives; 0: all of a unit's at once.
        optimizer: of local steps.
        learning_rate: of shared parameters.
        private_learning_rate: of private rows.
        private_epochs: steps on private rows, shared parameters frozen, before the pass over the interactions
            (Federated Reconstruction, Singhal et al., NeurIPS 2021); private rows solved in closed form need none.
        num_negatives: drawn for each positive.
        weight_decay: L2 (decoupled for "adamw") on what a step moves: of item tables a user decays the rows that he
            met, a pooled node all of them.
        proximal_mu: strength of FedProx's pull towards the shared parameters received.
        clip_norm: bound on the L2 norm of each user's delta over all shared parameters, before it is weighted, by
            Opacus' factor min(1, clip_norm / (norm + 1e-6)); 0: none.
        device: where torch computes.
    """

    seed: int
    server_round: int
    unit: Literal["user", "node"] = "user"
    user_fraction: float = 1.0
    weighting: str = "examples"
    local_epochs: int = 1
    batch_size: int = 0
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    private_learning_rate: float = 0.1
    private_epochs: int = 0
    num_negatives: int = 4
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    clip_norm: float = 0.0
    device: str = "cpu"

    @property
    def moves_private(self) -> bool:
        """Whether private rows move with the shared parameters; reconstructed ones stay as the reconstruction left
        them."""
        return self.private_epochs == 0

    @classmethod
    def of(cls, train: TrainConfig, seed: int, server_round: int) -> FitPlan:
        """Returns the local fit that resolved settings ask for in a round, weighted by examples."""
        settings = dict(train)
        if auto := sorted(name for name, value in settings.items() if value == "auto"):
            raise ValueError(f"train settings {auto} are still 'auto': resolve the configuration first")
        return cls(seed=seed, server_round=server_round, **settings)


@dataclass
class FitSums:
    """Sums over the units that took part, in float64.

    Attributes:
        delta: weighted sums of deltas by shared parameter.
        count: sums of weights by row, of parameters with a row an item.
        weight, num_users, num_examples, loss: sums of weights, users, training interactions, and loss over them.
    """

    delta: Arrays
    count: Arrays = field(default_factory=dict)
    weight: float = 0.0
    num_users: int = 0
    num_examples: int = 0
    loss: float = 0.0

    @classmethod
    def zeros(cls, shared: Arrays, row_names: list[str]) -> FitSums:
        """Returns sums over nobody."""
        return cls(
            {name: np.zeros(array.shape, dtype=np.float64) for name, array in shared.items()},
            {name: np.zeros(len(shared[name]), dtype=np.float64) for name in row_names},
        )
