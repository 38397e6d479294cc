"""One noisy release of a sum of clipped deltas: charged, noised, divided by what is expected."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fedrec_app.privacy.budget import Budget, UserLevel
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.mechanism import AdaptiveClipping, add_noise, add_noise_and_adapt
from fedrec_app.records import Arrays
from strategies.options import StrategyOptions

SHARE_OF_COUNT_NOISE = 1 / 20
"""Standard deviation of the noise on the number of unclipped users, over the expected number of participants, where the
options do not say (section 3 of Andrew et al.)."""


class ClippingOptions(StrategyOptions):
    """How the bound on users' deltas comes about; noise and sampling rate are settings of the run (`privacy.*`)."""

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


class Releases:
    """The releases of a run, one a round.

    Args:
        privacy: terms and budget of the run.
        options: see `ClippingOptions`.

    Attributes:
        clip_norm: C of the next round.
        adapts: whether it follows a quantile of the users' norms.
        event: what each release is charged as.
        privacy: see above.
    """

    def __init__(self, privacy: UserLevel, options: Any) -> None:
        self.clip_norm = privacy.clip_norm
        self.adapts = options.clipping == "adaptive"
        self.event = Gaussian(privacy.noise_multiplier, privacy.sampling_rate)
        self.privacy, self._options = privacy, options

    @property
    def budget(self) -> Budget:
        """What releases are charged to."""
        if self.privacy.budget is None:
            raise ValueError("nothing is released without a budget")
        return self.privacy.budget

    def problem(self) -> str:
        """Returns why the bound cannot adapt so, or ""."""
        o, noise = self._options, self.privacy.noise_multiplier
        if self.adapts and o.smallest_clip >= o.largest_clip:
            return f"smallest_clip {o.smallest_clip:g} is not below largest_clip {o.largest_clip:g}"
        if self.adapts and self.privacy.num_users and noise >= 2 * self._count_std:
            return (
                f"its count of users within the bound has noise {self._count_std:g}, which must be above half the "
                f"noise multiplier {noise:g}: set count_std, or clipping to fixed"
            )
        return ""

    def make(self, sums: Arrays, centred_unclipped: float, server_round: int) -> Arrays:
        """Returns the released mean delta; the charge is on the disk before the noise is drawn.

        Args:
            sums: of the users' clipped deltas.
            centred_unclipped: see `add_noise_and_adapt`.
            server_round: for the ledger.
        """
        noise, expected, o = self.event.noise_multiplier, self.privacy.expected, self._options
        self.budget.charge(self.event, {"for": "round", "round": server_round, "clip-norm": self.clip_norm})
        if self.adapts:
            how = AdaptiveClipping(
                o.target_quantile, o.clip_learning_rate, self._count_std, o.smallest_clip, o.largest_clip
            )
            noised, self.clip_norm = add_noise_and_adapt(sums, centred_unclipped, expected, noise, self.clip_norm, how)
        else:
            noised = add_noise(sums, noise, self.clip_norm)
        return {name: array / expected for name, array in noised.items()}

    @property
    def _count_std(self) -> float:
        return self._options.count_std or SHARE_OF_COUNT_NOISE * self.privacy.expected
