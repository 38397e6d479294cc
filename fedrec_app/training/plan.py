"""What one local fit is to do, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedrec_app.client_part import ClientPart, Units
from fedrec_app.config import TrainConfig
from fedrec_app.schedules import Schedule

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
        max_grad_norm: bound on the L2 norm of the gradient of each step that moves shared parameters, over all that the
            step moves, proximal term included, before weight decay and the optimiser, as
            `torch.nn.utils.clip_grad_norm_`; 0: none. A user's step has one norm over his copy of the shared parameters
            and his private rows, a pooled node's over its copy and the private rows of the mini-batch. Steps that move
            private rows alone (reconstruction, fold-in) are not bounded.
        clip_norm: bound on the L2 norm of each user's delta over all shared parameters together, by Opacus' factor
            min(1, clip_norm / (norm + 1e-6)); 0: none. A user whose delta is not finite then adds nothing to any sum
            and keeps the private rows that he had. No user may weigh more than 1.
        secret_rate: chance of each user to take part, drawn anew from the operating system's entropy, in place of
            `user_fraction`; 0: the round is not private.
        device: where torch computes.
        part: what the run's strategy changes in local training.
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
    max_grad_norm: float = 0.0
    clip_norm: float = 0.0
    secret_rate: float = 0.0
    device: str = "cpu"
    part: ClientPart | None = None

    @property
    def moves_private(self) -> bool:
        """Whether private rows move with the shared parameters; reconstructed ones stay as the reconstruction left
        them."""
        return self.private_epochs == 0

    @classmethod
    def of(cls, train: TrainConfig, seed: int, server_round: int, num_rounds: int) -> FitPlan:
        """Returns the local fit that resolved settings ask for in a round of training, weighted by examples.

        Both rates, of shared parameters and of private rows, follow `train.schedule`.

        Args:
            train: resolved.
            seed, server_round: see the attributes.
            num_rounds: of the whole run, which the schedule spans.
        """
        plan = cls.to_serve(train, seed, server_round)
        factor = Schedule.parse(train.schedule, "train.schedule").factor(server_round, num_rounds)
        return replace(
            plan,
            learning_rate=factor * plan.learning_rate,
            private_learning_rate=factor * plan.private_learning_rate,
        )

    @classmethod
    def to_serve(cls, train: TrainConfig, seed: int, server_round: int) -> FitPlan:
        """Returns the fit of private rows before they serve (fold-in): at the whole rates, whatever the schedule, so
        that evaluation and recommendations mean the same in every round."""
        settings = dict(train)
        if auto := sorted(name for name, value in settings.items() if value == "auto"):
            raise ValueError(f"train settings {auto} are still 'auto': resolve the configuration first")
        del settings["schedule"], settings["adapter_rank"]  # of rates, and of the model
        return cls(seed=seed, server_round=server_round, **settings)


@dataclass
class FitSums:
    """Sums over the units that took part, in float64.

    Attributes:
        delta: weighted sums of deltas by shared parameter.
        count: sums of weights by row, of parameters with a row an item.
        weight, num_users, num_examples, loss: sums of weights, users, training interactions, and loss over them.
        centred_unclipped: sum over users of 1[norm of the delta <= clip_norm] - 1/2, where deltas are clipped: half as
            sensitive to any user as the number of those not clipped (Andrew et al., Differentially Private Learning
            with Adaptive Clipping, NeurIPS 2021, section 3). A delta that is not finite counts as clipped.
        num_not_finite: users who were dropped because their deltas were not finite, where deltas are clipped.
        scalars: further sums, by name, and
        controls: weighted arrays by shared parameter, of the strategy's client part.
    """

    delta: Arrays
    count: Arrays = field(default_factory=dict)
    weight: float = 0.0
    num_users: int = 0
    num_examples: int = 0
    loss: float = 0.0
    centred_unclipped: float = 0.0
    num_not_finite: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    controls: Arrays = field(default_factory=dict)

    def weigh(self, part: ClientPart | None, units: Units) -> NDArray[np.float64]:
        """Returns (n,) what each unit's delta is multiplied with; what its part adds up beside that is added."""
        if part is None:
            return units.weights
        factors, scalars = part.weigh(units)
        if sorted(scalars) != sorted(part.scalars):
            raise ValueError(f"{type(part).__name__}.weigh gives {sorted(scalars)}, it declares {sorted(part.scalars)}")
        for name, values in scalars.items():
            self.scalars[name] = self.scalars.get(name, 0.0) + float(np.sum(values))
        return factors

    @classmethod
    def zeros(cls, shared: Arrays, row_names: list[str]) -> FitSums:
        """Returns sums over nobody."""
        return cls(
            {name: np.zeros(array.shape, dtype=np.float64) for name, array in shared.items()},
            {name: np.zeros(len(shared[name]), dtype=np.float64) for name in row_names},
        )
