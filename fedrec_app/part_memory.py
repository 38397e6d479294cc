"""What the client part of a strategy remembers on a node, kept as private state is: one row, the node's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fedrec_app.private_state import PrivateState
from fedrec_app.records import Arrays

_MYSELF = np.zeros(1, dtype=np.uint64)


class PartMemory:
    """Versions of one node's memory.

    Args:
        state_dir: where the node keeps state.
        lineage: of the run.
        partition_id: of the node.
        durable: see `PrivateState`.
    """

    def __init__(self, state_dir: Path, lineage: str, partition_id: int, durable: bool = True) -> None:
        self._state = PrivateState(state_dir, f"{lineage}.strategy", partition_id, durable)

    def load(self, at_round: int) -> Arrays:
        """Returns the memory of the newest round that is not newer than a round; nothing where there is none.

        Raises:
            StateError: every version that would do is damaged.
        """
        return {name: array[0] for name, array in self._state.load(at_round, _MYSELF, {}).items()}

    def save(self, server_round: int, memory: Arrays, keep: Iterable[int] = ()) -> None:
        """Writes the memory after a round, where there is something to remember.

        Args:
            server_round: the round.
            memory: arrays by name.
            keep: rounds that must still be served, see `PrivateState.save`.
        """
        if memory:
            self._state.save(server_round, _MYSELF, {name: array[None] for name, array in memory.items()}, keep)
