"""Which of a node's replies was used last: what its client part remembers has to go on from there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedrec_app.records import ARRAYS, CONFIG, Arrays, Ask
from strategies.rollcall import Member

NAME = "memory-rounds"


class MemoryRounds:
    """The round of the last reply of each partition that was used."""

    def __init__(self) -> None:
        self._used: dict[int, int] = {}

    def tell(self, messages: Sequence[Message], members: Iterable[Member]) -> None:
        """Adds to each member's message from which round its memory goes on; 0: it has none."""
        for message, member in zip(messages, members, strict=True):
            shared = message.content
            own = ConfigRecord(
                {**shared.config_records[CONFIG], Ask.MEMORY_ROUND: self._used.get(member.partition_id, 0)}
            )
            message.content = RecordDict({ARRAYS: shared.array_records[ARRAYS], CONFIG: own})

    def use(self, partitions: Iterable[int], server_round: int) -> None:
        """Notes whose replies the parameters of a round are made of."""
        self._used.update(dict.fromkeys(partitions, server_round))

    def state(self) -> Arrays:
        """Returns (k, 2) partitions and rounds, under one name; nothing where no reply was used."""
        return {NAME: np.array(sorted(self._used.items()), dtype=np.int64)} if self._used else {}

    def load_state(self, state: Arrays) -> Arrays:
        """Continues from what `state` returned, and returns the rest of what is given."""
        self._used = {int(partition): int(at) for partition, at in state.get(NAME, ())}
        return {name: array for name, array in state.items() if name != NAME}
