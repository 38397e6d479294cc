"""The sum of many privacy losses as numbers on a grid, and the epsilon that follows from it.

Numerical Composition of Differential Privacy, Gopi, Lee and Wutschitz, NeurIPS 2021, https://arxiv.org/abs/2106.02848:
the losses of single events are put on a grid, and their sum is a product of Fourier transforms. Densities, grid and
discretisation are those of Opacus' PRV accountant; what is different here is that the transforms are kept, so that
epsilon after each of many rounds costs one product and one short inverse transform.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.opacus_import import import_opacus
from fedrec_app.privacy.renyi import renyi_epsilon

if TYPE_CHECKING:
    from opacus.accountants.analysis.prv import Domain

_SMALLEST_ERROR, _RELATIVE_ERROR, _LARGEST_ERROR = 0.01, 0.001, 0.5
"""Of epsilon, added to the estimate to make it an upper bound; where epsilon is large, a coarser grid is as good."""
_DELTA_SHARE = 1e-3
"""Of delta: what is set aside for the ends of the grid that are cut off; Opacus' own."""
_LARGEST_LOSS = 500.0
"""Where exp(loss) is still a number, with room to spare."""
_LARGEST_GRID = 1 << 22


class OutOfRange(Exception):
    """The losses do not fit on a grid: epsilon is in the hundreds, or delta near the precision of numbers."""


class LossGrid:
    """The privacy losses of a list of events on one grid, wide and fine enough for all of them together.

    Args:
        events: n, all with some noise and counts above 0.
        divergences: (n, orders) of one event each.
        delta: of the guarantee.

    Raises:
        OutOfRange: no grid is wide and fine enough.
    """

    def __init__(self, events: Sequence[Gaussian], divergences: NDArray[np.float64], delta: float) -> None:
        import_opacus()
        from opacus.accountants.analysis.prv import Domain

        self._delta, self._delta_error = delta, delta * _DELTA_SHARE
        counts = np.array([event.count for event in events])
        scale = renyi_epsilon(counts @ divergences, delta)
        error = min(max(_SMALLEST_ERROR, _RELATIVE_ERROR * scale), _LARGEST_ERROR)
        half = _half_width(counts, divergences, error, self._delta_error)
        # Rounding to the grid makes an error that grows as a random walk does: theorem 5.5.
        mesh_by_error = 1 / math.sqrt(counts.sum() * math.log(12 / self._delta_error) / 2)
        error = max(error, 2 * half / mesh_by_error / _LARGEST_GRID)
        mesh = error * mesh_by_error
        too_wide = not half <= _LARGEST_LOSS or error > _LARGEST_ERROR
        if too_wide or np.finfo(float).eps * 2 * half / mesh > delta / 2:
            raise OutOfRange
        above = _fast(math.ceil(half / mesh) + 1)
        domain = Domain(-above * mesh, (above - 1) * mesh, 2 * above)
        self._mesh, self._size = mesh, domain.size
        self._error_of_one, self._coarsest = error / math.sqrt(counts.sum()), error / 5
        pairs = [_transform(event, domain) for event in events]
        self._shifts = [shift for _, shift in pairs]
        self._logs = [logs for logs, _ in pairs]
        self._magnitudes = [np.maximum.accumulate(logs.real[::-1])[::-1] for logs in self._logs]

    def epsilon(self, counts: Sequence[int]) -> float:
        """Returns an upper bound of epsilon after so many of each event.

        Args:
            counts: one for each event, at most its own; not all 0.

        Raises:
            OutOfRange: the sum of losses does not reach delta on the grid.
        """
        size = self._num_points(counts)
        spectrum = np.zeros(size // 2 + 1, dtype=np.complex128)
        for count, logs in zip(counts, self._logs, strict=True):
            if count:
                spectrum += count * logs[: len(spectrum)]
        mesh = self._mesh * self._size / size
        shift = sum(count * shift for count, shift in zip(counts, self._shifts, strict=True))
        first = max(-size // 2, math.floor(-shift / mesh))  # of the losses of at least 0, or the one before
        pmf = np.roll(np.fft.irfft(np.exp(spectrum), size), size // 2)[size // 2 + first :]
        losses = np.arange(first, size // 2) * mesh + shift
        found = _epsilon(losses, pmf, self._delta - self._delta_error)
        return found + self._error_of_one * math.sqrt(sum(counts))

    def _num_points(self, counts: Sequence[int]) -> int:
        """Returns how many points the sum needs: sums of many losses are smooth, and have few frequencies left."""
        negligible = math.log(self._delta * 1e-6 / self._size)

        def smallness(frequency: int) -> float:
            pairs = zip(counts, self._magnitudes, strict=True)
            return -sum(float(count * magnitudes[frequency]) for count, magnitudes in pairs if count)

        frequencies = bisect_left(range(self._size // 2 + 1), -negligible, key=smallness)
        enough = max(8 * frequencies, math.ceil(self._mesh * self._size / self._coarsest))
        return min(self._size, 2 * _fast(enough // 2 + 1))


def _fast(least: int) -> int:
    """Returns a size of at least this one whose Fourier transform is quick: large prime factors make it slow."""
    from scipy.fft import next_fast_len

    return int(next_fast_len(least) or least)


def _half_width(counts: NDArray, divergences: NDArray[np.float64], error: float, delta_error: float) -> float:
    """Returns where the grid may end: remark 5.6, as Opacus' `compute_safe_domain_size`, of divergences at hand."""
    ends = [renyi_epsilon(counts @ divergences, delta_error / 4)]
    ends += [renyi_epsilon(row, delta_error / (8 * counts.sum())) for row in divergences]
    return max(*ends, error) + 3


def _transform(event: Gaussian, domain: Domain) -> tuple[NDArray[np.complex128], float]:
    """Returns the logarithm of the Fourier transform of the loss of one event, and by how much that loss lies above its
    place on the grid.

    Raises:
        OutOfRange: the mean on the grid is not that of the density.
    """
    import_opacus()
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV, TruncatedPrivacyRandomVariable, discretize

    loss = PoissonSubsampledGaussianPRV(event.sampling_rate, event.noise_multiplier)
    with warnings.catch_warnings(), np.errstate(divide="ignore"):  # log(1 - q) is -inf at q = 1, and right
        warnings.filterwarnings("ignore", "The maximum number of subdivisions")
        warnings.filterwarnings("ignore", "The occurrence of roundoff error")
        try:
            found = discretize(TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max), domain)
        except RuntimeError:
            raise OutOfRange from None
        logs = log_spectrum(np.fft.rfft(np.roll(found.pmf, round(domain.t_min / domain.dt))))
    return logs, float(found.domain.shifts)


def log_spectrum(spectrum: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Returns logarithms, of zero that of the smallest number: infinity times a count would have no phase."""
    return np.log(np.where(spectrum == 0, np.finfo(float).tiny, spectrum))


def _epsilon(losses: NDArray[Any], pmf: NDArray[Any], delta: float) -> float:
    """Returns the smallest epsilon of at least 0 whose delta is at most this one.

    delta(epsilon) is the sum over losses t > epsilon of p(t) (1 - exp(epsilon - t)).

    Args:
        losses: (n,) increasing, from about 0 on.
        pmf: (n,) their probabilities.
        delta: of the guarantee.

    Raises:
        OutOfRange: the losses end too early.
    """
    above = np.flip(np.flip(pmf).cumsum())
    weighted = np.flip(np.flip(pmf * np.exp(-losses)).cumsum())
    first = int(np.searchsorted(np.exp(losses) * weighted - above, -delta, side="left"))
    if first == len(losses):
        raise OutOfRange
    if above[first] <= delta:
        return 0.0
    found = float(np.log((above[first] - delta) / weighted[first]))
    if not math.isfinite(found):
        raise OutOfRange
    return max(0.0, found)
