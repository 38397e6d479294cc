"""A Grid whose nodes work side by side in real time, some of them slower than others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from flwr.app import Message, MessageType
from flwr.clientapp import ClientApp

from fedrec_app.local_grid import LocalGrid


class ThreadGrid(LocalGrid):
    """The nodes of a `LocalGrid`, each on a thread of its own: one message at a time, in the order sent, evaluations
    behind training, as a SuperNode does.

    Args:
        client_app: what every node runs.
        run_config: flat settings, given to every node.
        pauses: seconds that each node sleeps before it trains, in the order of partitions.
    """

    def __init__(self, client_app: ClientApp, run_config: Mapping[str, Any], pauses: list[float]) -> None:
        super().__init__(client_app, run_config, len(pauses))
        self._lock = threading.Lock()
        self._replies: dict[str, Message] = {}
        self._inboxes: dict[int, SimpleQueue[Message | None]] = {node: SimpleQueue() for node in self.get_node_ids()}
        self._threads = [
            threading.Thread(target=self._work, args=(inbox, pause), daemon=True)
            for inbox, pause in zip(self._inboxes.values(), pauses, strict=True)
        ]

    @contextmanager
    def running(self) -> Iterator[ThreadGrid]:
        """Starts the nodes; at the end of the block they finish what they are at and stop."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            for inbox in self._inboxes.values():
                inbox.put(None)
            for thread in self._threads:
                thread.join()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Returns the ids of messages that are on their way."""
        pushed = []
        for message in messages:
            message_id = message.metadata.__dict__["_message_id"] = str(next(self._ids))
            self._inboxes[message.metadata.dst_node_id].put(message)
            pushed.append(message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies that are there."""
        with self._lock:
            return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Returns every reply."""
        waiting, found = set(self.push_messages(messages)), []
        while waiting:
            came = list(self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in came}
            found += came
            time.sleep(0.001)
        return found

    def _work(self, inbox: SimpleQueue[Message | None], pause: float) -> None:
        while (message := inbox.get()) is not None:
            if message.metadata.message_type == MessageType.TRAIN:
                time.sleep(pause)
            reply = self._handle(message)
            with self._lock:
                self._replies[message.metadata.message_id] = reply
