"""What a fit becomes on its way out of a node: named arrays of float32."""

from __future__ import annotations

import numpy as np

from fedrec_app.records import CONTROL, COUNT, DELTA, ROWS, Arrays, changed_rows
from fedrec_app.training.plan import FitSums


def deltas(sums: FitSums, row_names: list[str]) -> Arrays:
    """Returns the sums as they travel: of a row parameter the changed rows alone, where that is less to send."""
    arrays: Arrays = {}
    positions: Arrays = {}
    for name, delta in sums.delta.items():
        count = sums.count.get(name)
        rows = changed_rows(delta, count) if name in row_names else None
        if rows is not None:
            positions[ROWS + name] = rows
        arrays[DELTA + name] = delta if rows is None else delta[rows]
        if count is not None:
            arrays[COUNT + name] = count if rows is None else count[rows]
    arrays.update({CONTROL + name: control for name, control in sums.controls.items()})
    return {**positions, **_as_float32(arrays)}


def parameters(shared: Arrays, sums: FitSums) -> Arrays:
    """Returns the shared parameters after the mean delta, as stock strategies expect them."""
    weight = sums.weight if sums.weight > 0 else 1.0
    return _as_float32({name: shared[name] + delta / weight for name, delta in sums.delta.items()})


def _as_float32(arrays: Arrays) -> Arrays:
    with np.errstate(over="ignore"):  # a model that diverged: the server drops what is not finite, and says so
        return {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}
