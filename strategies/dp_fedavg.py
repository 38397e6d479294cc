"""DP-FedAvg: federated averaging with user-level differential privacy.

Learning Differentially Private Recurrent Language Models, McMahan, Ramage, Talwar & Zhang, ICLR 2018,
https://arxiv.org/abs/1710.06963 (Algorithm 1: Poisson sampling of users, flat clipping, the estimator with the fixed
denominator q N). Nodes clip each user's delta to C and send the unweighted sum S; the server takes

    delta = (S + Normal(0, (z C)^2)) / (q N)

and then any step it likes: what follows the noise costs nothing. "adaptive" clipping lets C follow a quantile of the
users' norms: Differentially Private Learning with Adaptive Clipping, Andrew et al., NeurIPS 2021,
https://arxiv.org/abs/1905.03871 (Algorithm 1). Each release is charged to the ledger before it is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from pydantic import Field

from fedrec_app.privacy.budget import Budget, UserLevel
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.mechanism import AdaptiveClipping, add_noise, add_noise_and_adapt
from fedrec_app.records import Arrays, Ask, Said
from strategies.accumulator import UpdateSum
from strategies.base import RecStrategy
from strategies.options import ServerOptimizerChoice, StrategyOptions, Weighting
from strategies.update import Expected, Update

SHARE_OF_COUNT_NOISE = 1 / 20
"""Standard deviation of the noise on the number of unclipped users, over the expected number of participants, where the
options do not say (section 3 of Andrew et al.)."""
_ROUNDING = 1e-3
"""By how much sums of float32 may exceed the bound on them."""


class DPFedAvg(RecStrategy):
    """Clipped, unweighted, noised once, divided by what is expected."""

    name = "dp-fedavg"
    summary_line = "user-level differential privacy: clipped, noised, fixed denominator (McMahan et al., ICLR 2018)"
    user_level = True

    class Options(StrategyOptions):
        """Options of DP-FedAvg; bound, noise and sampling rate are settings of the run (`privacy.*`)."""

        server_optimizer: ServerOptimizerChoice = "sgd"
        clipping: Literal["fixed", "adaptive"] = Field(
            default="fixed", description="fixed: the bound is privacy.clip-norm; adaptive: it follows a quantile"
        )
        target_quantile: float = Field(
            default=0.5, ge=0, le=1, description="gamma, share of users to be within the bound (adaptive)"
        )
        clip_learning_rate: float = Field(default=0.2, gt=0, description="eta_C, of the bound's updates (adaptive)")
        count_std: float = Field(
            default=0.0, ge=0, description="sigma_b, noise on the number within the bound; 0: a 20th of q N (adaptive)"
        )
        smallest_clip: float = Field(default=1e-6, gt=0, description="what the bound never falls below (adaptive)")
        largest_clip: float = Field(default=1e6, gt=0, description="what the bound never exceeds (adaptive)")

    def problem(self, num_nodes: int | None) -> str:
        """Returns why this cannot be private, or ""."""
        settings, privacy = self.settings, self.settings.privacy
        if privacy is None:
            return 'it is user-level differential privacy: set privacy.unit="user" and privacy.target-epsilon'
        if settings.unit != "user":
            return 'every user trains alone: set train.unit="user"'
        if settings.fraction_train < 1 or settings.user_fraction < 1:
            return (
                "users are drawn in secret, by privacy.sampling-rate: set strategy.fraction-train=1 and "
                "train.user-fraction=1"
            )
        if self._adapts and self.options.smallest_clip >= self.options.largest_clip:
            o = self.options
            return f"smallest_clip {o.smallest_clip:g} is not below largest_clip {o.largest_clip:g}"
        if self._adapts and privacy.num_users and privacy.noise_multiplier >= 2 * self._count_std:
            return (
                f"its count of users within the bound has noise {self._count_std:g}, which must be above half the "
                f"noise multiplier {privacy.noise_multiplier:g}: set count_std, or clipping to fixed"
            )
        return super().problem(num_nodes)

    def stops(self, server_round: int) -> str:
        """Returns that another round would exceed the target, or ""."""
        after = self._budget.exceeded_by(self._event)
        if after is None:
            return ""
        target = self._budget.target_epsilon
        return f"round {server_round} would take epsilon to {after:.4g}, above privacy.target-epsilon = {target:g}"

    def ask(self) -> dict[str, bool | int | float | str]:
        """Returns the clipping bound of this round, and whether to count who is within it."""
        return {Ask.CLIP_NORM: self.clip_norm, Ask.COUNT_UNCLIPPED: self._adapts}

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        """Returns the sum of the users' clipped deltas, without noise: `server_step` makes a release of it."""
        total = UpdateSum.of(updates, params)
        self._centred = total.scalar(Said.CENTRED)
        return {name: np.array(total.delta(name)) for name in params}

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        """Returns the next parameters: the release is charged, then noised, divided by q N, and stepped along."""
        self._budget.charge(self._event, {"for": "round", "round": server_round, "clip-norm": self.clip_norm})
        privacy, noise = self._privacy, self._event.noise_multiplier
        if self._adapts:
            noised, self.clip_norm = add_noise_and_adapt(
                delta, self._centred, privacy.expected, noise, self.clip_norm, self._adaptive
            )
        else:
            noised = add_noise(delta, noise, self.clip_norm)
        mean = {name: array / privacy.expected for name, array in noised.items()}
        return self.server_optimizer.step(params, mean)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns the next parameters and, of the round, what was released: no number of users, examples, or loss."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        if metrics is not None:
            for key in (Said.NUM_USERS, Said.NUM_EXAMPLES, Said.LOSS):
                metrics.pop(key, None)
            metrics["epsilon"] = self._budget.spent()
            metrics["clip-norm"] = self.clip_norm
        return arrays, metrics

    def state(self) -> Arrays:
        """Returns the bound as well, which an adaptive one has changed."""
        return {**super().state(), _CLIP: np.array(self.clip_norm)}

    def load_state(self, state: Arrays) -> None:
        """Continues from what `state` returned."""
        self.clip_norm = float(state[_CLIP])
        super().load_state({name: array for name, array in state.items() if name != _CLIP})

    @property
    def weighting(self) -> Weighting:
        """Every user counts once."""
        return "users"

    @property
    def clip_norm(self) -> float:
        """C, in the next round."""
        return self._privacy.clip_norm if self._clip_norm is None else self._clip_norm

    @clip_norm.setter
    def clip_norm(self, value: float) -> None:
        self._clip_norm = value

    _clip_norm: float | None = None
    _centred = 0.0

    @property
    def _privacy(self) -> UserLevel:
        if self.settings.privacy is None:
            raise ValueError("dp-fedavg without privacy settings")
        return self.settings.privacy

    @property
    def _budget(self) -> Budget:
        if (budget := self._privacy.budget) is None:
            raise ValueError("dp-fedavg releases nothing without a budget")
        return budget

    @property
    def _event(self) -> Gaussian:
        return Gaussian(self._privacy.noise_multiplier, self._privacy.sampling_rate)

    @property
    def _adapts(self) -> bool:
        return self.options.clipping == "adaptive"

    @property
    def _count_std(self) -> float:
        return self.options.count_std or SHARE_OF_COUNT_NOISE * self._privacy.expected

    @property
    def _adaptive(self) -> AdaptiveClipping:
        o = self.options
        return AdaptiveClipping(
            o.target_quantile, o.clip_learning_rate, self._count_std, o.smallest_clip, o.largest_clip
        )

    def _expected(self, server_round: int) -> Expected:
        longest = self.clip_norm * (1 + _ROUNDING)
        return replace(
            super()._expected(server_round), signed=(Said.CENTRED,) if self._adapts else (),
            max_norm={member.node_id: member.num_users * longest for member in self._asked},
        )  # fmt: skip


_CLIP = "privacy/clip-norm"
