"""What a run claims of its privacy: what each round releases, how often, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedrec_app.artifacts import RunFolder
from fedrec_app.config import RunConfig
from fedrec_app.errors import StateError
from fedrec_app.privacy.accounting import epsilon
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.gaussian import gaussian_epsilon
from fedrec_app.privacy.ledger import LEDGER, Ledger
from fedrec_app.private_fit import reserved_releases
from fedrec_app.private_run import terms


@dataclass(frozen=True)
class Claim:
    """Privacy of a run, of users or of examples, as it reports it.

    Attributes:
        clip_norm: C.
        users: N, of the denominator under user-level privacy.
        delta: of every epsilon.
        rounds: what all rounds release together; its count is that of releases: of rounds, or of all steps of a node.
        others: what else is charged.
    """

    clip_norm: float
    users: int
    delta: float
    rounds: Gaussian
    others: Sequence[Gaussian] = ()

    def epsilon(self) -> float:
        """Returns epsilon of the whole run, against whoever sees what it releases."""
        return epsilon([self.rounds, *self.others], self.delta)

    def epsilon_of_one(self) -> float:
        """Returns epsilon of one release for one who is known to take part in it: without amplification."""
        noise = self.rounds.noise_multiplier
        return gaussian_epsilon(1 / noise, self.delta) if noise else float("inf")

    def epsilon_with(self, mu: float, sampling_rate: float) -> float:
        """Returns epsilon of the run if each of its releases were a mu-GDP one over a Poisson sample.

        Args:
            mu: at least 0.
            sampling_rate: above 0, at most 1.
        """
        if mu <= 0:
            return 0.0
        return epsilon([replace(self.rounds, noise_multiplier=1 / mu, sampling_rate=sampling_rate)], self.delta)

    @classmethod
    def of_settings(cls, config: RunConfig, users: int) -> Claim:
        """Returns the claim of a run with these settings.

        Args:
            config: resolved, with privacy.
            users: who have something to train on.

        Raises:
            ConfigError: no noise reaches the target, or there are too few users.
        """
        num_rounds = config.num_server_rounds
        delta, one = terms(config, users, num_rounds)
        rounds = replace(one, count=one.count * num_rounds)
        return cls(float(config.privacy.clip_norm), users, delta, rounds, reserved_releases(config))

    @classmethod
    def of_run(cls, config: RunConfig, folder: RunFolder) -> Claim:
        """Returns the claim of a run that took place: what its ledger was charged with.

        Args:
            config: of the run, with privacy.
            folder: of the run.

        Raises:
            StateError: the ledger is lost or damaged, or says nothing of a round.
        """
        with Ledger.open(folder.path / LEDGER) as ledger:
            header, events = dict(ledger.header), ledger.events
        try:
            users, delta = int(header["users"]), float(header["delta"])
            one = Gaussian(float(header["noise-multiplier"]), float(header["sampling-rate"]))
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{folder.path / LEDGER} does not say what was claimed: {error!r}") from None
        rounds = [event for event in events if replace(event, count=1) == one]
        if not rounds:
            raise StateError(f"{folder.path / LEDGER} has no charge for a round: there is nothing to audit")
        others = [event for event in events if replace(event, count=1) != one]
        count = sum(event.count for event in rounds)
        return cls(float(config.privacy.clip_norm), users, delta, replace(one, count=count), others)
