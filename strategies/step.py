"""What the methods of a strategy return on the way to the next parameters: checked, and scaled by the schedule."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedrec_app.records import Arrays
from strategies.optimizers import added


def by_name(found: Any, params: Arrays, origin: str) -> Arrays:
    """Returns what a method returned.

    Args:
        found: that.
        params: the current parameters, for names and shapes.
        origin: the method, "FedAvg.aggregate".

    Raises:
        TypeError: it is not one array for each parameter, of its shape.
    """
    if not isinstance(found, dict):
        raise TypeError(f"{origin} returned {type(found).__name__}, not a dict of arrays by name")
    expected = {name: param.shape for name, param in params.items()}
    shapes = {name: np.shape(array) for name, array in found.items()}
    if wrong := {name for name in {*expected, *shapes} if shapes.get(name) != expected.get(name)}:
        got, needed = ({name: each[name] for name in sorted(wrong & each.keys())} for each in (shapes, expected))
        raise TypeError(f"{origin} returned shapes {got}, expected {needed}")
    return found


def scaled(before: Arrays, after: Arrays, factor: float) -> Arrays:
    """Returns the parameters a share of the way from those before a step to those after it, dtypes kept."""
    if factor == 1:
        return after
    return {name: added(p, factor * (after[name].astype(np.float64) - p)) for name, p in before.items()}
