"""Metrics of a run in each bootstrap draw of users, and by what two runs on the same users differ.

Every node weights its users with Poisson(1) numbers that depend on (data.seed, user) alone, and returns weighted sums
(Poisson bootstrap: Chamandy et al., "Estimating Uncertainty for Massive Data Streams", Google 2012). So the draws of
two runs on the same split are draws of the same users: their differences are paired, and no metric of a user leaves a
node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fedrec_app.errors import DataError
from fedrec_app.evaluation.sums import MetricSums
from fedrec_app.records import ARRAYS, EVAL, from_record


@dataclass(frozen=True, eq=False)
class Replicates:
    """Means over users.

    Attributes:
        names: of the metrics, such as "ndcg@10" and "sampled/ndcg@10".
        values: (1 + num_draws, len(names)) float64: over all users, then over the users of each draw.
        weights: (num_bootstrap,) float64, how many users each draw has, repetitions counted. Runs that were judged on
            the same users have the same. A draw of nobody has no row in `values`.
        num_users: that were judged.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    weights: NDArray[np.float64]
    num_users: int

    @classmethod
    def of(cls, sums: MetricSums) -> Replicates:
        """Returns the means of sums over all users.

        Raises:
            DataError: nobody was judged, or there are no bootstrap rows.
        """
        there = sums.sums[sums.sums[:, -1] > 0]
        if sums.num_users == 0 or len(there) < 2:
            raise DataError(
                f"{len(sums.sums) - 1} bootstrap rows over {sums.num_users} users: there is nothing to draw"
            )
        return cls(sums.names, there[:, :-1] / there[:, -1:], sums.sums[1:, -1].copy(), sums.num_users)

    @property
    def num_draws(self) -> int:
        """How many draws have anybody."""
        return len(self.values) - 1

    def value(self, name: str) -> float:
        """Returns the mean of a metric over all users."""
        return float(self.values[0, self.names.index(name)])

    def draws(self, name: str) -> NDArray[np.float64]:
        """Returns (num_draws,) the mean of a metric over the users of each draw."""
        return self.values[1:, self.names.index(name)]

    def interval(self, name: str) -> list[float]:
        """Returns the 2.5 and 97.5 percentiles over the draws."""
        return np.percentile(self.draws(name), [2.5, 97.5]).tolist()

    def require_same_users(self, other: Replicates, names: str) -> None:
        """Raises DataError where the other was not judged on the same users by the same metrics.

        Args:
            other: of another run.
            names: of both, for the message.
        """
        if self.names != other.names or self.num_users != other.num_users:
            raise DataError(f"{names} were not judged alike: {self.num_users} and {other.num_users} users")
        if not np.array_equal(self.weights, other.weights):
            raise DataError(f"{names} were not judged on the same users: their bootstrap draws differ")


class Draws:
    """A tap on the messages of a run that adds up its bootstrap sums: only the test evaluation has any."""

    def __init__(self) -> None:
        self._total: MetricSums | None = None

    def __call__(self, message: Message) -> None:
        """Adds what a message holds."""
        record = message.content.array_records.get(ARRAYS) if message.has_content() else None
        if record is None or EVAL + "sums" not in record:
            return
        sums = MetricSums.from_arrays({name.removeprefix(EVAL): array for name, array in from_record(record).items()})
        if len(sums.sums) > 1:
            self._total = sums if self._total is None else self._total + sums

    def replicates(self) -> Replicates | None:
        """Returns the means over all users that were judged; None where no message had bootstrap sums."""
        return None if self._total is None else Replicates.of(self._total)


def over_seeds(replicates: Sequence[Replicates]) -> Replicates:
    """Returns the mean over runs of each draw: how a model does on the users of a draw, whatever its seed.

    Args:
        replicates: of runs that were judged on the same users, one at least.

    Raises:
        DataError: they were not.
    """
    first = replicates[0]
    for other in replicates[1:]:
        first.require_same_users(other, "runs of several seeds")
    return Replicates(first.names, np.mean([r.values for r in replicates], axis=0), first.weights, first.num_users)


@dataclass(frozen=True)
class Difference:
    """A paired difference of two runs in one metric.

    Attributes:
        value: over all users.
        low, high: the 2.5 and 97.5 percentiles over the draws.
        p: two-sided: twice the share of draws on the rarer side of zero, the observed one counted as a draw, at most 1
            (Davison & Hinkley, "Bootstrap Methods and their Application", CUP 1997, chapter 4).
        resolution: the least p that so many draws can show; a p that is not above it says "at most this".
    """

    value: float
    low: float
    high: float
    p: float
    resolution: float


def difference(ours: Replicates, theirs: Replicates, name: str) -> Difference:
    """Returns ours minus theirs.

    Args:
        ours, theirs: judged on the same users.
        name: of the metric.

    Raises:
        DataError: they were not judged on the same users.
    """
    ours.require_same_users(theirs, "two rows")
    gaps = ours.draws(name) - theirs.draws(name)
    low, high = np.percentile(gaps, [2.5, 97.5]).tolist()
    rarer = min(np.count_nonzero(gaps <= 0), np.count_nonzero(gaps >= 0))
    draws = len(gaps) + 1
    return Difference(
        ours.value(name) - theirs.value(name), low, high, min(1.0, 2 * (1 + int(rarer)) / draws), min(1.0, 2 / draws)
    )
