"""Differential privacy of a run: how much noise, what was charged for what, and what may be told.

The epsilon of user-level privacy holds against whoever sees what the run releases: the parameters of every round, its
files and figures. It does not hold against the server, which sees sums before it adds the noise. That of example-level
privacy holds against a server that follows the protocol as well, where no metrics are told: nodes add the noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from logging import WARNING
from typing import Any

import numpy as np
from flwr.supercore import log

from fedrec_app.artifacts import RunFolder
from fedrec_app.config import PrivacyConfig, RunConfig
from fedrec_app.errors import ConfigError, FedrecError, StateError
from fedrec_app.privacy.accounting import default_delta, noise_for, rdp_epsilon
from fedrec_app.privacy.budget import Budget, UserLevel
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.ledger import LEDGER, SPENT_BEFORE, TEST_METRICS, Ledger
from fedrec_app.privacy.mechanism import noised_means
from fedrec_app.private_fit import example_release, released_metrics, reserved_releases
from strategies.rollcall import Roster

ADVERSARY = "released models"
"""Whom epsilon holds against: whoever sees the parameters of every round and what the run tells."""
SERVER_SEES = {
    "user": "none: it sees sums of deltas before the noise is added",
    "example": "none: nodes add the noise to what they train, and it sees sums of metrics without any",
}
Known = dict[str, Any]
"""Length and digest of a ledger."""
SAME = "the same epsilon: nodes add the noise"


def holds_against(unit: str, metrics: str) -> tuple[str, str]:
    """Returns whom epsilon holds against, and what holds against the server.

    Args:
        unit: `privacy.unit`, not "none".
        metrics: `privacy.metrics`.
    """
    if unit == "example" and metrics == "withheld":
        return f"{ADVERSARY} and a server that follows the protocol", SAME
    return ADVERSARY, SERVER_SEES[unit]


@dataclass(frozen=True)
class PrivateRun:
    """Privacy of one run.

    Attributes:
        settings: of the run.
        users: N, of the first roll-call; public.
        event: what a round releases.
        budget: of the run.
        metrics: names of the test metrics that are released with noise; none where they are exact or withheld.
        ledger: of the run.
    """

    settings: PrivacyConfig
    users: int
    event: Gaussian
    budget: Budget
    metrics: tuple[str, ...]
    ledger: Ledger

    @classmethod
    def begin(
        cls,
        config: RunConfig,
        roster: Roster,
        folder: RunFolder,
        lineage: str,
        num_rounds: int,
        known: Known | None,
        spent: Sequence[Gaussian] = (),
    ) -> PrivateRun | None:
        """Returns the privacy of a run, its ledger begun or continued; None where it asks for none.

        Args:
            config: resolved.
            roster: the nodes of the run.
            folder: of the run, for the ledger.
            lineage: of the run.
            num_rounds: to be trained.
            known: what a checkpoint knows of the ledger, of a run that goes on.
            spent: what a finished run that this one continues has released of the same users: the ledger begins with
                it, and the target holds for both.

        Raises:
            FedrecError: there is nobody to train, no noise reaches the target, or the ledger is lost or damaged.
        """
        privacy = config.privacy
        if privacy.unit == "none":
            return None
        path = folder.path / LEDGER
        if known is not None:
            ledger = Ledger.open(path)
            ledger.require(known["length"], known["digest"])
            if ledger.mended:
                log(WARNING, "%s", ledger.mended)
            _require_as_many_users(int(ledger.header["users"]), roster)
        else:
            ledger = Ledger.create(path, _header(config, roster, lineage, num_rounds, spent))
            for event in spent:
                ledger.charge(event, {"for": SPENT_BEFORE})
        said = ledger.header
        before = [charge.event for charge in ledger.charges if charge.what.get("for") == SPENT_BEFORE]
        event = Gaussian(said["noise-multiplier"], said["sampling-rate"], said["steps-a-round"])
        reserved = reserved_releases(config)
        planned = [replace(event, count=num_rounds * event.count), *reserved, *before]
        budget = Budget(ledger, said["delta"], planned, privacy.target_epsilon, reserved)
        told = released_metrics(config) if privacy.metrics == "noised" else ()
        return cls(privacy, said["users"], event, budget, told, ledger)

    def known(self) -> Known:
        """Returns what a checkpoint must know of the ledger."""
        return {"length": len(self.ledger), "digest": self.ledger.digest}

    def user_level(self) -> UserLevel | None:
        """Returns what a strategy needs to know, None where it has no part in it."""
        if self.settings.unit != "user":
            return None
        return UserLevel(
            float(self.settings.clip_norm),
            self.event.noise_multiplier,
            self.event.sampling_rate,
            self.users,
            self.budget,
        )

    def before_round(self, server_round: int) -> None:
        """Charges a round whose noise the nodes add; where the server adds it, the strategy charges."""
        if self.settings.unit == "example":
            self.budget.charge(self.event, {"for": "round", "round": server_round})

    def rounds_allowed(self, num_rounds: int) -> int:
        """Returns how many further rounds the target leaves, of these.

        Raises:
            ConfigError: not even the first one of the run.
        """
        allowed = self.budget.times(self.event, num_rounds)
        if allowed == 0 and all(charge.what.get("for") == SPENT_BEFORE for charge in self.ledger.charges):
            with_before = " with what the run before has cost" if self.ledger.charges else ""
            raise ConfigError(
                f"one round costs more than privacy.target-epsilon = {self.settings.target_epsilon:g} at noise "
                f"multiplier {self.event.noise_multiplier:g}{with_before}: raise either, or leave "
                "privacy.noise-multiplier at 0"
            )
        return allowed

    def test_metrics(self, exact: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns what is told of the test part; noise is charged before it is drawn. Nothing, where a run that was
        killed has spent what was reserved for it.

        Args:
            exact: metrics over all users; None where nobody was asked.
        """
        if self.settings.metrics == "exact" or exact is None:
            return dict(exact or {})
        event = self.budget.reserved[0]
        if self.budget.exceeded_by(event, of_reserve=True) is not None:
            log(WARNING, "test metrics are withheld: the rounds that were taken again have spent their part")
            return {}
        self.budget.charge(event, {"for": TEST_METRICS, "names": list(self.metrics)}, of_reserve=True)
        judged = int(exact["num_users"])
        means = noised_means(
            np.array([float(exact[name]) * judged for name in self.metrics]), judged, event.noise_multiplier
        )
        # Of the noise alone: what another draw of users would change is not known without looking at them.
        width = 1.96 * self.noise_std()
        told: dict[str, Any] = {}
        for name, value in zip(self.metrics, means, strict=True):
            told[name] = float(value)
            told[f"ci/{name}"] = [max(float(value) - width, 0.0), min(float(value) + width, 1.0)]
        return told

    def require_charged(self, before: int, server_round: int) -> None:
        """Raises StateError where a round changed the parameters and nothing was charged for it.

        Args:
            before: charges before the round.
            server_round: the round.
        """
        if len(self.ledger.events) <= before:
            raise StateError(
                f"round {server_round} changed the parameters and charged nothing: a strategy with user_level=True "
                "must charge and noise each release, as dp-fedavg does"
            )

    def failed(self) -> dict[str, Any]:
        """Returns what a run has cost that did not end; its ledger is closed."""
        self.ledger.close()
        with suppress(StateError), Ledger.open(self.ledger.path) as written:
            self.budget.book = written  # a charge that was interrupted may be on the disk alone
        return {"unit": self.settings.unit, "epsilon": self.budget.spent(), "delta": self.budget.delta}

    def noise_std(self) -> float:
        """Returns about the standard deviation of the noise on each test metric; 0 where they carry none."""
        if not self.metrics:
            return 0.0
        return self.settings.metrics_noise_multiplier * (len(self.metrics) + 1) ** 0.5 / self.users

    def summary(self, clip_norm: float, test: Mapping[str, Any], example: str, start: str) -> dict[str, Any]:
        """Returns the part of summary.json that speaks of privacy.

        Args:
            clip_norm: C of the last round.
            test: what was told of the test part.
            example: what an example is.
            start: what parameters start from that no epsilon covers, or "".
        """
        events = self.budget.book.events
        user = self.settings.unit == "user"
        adversary, server = holds_against(self.settings.unit, self.settings.metrics)
        found: dict[str, Any] = {
            "unit": self.settings.unit,
            "epsilon": self.budget.spent(),
            "delta": self.budget.delta,
            "protects": "one user, with all he did" if user else example,
            "adversary": adversary,
            "server": server,
            "epsilon_rdp": rdp_epsilon(events, self.budget.delta),
            "noise_multiplier": self.event.noise_multiplier,
            "sampling_rate": self.event.sampling_rate,
            "clip_norm": clip_norm,
            "num_users": self.users,
            "released_round": "last",
            "metrics": self.settings.metrics,
            "withheld": self._withheld(bool(test)),
        }
        if start:
            found["start"] = f"{start}: what it has learnt of the same users, no epsilon here covers"
        if self.settings.target_epsilon:
            found["target_epsilon"] = self.settings.target_epsilon
        if self.metrics and test:
            found["metrics_noise_std"] = self.noise_std()
        return found

    def _withheld(self, told: bool) -> list[str]:
        always = [
            "who took part and how many", "training loss", "training examples", "counts of items",
            "quarantined rows", "counts by item in model.safetensors", "seconds",
        ]  # fmt: skip
        if self.settings.metrics == "exact":
            return always
        return [*always, "validation metrics", "all other test metrics" if told else "test metrics"]


def _require_as_many_users(then: int, roster: Roster) -> None:
    """Raises StateError where a run that goes on finds other data than it began with."""
    now = sum(member.num_users for member in roster.partitions())
    if now > then:
        raise StateError(
            f"the run began with {then} users and the nodes have {now} now: noise, delta and figures are of the "
            "former; start a new run for other data"
        )
    if now < then:
        log(WARNING, "the run began with %s users and the nodes have %s now", then, now)


def terms(config: RunConfig, users: int, num_rounds: int, spent: Sequence[Gaussian] = ()) -> tuple[float, Gaussian]:
    """Returns delta, and what each round of a run releases.

    Args:
        config: resolved, with privacy.
        users: N.
        num_rounds: to be trained.
        spent: what was released before, which the target holds for too.

    Raises:
        ConfigError: no noise reaches the target, or there are too few users.
    """
    privacy = config.privacy
    delta = privacy.delta or default_delta(users)
    if privacy.unit == "example":
        return delta, example_release(config)
    noise = privacy.noise_multiplier or noise_for(
        privacy.target_epsilon, delta, privacy.sampling_rate, num_rounds, [*reserved_releases(config), *spent]
    )
    return delta, Gaussian(noise, privacy.sampling_rate)


def _header(
    config: RunConfig, roster: Roster, lineage: str, num_rounds: int, spent: Sequence[Gaussian] = ()
) -> dict[str, Any]:
    """Returns what a ledger says at its beginning, and what a run that goes on keeps to."""
    privacy = config.privacy
    users = sum(member.num_users for member in roster.partitions())
    if users < 2:
        raise FedrecError(f"privacy is asked for, and {users} users have something to train on: 2 at least are needed")
    delta, release = terms(config, users, num_rounds, spent)
    if privacy.unit == "user" and delta >= 1 / users:
        raise ConfigError(
            f"privacy.delta is {delta:g}: with {users} users it must be below 1 / {users}, or the data of one of them "
            "could be released as it is"
        )
    return {
        "lineage": lineage, "unit": privacy.unit, "users": users, "delta": delta,
        "noise-multiplier": release.noise_multiplier, "sampling-rate": release.sampling_rate,
        "steps-a-round": release.count, "target-epsilon": privacy.target_epsilon,
    }  # fmt: skip
