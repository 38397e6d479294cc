"""The audit of a run: its releases are told apart, its updates attacked, and what that proves is held against what is
claimed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fedrec_app.audits.canary import (
    CANARY_NORM,
    CONFIDENCE,
    CanaryAudit,
    audit_releases,
    sampling_rate_at_least,
    small_shapes,
    worlds_of_users,
)
from fedrec_app.audits.claim import Claim
from fedrec_app.audits.example_canary import drawn_examples, worlds_of_examples
from fedrec_app.audits.item_recovery import POPULARITY, Recovery, attack_updates
from fedrec_app.audits.releases import Releases, audited_strategy
from fedrec_app.audits.updates import NodeUpdate, UpdateSource
from fedrec_app.config import RunConfig
from fedrec_app.errors import ConfigError
from fedrec_app.finished import FinishedRun
from fedrec_app.privacy.gaussian import gaussian_epsilon
from fedrec_app.private_run import holds_against

COHORTS = (1, 5, 20, 100)
"""Users of the nodes whose updates are attacked."""
RELEASED = "released"
"""Stands for the sum over all users, as it is released."""
_PROBED = 20
"""Users whose clipped updates are measured."""
_ROUNDING = 1e-4

Watch = Callable[[str, int, int], None]
"""Called with (what is done, how much of it, of how much)."""


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        unit: `privacy.unit`.
        claim: of the run, None without privacy.
        canary: of its releases, None without privacy.
        sampling_rate: what the rate of nodes is not below; None without privacy.
        longest: norm of the longest update of a user alone whose delta was longer than the bound, over the bound; None
            without user-level privacy, or where no delta is.
        recovery: how well items are found, by the number of users of a node, and in what is released.
        metrics: `privacy.metrics`.
    """

    unit: str
    claim: Claim | None = None
    canary: CanaryAudit | None = None
    sampling_rate: float | None = None
    longest: float | None = None
    recovery: dict[str, Recovery] = field(default_factory=dict)
    metrics: str = "withheld"

    @property
    def adversary(self) -> str:
        """Whom the claimed epsilon holds against."""
        return "nobody" if self.unit == "none" else holds_against(self.unit, self.metrics)[0]

    @property
    def a_unit(self) -> str:
        """What is protected, with its article."""
        return {"user": "a user", "example": "an example"}.get(self.unit, "nothing")

    def release_bound(self) -> float | None:
        """Returns the lower bound on epsilon of one release for who takes part in it, None where none is claimed."""
        if self.claim is None or self.canary is None:
            return None
        return gaussian_epsilon(self.canary.told_apart.mu, self.claim.delta)

    def run_bound(self) -> float | None:
        """Returns the lower bound on epsilon of all releases together, None where nothing is claimed.

        If each is no more private than one was shown to be, and draws at the claimed rate, or a higher one where that
        was shown.
        """
        if self.claim is None or self.canary is None:
            return None
        rate = max(self.claim.rounds.sampling_rate, self.sampling_rate or 0.0)
        return self.claim.epsilon_with(self.canary.told_apart.mu, rate)

    def problems(self) -> list[str]:
        """Returns what was found that contradicts the claim, a line each; none is what an honest run gives."""
        if self.claim is None or self.canary is None:
            return []
        found, claim = [], self.claim
        pairs = (
            ("one release", self.release_bound(), claim.epsilon_of_one()),
            ("the run", self.run_bound(), claim.epsilon()),
        )
        for what, bound, claimed in pairs:
            if bound is not None and bound > claimed:
                found.append(f"epsilon of {what} is at least {bound:.3g}, and {claimed:.3g} is claimed")
        noise, (_, most) = claim.rounds.noise_multiplier, self.canary.noise_multiplier
        if most < noise:
            found.append(f"noise of releases is at most {most:.4g} C, and {noise:.4g} C is claimed")
        rate = claim.rounds.sampling_rate
        if self.sampling_rate is not None and self.sampling_rate > rate:
            found.append(
                f"{self.unit}s take part at a rate of at least {self.sampling_rate:.4g}, and {rate:.4g} is claimed"
            )
        if self.longest is not None and not self.longest <= 1 + _ROUNDING:
            found.append(f"a user's update leaves his node {self.longest:.4g} times as long as the bound C")
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values; what is infinite or unknown is None."""
        claim, canary = self.claim, self.canary
        found: dict[str, Any] = {
            "privacy_unit": self.unit,
            "claimed_epsilon": None if claim is None else _plain(claim.epsilon()),
            "empirical_lower_bound": self.run_bound(),
            "item_recovery_f1": self.recovery["1"].best(),
            "popularity_f1": self.recovery["1"].f1().get(POPULARITY),
            "item_recovery": {
                cohort: {"users": one.users, "best": one.best(), **one.f1()} for cohort, one in self.recovery.items()
            },
            "problems": self.problems(),
        }
        if claim is not None and canary is not None:
            apart = canary.told_apart
            found |= {
                "adversary": self.adversary,
                "delta": claim.delta,
                "num_releases": claim.rounds.count,
                "sampling_rate": claim.rounds.sampling_rate,
                "sampling_rate_at_least": self.sampling_rate,
                "noise_multiplier": claim.rounds.noise_multiplier,
                "noise_multiplier_measured": list(canary.noise_multiplier),
                "longest_update": self.longest,
                "release": {
                    "claimed_epsilon": _plain(claim.epsilon_of_one()), "empirical_lower_bound": self.release_bound(),
                    "releases": canary.releases, "canary_norm": CANARY_NORM, "confidence": CONFIDENCE,
                    "misses": apart.misses, "false_alarms": apart.false_alarms, "trials": apart.trials,
                },
            }  # fmt: skip
        return found


def audit(
    config: RunConfig,
    finished: FinishedRun | None = None,
    releases: int = 2000,
    users: int = 200,
    watch: Watch = lambda what, done, total: None,
) -> Audit:
    """Returns what an audit of a run finds.

    Args:
        config: resolved.
        finished: a run that took place, with this configuration; None: one that is about to start.
        releases: of the canary audit; none of them is written down or kept.
        users: whose items are looked for, at most.
        watch: see `Watch`.

    Raises:
        FedrecError: a setting or the data is wrong.
    """
    if releases < 8 or releases % 2:
        raise ConfigError(f"releases is {releases}: an even number of at least 8 is needed")
    if users < 1:
        raise ConfigError(f"users is {users}: at least 1 is needed")
    source = UpdateSource(config, finished)
    unit = config.privacy.unit
    if unit == "none":
        return Audit(unit, recovery=_recovery(source, None, users, watch))
    claim = Claim.of_settings(config, source.users) if finished is None else Claim.of_run(config, finished.folder)

    def count(done: int, total: int) -> None:
        watch("releases", done, total)

    rate = claim.rounds.sampling_rate
    if unit == "example":
        canary = audit_releases(worlds_of_examples(claim), releases, count)
        drawn = sampling_rate_at_least(rate, drawn_examples)
        return Audit(unit, claim, canary, drawn, None, _recovery(source, None, users, watch), config.privacy.metrics)
    strategy = audited_strategy(config, claim, source.model)
    shapes = {name: array.shape for name, array in source.shared.items()}
    canary = audit_releases(worlds_of_users(Releases(strategy, claim, small_shapes(shapes))), releases, count)
    recovery = _recovery(source, Releases(strategy, claim, shapes), users, watch)
    return Audit(unit, claim, canary, sampling_rate_at_least(rate), _longest(source), recovery, config.privacy.metrics)


def _longest(source: UpdateSource) -> float | None:
    """Returns the norm of the longest update of a user alone over the bound that he was asked to keep, which is a third
    of what he would send without one."""
    unbounded = [update.norm for update in source.nodes(1, _PROBED, clip_norm=1e9)]
    moved = [norm for norm in unbounded if norm > 0]
    if not moved:
        return None
    bound = min(moved) / CANARY_NORM
    return max(update.norm for update in source.nodes(1, _PROBED, clip_norm=bound)) / bound


def _recovery(source: UpdateSource, releases: Releases | None, users: int, watch: Watch) -> dict[str, Recovery]:
    """Returns how well items are found in updates of nodes, and in the release of everybody's.

    Args:
        source: of updates.
        releases: of the run's strategy; None: sums are released as they are.
        users: to be attacked, at most.
        watch: see `Watch`.
    """
    tables = [name for name in source.model.row_names() if name in source.shared]
    popularity = source.popularity()
    found = {}
    for cohort in [size for size in COHORTS if size <= source.users]:
        what = "updates of one user" if cohort == 1 else f"sums over {cohort} users"
        updates = source.nodes(cohort, math.ceil(users / cohort))
        found[str(cohort)] = attack_updates(
            updates, tables, popularity, users, lambda done, total, what=what: watch(what, done, total)
        )
    found[RELEASED] = attack_updates(
        _released(source, releases), tables, popularity, users, lambda done, total: watch(RELEASED, done, total)
    )
    return found


def _released(source: UpdateSource, releases: Releases | None) -> Iterator[NodeUpdate]:
    """Yields what is released of everybody, drawn at the run's own rate, and once."""
    rate = 1.0 if releases is None else releases.claim.rounds.sampling_rate
    for update in source.nodes(source.users, 1, sampling_rate=rate):
        sums = update.deltas if releases is None else releases.of(releases.reply(update.deltas, len(update.items)))
        yield NodeUpdate(sums, update.items)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
