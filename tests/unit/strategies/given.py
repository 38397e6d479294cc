"""Updates worked out by hand, for golden numbers of strategies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import ConfigRecord

from fedrec_app.records import CONTROL, DELTA, ROWS, Arrays, to_record
from strategies.base import RecStrategy
from strategies.update import Update
from tests.unit.strategies.replies import SilentGrid


def arrays_of(**values: Any) -> Arrays:
    """Arrays in float64, so that nothing is rounded on the way."""
    return {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}


def update(weight: float, partition: int = 0, scalars: dict[str, float] | None = None, **means: Any) -> Update:
    """The update of a node with this weight and these mean deltas: what travels is their weighted sum."""
    arrays = {DELTA + name: weight * array for name, array in arrays_of(**means).items()}
    said = {"weight": weight, "num-users": 1.0, "num-examples": 1.0, "loss": 0.0, **(scalars or {})}
    return Update(arrays, said, partition)


def by_rows(given: Update, name: str, rows: Sequence[int]) -> Update:
    """The update with these rows of a parameter alone."""
    array = given.arrays[DELTA + name]
    alone = {ROWS + name: np.array(rows, dtype=np.int32), DELTA + name: array[list(rows)]}
    return Update({**given.arrays, **alone}, given.scalars, given.partition_id, num_rows={name: len(array)})


def with_controls(given: Update, **changes: Any) -> Update:
    """The update with the node's weighted changes of its control variates beside the deltas."""
    controls = {CONTROL + name: given.weight * array for name, array in arrays_of(**changes).items()}
    return Update({**given.arrays, **controls}, given.scalars, given.partition_id)


def rounds(strategy: RecStrategy, params: Arrays, *deltas: Arrays) -> list[Arrays]:
    """The parameters after each of these mean deltas."""
    found = []
    for server_round, delta in enumerate(deltas, 1):
        params = strategy.server_step(params, delta, server_round)
        found.append(params)
    return found


def after_round(strategy: RecStrategy, params: Arrays, updates: Sequence[Update], server_round: int = 1) -> Arrays:
    """The parameters after a round with these updates."""
    return strategy.server_step(params, strategy.aggregate(iter(updates), params), server_round)


def asked(strategy: RecStrategy, params: Arrays, server_round: int = 1, nodes: dict[int, int] | None = None) -> Any:
    """The messages that a strategy sends for a round."""
    grid: Any = SilentGrid(nodes)
    return list(strategy.configure_train(server_round, to_record(params), ConfigRecord({}), grid))


def assert_arrays(found: Arrays, **expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=name)
        assert np.shape(found[name]) == np.shape(value), name
