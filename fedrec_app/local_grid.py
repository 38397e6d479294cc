"""A Flower Grid in this process: the same ServerApp and the same ClientApp, no SuperLink and no Ray.

A client that raises answers with an error reply, as a SuperNode does.

Messages are handled one after the other, but time passes on a virtual clock as if nodes worked side by side: training
takes as many virtual seconds as the node is said to take, one message at a time, and replies are handed out in the
order in which they would come. So a federation with slow nodes is the same in every run, and none of them is waited
for. Timeouts are the caller's and of real time.
"""

from __future__ import annotations

import itertools
import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedrec_app.config import Scalar
from fedrec_app.errors import ConfigError
from fedrec_app.seeding import stream_key

ERROR_IN_CLIENT_APP = 2
_SERVER_NODE, _RUN, _TASK = 1, 1, 1


@dataclass(frozen=True)
class _Waiting:
    """A message that nobody has asked about yet, and the virtual time of its reply."""

    message: Message
    ready: float


class LocalGrid(Grid):
    """Nodes 0 ... num_nodes - 1 of a simulation, under node ids that say nothing about their order.

    Args:
        client_app: what every node runs.
        run_config: flat settings, given to every node.
        num_nodes: how many nodes there are.
        on_reply: called after each reply with (replies so far, messages of this exchange).
        taps: called with every message that goes out and every reply that comes back, as a recorder sees them.
        node_configs: what each node is told, as `--node-config` does on a deployment; without it, its partition.
        durations: partition -> virtual seconds that a training message takes there; 1 for every other. Roll-calls and
            evaluations take no time and wait for no training.

    Attributes:
        now: virtual seconds since the grid was made, as far as replies have been handed out.

    Raises:
        ConfigError: there is no such partition, or a duration is not positive.
    """

    def __init__(
        self,
        client_app: ClientApp,
        run_config: Mapping[str, Any],
        num_nodes: int,
        on_reply: Callable[[int, int], None] | None = None,
        taps: Iterable[Callable[[Message], None]] = (),
        durations: Mapping[int, float] | None = None,
        node_configs: Sequence[Mapping[str, Scalar]] | None = None,
    ) -> None:
        told = node_configs or [{"partition-id": k, "num-partitions": num_nodes} for k in range(num_nodes)]
        self._client_app = client_app
        self._on_reply = on_reply
        self._taps = list(taps)
        self._ids = itertools.count(1)
        self.now = 0.0
        self._free: dict[int, float] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._in_vain: set[str] = set()
        self._done, self._total = 0, 0
        self._contexts = {
            stream_key(0, "local-node", partition) % (2**62): Context(
                run_id=_RUN,
                node_id=stream_key(0, "local-node", partition) % (2**62),
                node_config=dict(told[partition]),
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for partition in range(num_nodes)
        }
        self._durations = _by_node(durations or {}, list(self._contexts))
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN, _SERVER_NODE, _TASK

    def set_run(self, run: Run) -> None:
        """Does nothing: there is one run."""

    @property
    def run(self) -> Run:
        """The one run of this grid."""
        return Run.create_empty(_RUN)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Returns a message; `Message(...)` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Returns the ids of all nodes."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Returns the nodes."""
        return [NodeInfo(node_id=node_id) for node_id in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Returns the ids of messages that wait for `pull_messages`, which handles them."""
        if not self._waiting:
            self._done, self._total = 0, 0
        pushed = []
        for message in messages:
            message_id = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = message_id
            self._waiting[message_id] = _Waiting(message, self._ready(message))
            pushed.append(message_id)
        self._total += len(pushed)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the first reply to these messages that comes; the node does its work now, and the clock moves on.

        One a call, so that no more than one reply need be there at a time. None where the reply to another message
        comes before; whoever asks again before that one was handed out does not want it and gets the first of his own.
        """
        asked = [message_id for message_id in message_ids if message_id in self._waiting]
        if not asked:
            return []
        first = min(asked, key=self._when)
        ready = self._waiting[first].ready
        if ready > self.now and first not in self._in_vain and any(w.ready < ready for w in self._waiting.values()):
            self._in_vain.update(asked)
            return []
        return [self._answer(first)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Returns every reply in the order in which they come; nobody else's messages are waited for."""
        return [self._answer(message_id) for message_id in sorted(self.push_messages(messages), key=self._when)]

    def _ready(self, message: Message) -> float:
        """Returns the virtual time of the reply to a message that is sent now."""
        if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
            return self.now
        node = message.metadata.dst_node_id
        self._free[node] = max(self.now, self._free.get(node, 0.0)) + self._durations.get(node, 1.0)
        return self._free[node]

    def _when(self, message_id: str) -> tuple[float, int]:
        """Returns what waiting messages are handed out by: the time of the reply, then the order sent."""
        return self._waiting[message_id].ready, int(message_id)

    def _answer(self, message_id: str) -> Message:
        waiting = self._waiting.pop(message_id)
        self._in_vain.clear()
        self.now = max(self.now, waiting.ready)
        reply = self._handle(waiting.message)
        self._done += 1
        if self._on_reply is not None:
            self._on_reply(self._done, self._total)
        return reply

    def _handle(self, message: Message) -> Message:
        for tap in self._taps:
            tap(message)
        try:
            reply = self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception:
            reply = Message(Error(ERROR_IN_CLIENT_APP, traceback.format_exc()), reply_to=message)
        for tap in self._taps:
            tap(reply)
        return reply


def _by_node(durations: Mapping[int, float], nodes: Sequence[int]) -> dict[int, float]:
    """Returns durations by node id, given those by partition and the nodes in the order of partitions."""
    for partition, seconds in durations.items():
        if not 0 <= partition < len(nodes):
            raise ConfigError(f"partition {partition} has a duration: there are partitions 0 to {len(nodes) - 1}")
        if not (math.isfinite(seconds) and seconds > 0):
            raise ConfigError(f"the duration of partition {partition} is {seconds}: a positive number is expected")
    return {nodes[partition]: float(seconds) for partition, seconds in durations.items()}
