"""A Flower Grid in this process: the same ServerApp and the same ClientApp, no SuperLink and no Ray.

Messages are handled one after the other, in the order sent; a client that raises answers with an error reply, as a
SuperNode does.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedrec_app.seeding import stream_key

ERROR_IN_CLIENT_APP = 2
_SERVER_NODE, _RUN, _TASK = 1, 1, 1


class LocalGrid(Grid):
    """Nodes 0 ... num_nodes - 1 of a simulation, under node ids that say nothing about their order.

    Args:
        client_app: what every node runs.
        run_config: flat settings, given to every node.
        num_nodes: how many nodes there are.
        on_reply: called after each reply with (replies so far, messages of this exchange).
        taps: called with every message that goes out and every reply that comes back, as a recorder sees them.
    """

    def __init__(
        self,
        client_app: ClientApp,
        run_config: Mapping[str, Any],
        num_nodes: int,
        on_reply: Callable[[int, int], None] | None = None,
        taps: Iterable[Callable[[Message], None]] = (),
    ) -> None:
        self._client_app = client_app
        self._on_reply = on_reply
        self._taps = list(taps)
        self._ids = itertools.count(1)
        self._waiting: dict[str, Message] = {}
        self._done, self._total = 0, 0
        self._contexts = {
            stream_key(0, "local-node", partition) % (2**62): Context(
                run_id=_RUN,
                node_id=stream_key(0, "local-node", partition) % (2**62),
                node_config={"partition-id": partition, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for partition in range(num_nodes)
        }
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
            self._waiting[message_id] = message
            pushed.append(message_id)
        self._total += len(pushed)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the reply to the first of these messages that waits; the node does its work now.

        One a call, so that no more than one reply need be there at a time.
        """
        for message_id in message_ids:
            if (message := self._waiting.pop(message_id, None)) is not None:
                reply = self._handle(message)
                self._done += 1
                if self._on_reply is not None:
                    self._on_reply(self._done, self._total)
                return [reply]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Returns every reply; nodes that are slow are waited for, there being nothing else to do in one process."""
        return [reply for message_id in self.push_messages(messages) for reply in self.pull_messages([message_id])]

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
