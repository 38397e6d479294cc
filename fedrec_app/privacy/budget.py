"""What a run may spend of its users' privacy, and what it has spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fedrec_app.errors import StateError
from fedrec_app.privacy.accounting import Curve, epsilon
from fedrec_app.privacy.events import Gaussian


class Book(Protocol):
    """Where charges are written down: a `Ledger`, or `Unwritten`."""

    @property
    def events(self) -> Sequence[Gaussian]:
        """What was charged, in order."""
        ...

    def charge(self, event: Gaussian, what: Mapping[str, Any]) -> None:
        """Writes a charge down, on the disk before it returns."""
        ...


class Unwritten:
    """Charges that nobody needs after this process: of tests and audits."""

    def __init__(self) -> None:
        self.events: list[Gaussian] = []

    def charge(self, event: Gaussian, what: Mapping[str, Any]) -> None:
        """Remembers a charge."""
        self.events.append(event)


class Budget:
    """Charges releases before they happen, and knows what they cost together.

    Args:
        book: what was charged so far, and where the next charge is written.
        delta: of every epsilon here.
        planned: what a whole run releases, with its counts; what it costs so far is known in about a millisecond then.
        target_epsilon: what must not be exceeded; 0: no bound.
        reserved: releases of `planned` that will be charged later and must fit as well.
    """

    def __init__(
        self,
        book: Book,
        delta: float,
        planned: Sequence[Gaussian] = (),
        target_epsilon: float = 0.0,
        reserved: Sequence[Gaussian] = (),
    ) -> None:
        self.book = book
        self.delta = delta
        self.target_epsilon = target_epsilon
        self.reserved = tuple(reserved)
        self._curve = Curve(planned, delta)

    def spent(self) -> float:
        """Returns epsilon of all that was charged."""
        return self._epsilon(self.book.events)

    def exceeded_by(self, event: Gaussian, of_reserve: bool = False) -> float | None:
        """Returns epsilon after this release and what is reserved where it is above the target, else None.

        Args:
            event: what would be released.
            of_reserve: it is what the reserve was for.
        """
        if not self.target_epsilon:
            return None
        later = () if of_reserve else self.reserved
        after = self._epsilon([*self.book.events, event, *later])
        return after if after > self.target_epsilon else None

    def times(self, event: Gaussian, most: int) -> int:
        """Returns how often a release may happen from now on, and at most `most` times."""
        if not self.target_epsilon:
            return most
        allowed, too_often = 0, most + 1
        while too_often - allowed > 1:
            middle = (allowed + too_often) // 2
            fits = self.exceeded_by(replace(event, count=middle * event.count)) is None
            allowed, too_often = (middle, too_often) if fits else (allowed, middle)
        return allowed

    def charge(self, event: Gaussian, what: Mapping[str, Any], of_reserve: bool = False) -> None:
        """Charges a release, which may happen when this has returned.

        Args:
            event: what is about to be released.
            what: for the ledger: {"for": "round", "round": 3}.
            of_reserve: it is what the reserve was for.

        Raises:
            StateError: it would exceed the target.
        """
        if (after := self.exceeded_by(event, of_reserve)) is not None:
            raise StateError(f"{dict(what)} would cost epsilon {after:.4g}: the target is {self.target_epsilon:g}")
        self.book.charge(event, what)

    def _epsilon(self, events: Sequence[Gaussian]) -> float:
        left = Counter[tuple[float, float]]()
        for event in events:
            left[event.noise_multiplier, event.sampling_rate] += event.count
        counts = []
        for event in self._curve.planned:
            kind = event.noise_multiplier, event.sampling_rate
            counts.append(min(left[kind], event.count))
            left[kind] -= counts[-1]
        if left.total():  # more than was planned, as of a run that was resumed
            return epsilon(events, self.delta)
        return self._curve.after(*counts)


@dataclass(frozen=True)
class UserLevel:
    """User-level differential privacy, as a strategy needs to know it.

    Attributes:
        clip_norm: C, bound on the L2 norm of each user's delta over all parameters together; where it adapts, of the
            first round.
        noise_multiplier: z; 0 while the number of users, from which it follows, is not known yet.
        sampling_rate: q, with which each user takes part in a round.
        num_users: N, public, fixed for the whole run; 0 while it is not known.
        budget: of the run; None before it starts.
    """

    clip_norm: float
    noise_multiplier: float = 0.0
    sampling_rate: float = 1.0
    num_users: int = 0
    budget: Budget | None = None

    @property
    def expected(self) -> float:
        """q N, how many users are expected to take part."""
        return self.sampling_rate * self.num_users
