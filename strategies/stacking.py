"""The mean deltas of single nodes side by side, a block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedrec_app.records import DELTA, ROWS
from strategies.update import Update

MOST_NUMBERS = 1 << 24
"""In one block: 128 MB."""


def taking_part(updates: Sequence[Update]) -> list[Update]:
    """Returns the updates with somebody behind them."""
    return [update for update in updates if update.weight > 0]


def mean_blocks(updates: Sequence[Update], name: str, param: NDArray) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yields (rows, (n, k, width)): which rows of a parameter, flattened to (num_rows, width), and the nodes' mean
    deltas of them. A parameter without axes is one row.

    Args:
        updates: n of them, each of positive weight.
        name: of the parameter.
        param: the parameter, for its shape.
    """
    num_rows = len(param) if param.ndim else 1
    width = math.prod(param.shape[1:])
    step = max(1, MOST_NUMBERS // max(len(updates) * width, 1))
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        block = np.zeros((len(updates), stop - start, width))
        for mean, update in zip(block, updates, strict=True):
            _fill(mean, update, name, start)
            with np.errstate(over="ignore"):  # of a weight near zero that a node claims: infinite, at one end
                mean /= update.weight
        yield slice(start, stop), block


def _fill(block: NDArray[np.float64], update: Update, name: str, start: int) -> None:
    delta = update.arrays[DELTA + name]
    rows = update.arrays.get(ROWS + name)
    if rows is None:
        block[:] = as_rows(delta)[start : start + len(block)]
        return
    first, last = np.searchsorted(rows, (start, start + len(block)))
    block[rows[first:last] - start] = as_rows(delta)[first:last]


def as_rows(array: NDArray) -> NDArray:
    """Returns a view of an array with two axes, (num_rows, width); without axes it is one row."""
    return array.reshape(len(array) if array.ndim else 1, math.prod(array.shape[1:]))


def mean_norm(update: Update, names: Iterable[str]) -> float:
    """Returns the L2 norm of a node's mean delta over the parameters named; infinite where float64 ends.

    Args:
        update: of positive weight.
        names: of parameters.
    """
    squares = (float(np.sum(np.square(update.arrays[DELTA + name], dtype=np.float64))) for name in names)
    # Not the squares over the squared weight: that of a tiny weight, which a node may claim, is zero.
    return math.sqrt(math.fsum(squares)) / update.weight
