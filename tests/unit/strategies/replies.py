"""Replies as nodes send them, right and wrong ones, for tests of strategies."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedrec_app.records import CONFIG, Arrays
from strategies.rollcall import Member, Roster
from strategies.testing.nodes import enter_run, error_to, reply_to

NODES = {10: 0, 11: 1, 12: 2}
PARAMS: Arrays = {"table": np.zeros((3, 2), dtype=np.float32), "bias": np.ones(1, dtype=np.float32)}

enter_run()


def asked(node: int = 10, server_round: int = 1) -> Message:
    return Message(RecordDict({CONFIG: ConfigRecord({})}), node, "train", group_id=str(server_round))


def metrics(weight: float = 1.0, server_round: int = 1, **changed: Any) -> dict[str, Any]:
    base = {"weight": weight, "num-users": 1, "num-examples": 1, "loss": 0.5, "server-round": server_round}
    return {**base, **{key.replace("_", "-"): value for key, value in changed.items()}}


def reply(node: int, arrays: Arrays, said: dict[str, Any]) -> Message:
    return reply_to(asked(node), arrays, said)


def delta_reply(node: int, table: float, bias: float = 0.0, weight: float = 1.0, server_round: int = 1) -> Message:
    """A reply whose weighted sums are constants."""
    arrays = {
        "delta/table": np.full((3, 2), table, dtype=np.float32),
        "delta/bias": np.full(1, bias, dtype=np.float32),
    }
    return reply(node, arrays, metrics(weight, server_round))


def error_reply(node: int) -> Message:
    return error_to(asked(node))


def roster(num_examples: int = 1000, nodes: dict[int, int] | None = None) -> Roster:
    """A roster that knows its nodes already and calls nobody."""
    given = NODES if nodes is None else nodes
    members = {n: Member(n, partition, len(given), 1000, num_examples) for n, partition in given.items()}
    return Roster("", "", members=members)


class SilentGrid:
    """A grid whose nodes are those of `NODES`; nothing is ever sent."""

    def __init__(self, nodes: dict[int, int] | None = None) -> None:
        self.nodes = NODES if nodes is None else nodes

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: list[Message], *, timeout: float | None = None) -> list[Message]:
        raise AssertionError("nothing should be sent")
