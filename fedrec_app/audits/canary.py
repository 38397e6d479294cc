"""The repeat-release canary audit: the real aggregator releases with and without one user, and is told apart.

Tight Auditing of Differentially Private Machine Learning, Nasr et al., USENIX Security 2023,
https://arxiv.org/abs/2302.07956, and Tight Auditing of Differentially Private Federated Learning in One Shot, Andrew et
al., ICLR 2024, https://arxiv.org/abs/2302.03098 (canaries in the updates). The canary's delta is three times as long as
the bound and points the other way than everybody else's, so clipping, weights and denominators that depend on who came
all show; it takes part for sure, so what is audited is the release itself. Whether sampling keeps its rate is checked
by itself (`sampling_rate_at_least`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Message

from fedrec_app.audits.bounds import Distinguished, distinguish, upper_bound
from fedrec_app.audits.releases import Releases
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.privacy import clipping
from fedrec_app.records import Arrays
from fedrec_app.seeding import rng
from fedrec_app.training import users
from fedrec_app.training.plan import FitPlan

CANARY_NORM = 3.0
"""Length of the canary's delta before clipping, in clipping bounds."""
CONFIDENCE = 0.999
"""Of the bound on mu. Both of its errors would have to be exceeded at once, so of honest audits some in a million say
more than is true."""
_SELDOM = 1e-9
"""Chance that what is measured directly, noise and rate, is on one side of the interval that is told."""
_CROWD = 20
"""Users who take part beside the canary, at most, and a quarter of all: so many that were not clipped would still make
a sum that the server takes."""
_LARGEST = 8
"""Rows and columns of each array in the audit, at most: what is released of more of them says nothing new."""
_DRAWS = 500_000


@dataclass(frozen=True)
class CanaryAudit:
    """What releases with and without the canary showed.

    Attributes:
        told_apart: how well the two can be told apart.
        noise_multiplier: smallest and largest that the spread of the releases allows, over the bound C.
        releases: how many there were.
    """

    told_apart: Distinguished
    noise_multiplier: tuple[float, float]
    releases: int


@dataclass(frozen=True)
class Worlds:
    """Two worlds that release again and again, and what to look at.

    Attributes:
        held: makes a release in the world with the canary.
        absent: makes one in the world without him.
        directions: length 1 over all arrays together, where the canary points to.
        scale: of releases in which noise has the claimed noise multiplier as its standard deviation.
    """

    held: Callable[[], Arrays]
    absent: Callable[[], Arrays]
    directions: Arrays
    scale: float


def audit_releases(
    worlds: Worlds, number: int, watch: Callable[[int, int], None] = lambda done, total: None
) -> CanaryAudit:
    """Returns what so many releases show, half of them with the canary.

    Args:
        worlds: which release.
        number: of releases, even.
        watch: called with (releases done, of how many).
    """
    directions, half = worlds.directions, number // 2
    statistics = np.zeros((2, half, len(directions) + 1))
    squares, numbers = 0.0, 0
    for world, release in enumerate((worlds.held, worlds.absent)):
        first: Arrays = {}
        moments = {name: np.zeros((2, *direction.shape)) for name, direction in directions.items()}
        for at in range(half):
            released = release()
            first = first or released
            for column, (name, direction) in enumerate(directions.items(), start=1):
                mean = released[name].astype(np.float64)
                statistics[world, at, column] = (mean * direction).sum()
                # Around the first one, as large sums would take the digits of small noise.
                moments[name] += np.stack([mean - first[name], (mean - first[name]) ** 2])
            watch(world * half + at + 1, 2 * half)
        squares += sum(float((total[1] - total[0] ** 2 / half).sum()) for total in moments.values())
        numbers += (half - 1) * sum(direction.size for direction in directions.values())
    statistics[:, :, 0] = statistics[:, :, 1:].sum(axis=2)
    return CanaryAudit(
        distinguish(statistics[0], statistics[1], CONFIDENCE), _spread(squares, numbers, worlds.scale), 2 * half
    )


def worlds_of_users(releases: Releases) -> Worlds:
    """Returns a world with one user more than the other, both released by the run's strategy.

    Args:
        releases: of the run's strategy, of `small_shapes`.
    """
    directions = canary_directions(releases.shapes)
    crowd = min(_CROWD, releases.claim.users // 4)
    held, absent = (_reply(releases, directions, crowd, held) for held in (True, False))
    scale = releases.expected / releases.clip_norm
    return Worlds(lambda: releases.of(held), lambda: releases.of(absent), directions, scale)


def small_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes with every axis cut to a few places, without arrays that are empty."""
    cut = {name: tuple(min(size, _LARGEST) for size in shape) for name, shape in shapes.items()}
    return {name: shape for name, shape in cut.items() if math.prod(shape)}


def canary_directions(shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Returns a direction of length 1 over all arrays together, an equal part of it in each.

    So a bound on each array by itself lets through more of the canary than the bound on all of them.
    """
    share = 1 / math.sqrt(len(shapes))
    return {
        name: share * (2 * rng(0, "canary", name).integers(0, 2, size=shape) - 1) / math.sqrt(math.prod(shape))
        for name, shape in shapes.items()
    }


def drawn_users(number: int, rate: float) -> int:
    """Returns how many of so many users of a node take part in a round.

    Args:
        number: of users.
        rate: q, as the settings say; `FitPlan.secret_rate`.
    """
    one = Histories.from_lists([[0]]).select(np.zeros(number, dtype=np.int64))
    nothing = Histories.from_lists([[]]).select(np.zeros(number, dtype=np.int64))
    crowd = Cohort(("somebody",) * number, 1, one, nothing, nothing, one)
    return len(users.participants(crowd, FitPlan(0, 1, secret_rate=rate)))


def sampling_rate_at_least(rate: float, draw: Callable[[int, float], int] = drawn_users) -> float:
    """Returns what the rate of secret sampling is not below, as many draws show.

    Args:
        rate: q, as the settings say.
        draw: from a number and a rate to how many are drawn.
    """
    missed = _DRAWS - draw(_DRAWS, rate)
    return 1 - float(upper_bound(missed, _DRAWS, 1 - _SELDOM))


def _reply(releases: Releases, directions: Arrays, crowd: int, held: bool) -> Message:
    """Returns the reply of the node, with the canary or without him; every delta goes through the clipping of nodes."""
    lengths = [-CANARY_NORM] * crowd + [CANARY_NORM] * held
    bound = releases.clip_norm
    if not lengths:
        return releases.reply({name: np.zeros(direction.shape) for name, direction in directions.items()}, 0)
    deltas = {
        name: torch.from_numpy(np.stack([length * bound * direction for length in lengths]))
        for name, direction in directions.items()
    }
    clipped = clipping.clip_and_sum(deltas, bound)
    centred = clipped.num_unclipped - len(lengths) / 2
    return releases.reply({name: total.numpy() for name, total in clipped.sums.items()}, len(lengths), centred)


def _spread(squares: float, numbers: int, scale: float) -> tuple[float, float]:
    """Returns the interval of a standard deviation, in units of 1 / scale, by the chi-square distribution.

    Args:
        squares: sum of squared differences from means.
        numbers: degrees of freedom.
        scale: see above.
    """
    from scipy.special import chdtri

    low, high = (scale * math.sqrt(squares / chdtri(numbers, tail)) for tail in (_SELDOM, 1 - _SELDOM))
    return low, high
