"""What a run with user-level privacy will cost and how loud its noise is, before anything is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from fedrec_app.errors import ConfigError
from fedrec_app.privacy.accounting import epsilon, noise_for
from fedrec_app.privacy.events import Gaussian, check_delta

EPSILONS = (1.0, 3.0, 8.0, 20.0)
"""What a plan shows the noise for, beside what it is asked for."""
QUIET = 0.5
"""Noise on the mean update, in units of the clipping bound, that a plan recommends to come down to."""
_LARGE = 10.0
"""Epsilon above which little is promised: the odds of anything may change by a factor of 20,000."""


@dataclass(frozen=True)
class Design:
    """A run of DP-FedAvg as the arithmetic of privacy sees it.

    Attributes:
        users: N.
        sampling_rate: q, with which each user takes part in a round.
        rounds: T.
        delta: of the guarantee.
        noise_multiplier: z, standard deviation of the noise on the sum of updates over the clipping bound.
        clip_norm: C, bound on the L2 norm of a user's update.
        parameters: P, how many shared numbers the model has; 0: not known.
        others: what else is released and charged, such as test metrics.

    Raises:
        ConfigError: a number that has no meaning here.
    """

    users: int
    sampling_rate: float
    rounds: int
    delta: float
    noise_multiplier: float
    clip_norm: float = 1.0
    parameters: int = 0
    others: tuple[Gaussian, ...] = ()

    def __post_init__(self):
        Gaussian(self.noise_multiplier, self.sampling_rate)
        check_delta(self.delta)
        for name, value, least in (
            ("users", self.users, 2),
            ("rounds", self.rounds, 1),
            ("parameters", self.parameters, 0),
        ):
            if value < least:
                raise ConfigError(f"{name} is {value}, allowed: at least {least}")
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ConfigError(f"clip norm is {self.clip_norm}, allowed: a finite number above 0")

    @property
    def events(self) -> list[Gaussian]:
        """Everything that is released."""
        return [Gaussian(self.noise_multiplier, self.sampling_rate, self.rounds), *self.others]

    @cached_property
    def epsilon(self) -> float:
        """What the whole run costs."""
        return epsilon(self.events, self.delta)

    @property
    def participants(self) -> float:
        """q N, users in a round, on average; what the noisy sum is divided by."""
        return self.sampling_rate * self.users

    @property
    def noise_std(self) -> float:
        """z C, standard deviation of the noise on each number of the sum."""
        return self.noise_multiplier * self.clip_norm

    @property
    def noise_of_mean(self) -> float:
        """z C / (q N), standard deviation of the noise on each number of the mean."""
        return self.noise_std / self.participants

    @property
    def noise_to_clip(self) -> float | None:
        """z sqrt(P) / (q N), L2 norm of the noise on the mean update in units of C; None where P is not known.

        The mean update itself has a norm of 1 at the most, and of less the more users differ.
        """
        return self.noise_multiplier * math.sqrt(self.parameters) / self.participants if self.parameters else None

    def at_epsilon(self, target: float) -> Design:
        """Returns the same run with the least noise that keeps to an epsilon.

        Raises:
            ConfigError: no noise is enough.
        """
        noise = noise_for(target, self.delta, self.sampling_rate, self.rounds, self.others)
        return replace(self, noise_multiplier=noise)


def neighbours(design: Design) -> list[tuple[str, Design]]:
    """Returns what a few changes would make of a run, each with what is changed: rounds and sampling rate with the
    same noise, then other epsilons."""
    found = [("half the rounds", replace(design, rounds=design.rounds // 2))] if design.rounds > 1 else []
    found.append(("double the rounds", replace(design, rounds=2 * design.rounds)))
    found.append(("half the rate", replace(design, sampling_rate=design.sampling_rate / 2)))
    if design.sampling_rate < 1:
        doubled = min(1.0, 2 * design.sampling_rate)
        text = "double the rate" if doubled == 2 * design.sampling_rate else "everybody"
        found.append((text, replace(design, sampling_rate=doubled)))
    floor = epsilon(design.others, design.delta)
    for target in EPSILONS:
        # Solved already where it is what was asked for.
        if target > floor and not 0.98 * target < design.epsilon <= target:
            found.append((f"epsilon {target:g}", design.at_epsilon(target)))
    return found


def advice(design: Design) -> list[str]:
    """Returns what a plain reader should know of this run and may do about it, a sentence or two each."""
    lines = []
    if design.delta >= 1 / design.users:
        lines.append(
            f"Delta {design.delta:.2g} is not below 1/users: it would allow giving a user away outright. Leave it out, "
            f"or choose at most {0.1 / design.users:.1g}."
        )
    if design.epsilon == math.inf:
        return [*lines, "Without noise nothing is promised."]
    if design.epsilon > _LARGE:
        lines.append(
            f"Epsilon {design.epsilon:.3g} promises little: more noise, fewer rounds or more users would help."
        )
    if design.noise_to_clip is None:
        lines.append("How loud the noise is depends on the model: give its settings with -c, or --parameters.")
        return lines
    return [*lines, *_about_noise(design, design.noise_to_clip)]


def _about_noise(design: Design, loudness: float) -> list[str]:
    relation = f"The noise on the mean update is {loudness:.2g} times the clipping bound"
    if loudness <= QUIET:
        return [f"{relation}, which leaves room for what users agree on."]
    users, parameters = math.ceil(design.users * loudness / QUIET), int(design.parameters * (QUIET / loudness) ** 2)
    lines = [
        f"{relation}; the update itself is at most 1 long. To come down to {QUIET} at the same noise multiplier: "
        f"{users:,} users instead of {design.users:,}, or {parameters:,} shared parameters instead of "
        f"{design.parameters:,} (a smaller model.embedding-dim, train.adapter-rank, fewer items)."
    ]
    if design.sampling_rate < 1:
        # Without sampling the noise for an epsilon is a closed form.
        everybody = replace(design, sampling_rate=1.0).at_epsilon(design.epsilon)
        ratio = everybody.noise_to_clip or 0.0
        if ratio < 0.95 * loudness:
            lines.append(
                f"A larger sampling rate helps: with everybody in each round, and noise multiplier "
                f"{everybody.noise_multiplier:g} for the same epsilon, it is {ratio:.2g} times."
            )
    fewer = replace(design, rounds=max(1, design.rounds // 4))
    if fewer.rounds < design.rounds:
        lines.append(f"Fewer rounds need less noise: about half for {fewer.rounds} rounds.")
    return lines
