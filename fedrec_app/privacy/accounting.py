"""What released sums cost: epsilon of a list of events, after each round of a run, and the noise for a given epsilon.

Epsilon is an upper bound by numerical composition (PRV, `privacy_loss.py`), never the central-limit value, which lies
below the truth. Beside it stands that of Renyi differential privacy (`renyi.py`), above it and computed in another way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache

import numpy as np

from fedrec_app.errors import ConfigError
from fedrec_app.privacy.events import Gaussian, check_delta, check_sampling_rate
from fedrec_app.privacy.gaussian import gaussian_epsilon
from fedrec_app.privacy.privacy_loss import LossGrid, OutOfRange
from fedrec_app.privacy.renyi import divergences, renyi_epsilon

_LEAST_NOISE, _MOST_NOISE = 1e-3, 1e6
"""Noise multipliers between which one is looked for."""


def default_delta(users: int) -> float:
    """Returns 1 / users^1.1: below 1 / users, which would let one user be given away outright.

    Raises:
        ConfigError: fewer than 2 users.
    """
    if users < 2:
        raise ConfigError(f"users is {users}, allowed: at least 2")
    return users**-1.1


def epsilon(events: Iterable[Gaussian], delta: float) -> float:
    """Returns the epsilon that all these events cost together; infinity without noise, 0 without events.

    An upper bound: 0.01 or 0.1 % (whichever is more) above the estimate of numerical composition, which is what its
    theory allows for. Where only sums of everybody are released it is exact. Beyond an epsilon of some hundreds, and
    for a delta near the precision of numbers, it is the smaller of two looser bounds: that of Renyi differential
    privacy, and that without sampling.

    Args:
        events: in any order. Each pair of noise multiplier and sampling rate that differs costs about 0.2 seconds.
        delta: of the guarantee.

    Raises:
        ConfigError: delta is not between 0 and 1.
    """
    return Curve(list(events), delta).after()


def rdp_epsilon(events: Iterable[Gaussian], delta: float) -> float:
    """Returns the epsilon of Renyi differential privacy, the cross-check of `epsilon` and never below it.

    Args:
        events: in any order.
        delta: of the guarantee.

    Raises:
        ConfigError: delta is not between 0 and 1.
    """
    check_delta(delta)
    counts = _merged(events)
    if not counts:
        return 0.0
    rows = np.array([divergences(Gaussian(*kind)) for kind in counts])
    return renyi_epsilon(np.array(list(counts.values())) @ rows, delta)


class Curve:
    """Epsilon at every point of a run whose events are planned: about a millisecond each, after some set-up.

    >>> curve = Curve([Gaussian(1.0, 0.1, 100)], 1e-4)
    >>> round(curve.after(50), 2), round(curve.after(100), 2)
    (4.04, 5.98)

    Args:
        planned: all that may happen, with its counts: the rounds of a run first, then what else is charged.
        delta: of the guarantee.

    Raises:
        ConfigError: delta is not between 0 and 1.
    """

    def __init__(self, planned: Sequence[Gaussian], delta: float) -> None:
        check_delta(delta)
        self.planned, self.delta = tuple(planned), delta
        merged = {kind: count for kind, count in _merged(planned).items() if kind[0]}
        self._kinds = [Gaussian(*kind, count) for kind, count in merged.items()]
        self._divergences = np.array([divergences(kind) for kind in self._kinds])
        self._grid: LossGrid | None = None
        if any(kind.sampling_rate < 1 for kind in self._kinds):
            with suppress(OutOfRange):
                self._grid = LossGrid(self._kinds, self._divergences, delta)

    def after(self, *counts: int) -> float:
        """Returns epsilon after so many of the planned events; those left out have all happened.

        Args:
            counts: of the first planned event, of the second, and so on, each at most the planned one.

        Raises:
            ValueError: a count is not among those planned.
        """
        if len(counts) > len(self.planned):
            raise ValueError(f"{len(counts)} counts, but {len(self.planned)} events are planned")
        done: list[Gaussian] = list(self.planned)
        for place, count in enumerate(counts):
            event = self.planned[place]
            if not 0 <= count <= event.count:
                raise ValueError(f"{count} of {event} cannot have happened")
            done[place] = Gaussian(event.noise_multiplier, event.sampling_rate, count)
        merged = _merged(done)
        if not merged:
            return 0.0
        if any(noise == 0 for noise, _ in merged):
            return math.inf
        by_kind = [merged.get((kind.noise_multiplier, kind.sampling_rate), 0) for kind in self._kinds]
        bound = self._bound(by_kind)
        if self._grid is None:
            return bound
        try:
            return min(bound, self._grid.epsilon(by_kind))
        except OutOfRange:
            return bound

    def _bound(self, counts: Sequence[int]) -> float:
        """Returns the smaller of two upper bounds that always exist."""
        # Of independent Gaussians the squares of 1/z add up; and leaving some users out never costs more.
        ratios = (math.sqrt(c) / kind.noise_multiplier for c, kind in zip(counts, self._kinds, strict=True))
        some = np.array(counts) > 0
        total = np.array(counts)[some] @ self._divergences[some]
        return min(renyi_epsilon(total, self.delta), gaussian_epsilon(math.hypot(*ratios), self.delta))


def noise_for(
    target_epsilon: float, delta: float, sampling_rate: float, rounds: int, others: Sequence[Gaussian] = ()
) -> float:
    """Returns the smallest noise multiplier, rounded up to 4 digits, with which a run costs at most a given epsilon.

    Args:
        target_epsilon: of the whole run, the other events included.
        delta: of the guarantee.
        sampling_rate: q, of users in each round.
        rounds: of the run.
        others: what else the run is charged with.

    Raises:
        ConfigError: a number has no meaning, or no noise is enough.
    """
    from scipy.optimize import root_scalar

    check_delta(delta)
    check_sampling_rate(sampling_rate)
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise ConfigError(f"target epsilon is {target_epsilon!r}, allowed: a finite number above 0")
    if rounds < 1:
        raise ConfigError(f"rounds is {rounds!r}, allowed: at least 1")

    @cache
    def excess(noise: float) -> float:
        # Logarithms, because epsilon is about a power of the noise: a straight line has its root found at once.
        cost = epsilon([Gaussian(noise, sampling_rate, rounds), *others], delta)
        return math.log(cost / target_epsilon) if cost else -math.inf

    enough = _around(target_epsilon, excess)
    if excess(enough / 2) > 0 and excess(enough) > -math.inf:
        bracket = math.log(enough / 2), math.log(enough)
        enough = math.exp(root_scalar(lambda log: excess(math.exp(log)), bracket=bracket, xtol=1e-5).root)
    step = 10.0 ** (math.floor(math.log10(enough)) - 3)
    rounded = math.ceil(enough / step) * step
    while excess(rounded) > 0:
        rounded += step
    return float(f"{rounded:.4g}")


def _around(target: float, excess: Callable[[float], float]) -> float:
    """Returns a noise multiplier that is enough, of which half is not, or which is the least that is looked at.

    Raises:
        ConfigError: no noise is enough.
    """
    noise = 1.0
    while (found := excess(noise)) > 0:
        if noise > _MOST_NOISE:
            raise ConfigError(
                f"target epsilon is {target}: no noise is enough, as the rest costs {math.exp(found) * target:.3g}; "
                "release less, or allow more"
            )
        noise *= 2
    while noise > _LEAST_NOISE and excess(noise / 2) <= 0:
        noise /= 2
    return noise


def _merged(events: Iterable[Gaussian]) -> dict[tuple[float, float], int]:
    """Returns how often each pair of noise multiplier and sampling rate happened, where it did."""
    counts: dict[tuple[float, float], int] = {}
    for event in events:
        if event.count:
            kind = event.noise_multiplier, event.sampling_rate
            counts[kind] = counts.get(kind, 0) + event.count
    return counts
