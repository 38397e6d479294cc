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

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from fedrec_app.records import Arrays, Ask, Said
from strategies.accumulator import UpdateSum
from strategies.base import RecStrategy
from strategies.options import ServerOptimizerChoice, Weighting
from strategies.release import ClippingOptions, Releases
from strategies.update import Expected, Update

_ROUNDING = 1e-3
"""By how much sums of float32 may exceed the bound on them."""
_CLIP = "privacy/clip-norm"


class DPFedAvg(RecStrategy):
    """Clipped, unweighted, noised once, divided by what is expected."""

    name = "dp-fedavg"
    summary_line = "user-level differential privacy: clipped, noised, fixed denominator (McMahan et al., ICLR 2018)"
    user_level = True
    _releases: Releases | None = None
    _centred = 0.0

    class Options(ClippingOptions):
        """Options of DP-FedAvg."""

        server_optimizer: ServerOptimizerChoice = "sgd"

    @property
    def releases(self) -> Releases:
        """What this run releases."""
        if (privacy := self.settings.privacy) is None:
            raise ValueError("dp-fedavg without privacy settings")
        if self._releases is None or self._releases.privacy is not privacy:
            self._releases = Releases(privacy, self.options)
        return self._releases

    def problem(self, num_nodes: int | None) -> str:
        """Returns why this cannot be private, or ""."""
        settings = self.settings
        if settings.privacy is None:
            return 'it is user-level differential privacy: set privacy.unit="user" and privacy.target-epsilon'
        if settings.unit != "user":
            return 'every user trains alone: set train.unit="user"'
        if settings.fraction_train < 1 or settings.user_fraction < 1:
            return (
                "users are drawn in secret, by privacy.sampling-rate: set strategy.fraction-train=1 and "
                "train.user-fraction=1"
            )
        return self.releases.problem() or super().problem(num_nodes)

    def stops(self, server_round: int) -> str:
        """Returns that another round would exceed the target, or ""."""
        budget = self.releases.budget
        if (after := budget.exceeded_by(self.releases.event)) is None:
            return ""
        target = f"above privacy.target-epsilon = {budget.target_epsilon:g}"
        return f"round {server_round} would take epsilon to {after:.4g}, {target}"

    def ask(self) -> dict[str, bool | int | float | str]:
        """Returns the clipping bound of this round, and whether to count who is within it."""
        return {Ask.CLIP_NORM: self.clip_norm, Ask.COUNT_UNCLIPPED: self.releases.adapts}

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        """Returns the sum of the users' clipped deltas, without noise: `server_step` makes a release of it."""
        total = UpdateSum.of(updates, params)
        self._centred = total.scalar(Said.CENTRED)
        return {name: np.array(total.delta(name)) for name in params}

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        """Returns the next parameters: a step along the release."""
        return self.server_optimizer.step(params, self.releases.make(delta, self._centred, server_round))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns the next parameters and, of the round, what was released: no number of users, examples, or loss."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        if metrics is not None:
            for key in (Said.NUM_USERS, Said.NUM_EXAMPLES, Said.LOSS):
                metrics.pop(key, None)
            metrics["epsilon"] = self.releases.budget.spent()
            metrics["clip-norm"] = self.clip_norm
        return arrays, metrics

    def state(self) -> Arrays:
        """Returns the bound as well, which an adaptive one has changed."""
        return {**super().state(), _CLIP: np.array(self.clip_norm)}

    def load_state(self, state: Arrays) -> None:
        """Continues from what `state` returned."""
        self.releases.clip_norm = float(state[_CLIP])
        super().load_state({name: array for name, array in state.items() if name != _CLIP})

    @property
    def weighting(self) -> Weighting:
        """Every user counts once."""
        return "users"

    @property
    def clip_norm(self) -> float:
        """C, in the next round."""
        return self.releases.clip_norm

    def _expected(self, server_round: int) -> Expected:
        longest = self.clip_norm * (1 + _ROUNDING)
        return replace(
            super()._expected(server_round), signed=(Said.CENTRED,) if self.releases.adapts else (),
            max_norm={member.node_id: member.num_users * longest for member in self._asked},
        )  # fmt: skip
