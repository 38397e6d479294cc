"""Sums that are exact until they are rounded once, so that the order in which updates arrive does not show.

Every addition keeps what rounding takes away: of s = fl(a + b) the error (a + b) - s is a float64 too (TwoSum; Knuth,
The Art of Computer Programming, vol. 2, section 4.2.2) and is added up in an array of its own (Neumaier,
Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen, ZAMM 1974). Where that addition is not exact
either, as with 1e30 among values of 1e-10, what it loses goes into a third array, and so on (expansions; Shewchuk,
Adaptive Precision Floating-Point Arithmetic and Fast Robust Geometric Predicates, Discrete & Computational Geometry,
1997).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedrec_app.compiled import njit
from fedrec_app.records import CONTROL, COUNT, DELTA, Arrays, Said
from strategies.update import Update

MOST_LEVELS = 10
"""Enough for 2^24 float32 values of any size: a level is 2^53 / number of values times smaller than the one before."""


class ExactSum:
    """The sum of arrays of one shape.

    Args:
        shape: of the arrays.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._width = math.prod(shape[1:])
        # A level that nothing was added to takes no memory yet, and one such is always there: what reaches it stays.
        self._levels = np.zeros((3, math.prod(shape)))
        self._deepest = 0

    def add(self, values: NDArray, rows: NDArray[np.int32] | None = None) -> None:
        """Adds an array, or some rows of one; takes time for these only.

        Args:
            values: of the shape of the sum, or (k, ...) for k rows.
            rows: (k,) positions along the first axis, each at most once.

        Raises:
            ValueError: the shapes do not fit.
            IndexError: there is no such row.
        """
        shape = self._shape if rows is None else (len(rows), *self._shape[1:])
        if values.shape != shape:
            raise ValueError(f"an array of shape {values.shape} is added where {shape} is expected")
        values = np.ascontiguousarray(values, dtype=np.result_type(values.dtype, np.float32))
        deepest = _add(self._levels, values.reshape(len(values), self._width), rows)
        if deepest < 0:
            raise IndexError(f"a row is not one of 0 to {self._shape[0] - 1}")
        self._deepest = max(self._deepest, deepest)
        if self._deepest == len(self._levels) - 1 < MOST_LEVELS - 1:
            more = np.zeros((len(self._levels) + 1, self._levels.shape[1]))
            more[:-1] = self._levels
            self._levels = more

    def total(self) -> NDArray[np.float64]:
        """Returns the sum in float64: read only, and only as long as nothing more is added."""
        total = self._levels[0] if self._deepest == 0 else self._levels[0] + self._levels[1]
        if self._deepest > 1:
            # Of three numbers or more only `fsum` rounds once.
            for at in np.flatnonzero(self._levels[2:].any(axis=0) & np.isfinite(total)):
                total[at] = math.fsum(self._levels[:, at])
        total = total.reshape(self._shape)
        total.flags.writeable = False
        return total


class UpdateSum:
    """The sum of updates, which reads like an update: updates are additive.

    Args:
        params: the current parameters, for names and shapes.
    """

    def __init__(self, params: Arrays) -> None:
        self._deltas = {name: ExactSum(param.shape) for name, param in params.items()}
        self._counts: dict[str, ExactSum] = {}
        self._num_rows = {name: param.shape[:1] for name, param in params.items()}
        self._controls: dict[str, ExactSum] = {}
        self._scalars: dict[str, list[float]] = {}

    @classmethod
    def of(cls, updates: Iterable[Update], params: Arrays) -> UpdateSum:
        """Returns the sum of updates, consumed one by one: only the running sums are kept."""
        total = cls(params)
        for update in updates:
            total.add(update)
        return total

    def add(self, update: Update) -> None:
        """Adds an update; of a parameter that came as rows only these are touched."""
        for key, value in update.scalars.items():
            self._scalars.setdefault(key, []).append(value)
        for name, total in self._deltas.items():
            if (control := update.arrays.get(CONTROL + name)) is not None:
                self._controls.setdefault(name, ExactSum(control.shape)).add(control)
            rows = update.rows(name)
            total.add(update.arrays[DELTA + name], rows)
            if (count := update.arrays.get(COUNT + name)) is not None:
                if name not in self._counts:
                    self._counts[name] = ExactSum(self._num_rows[name])
                self._counts[name].add(count, rows)

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return self.scalar(Said.WEIGHT)

    def scalar(self, name: str) -> float:
        """Returns the sum of a scalar, 0 where no update has it."""
        return math.fsum(self._scalars.get(name, []))

    def delta(self, name: str) -> NDArray[np.float64]:
        """Returns the sum of the weighted deltas of a parameter; see `ExactSum.total`."""
        return self._deltas[name].total()

    def count(self, name: str) -> NDArray[np.float64] | None:
        """Returns (num_rows,) sums of weights by row, or None where no update counted."""
        return self._counts[name].total() if name in self._counts else None

    def control(self, name: str) -> NDArray[np.float64]:
        """Returns the sum of what client parts sent beside the delta of a parameter.

        Raises:
            KeyError: no update has any.
        """
        return self._controls[name].total()


@njit(nogil=True, cache=True)
def _add(levels: NDArray[np.float64], values: NDArray, rows: NDArray[np.int32] | None) -> int:
    """Returns the deepest level that was added to, or -1 where there is no such row.

    Args:
        levels: (num_levels, num_rows * width) changed in place.
        values: (k, width) what is added.
        rows: (k,) where to; None: to rows 0 ... k - 1.
    """
    deepest = 0
    width = values.shape[1]
    errors = np.empty(width)
    for i in range(len(values)):
        at = (np.int64(rows[i]) if rows is not None else i) * width
        if not 0 <= at <= levels.shape[1] - width:
            return -1
        first = levels[0, at : at + width]  # a view, as the compiler cannot tell else that no index is negative
        inexact = False
        for j in range(width):
            before = first[j]
            first[j] = before + values[i, j]
            part = first[j] - before
            errors[j] = (before - (first[j] - part)) + (values[i, j] - part)
            inexact |= errors[j] != 0.0
        if inexact:
            for j in range(width):
                deepest = max(deepest, _carry(levels, at + j, errors[j]))
    return deepest


@njit(nogil=True, cache=True)
def _carry(levels: NDArray[np.float64], at: int, error: float) -> int:
    """Adds what the first level lost at one place to the levels below; returns the deepest that was added to."""
    level = 0
    while abs(error) > 0.0 and level + 1 < len(levels):  # false for the NaN that an overflow leaves
        level += 1
        before = levels[level, at]
        after = before + error
        levels[level, at] = after
        part = after - before
        error = (before - (after - part)) + (error - part)
    return level
