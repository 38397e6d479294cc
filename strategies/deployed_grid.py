"""A grid to nodes on other machines, which may send anything."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from logging import WARNING
from typing import TypeVar

import httpx
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log

from fedrec_app.passed_grid import PassedGrid
from strategies.rounds import Exchange

UNREADABLE = 101
"""Code of the error that stands for a reply which cannot be read. Flower's own codes are below 100."""
LONGEST_CALL = 60.0
"""Seconds that `send_and_receive` waits where nobody says how long."""
TROUBLE = 60.0
"""Seconds that a SuperLink may answer with errors of its own before it counts as gone."""
PATIENCE = 2.0
"""Seconds that others wait for a reply whose parts are still on their way; after that it is looked for now and then."""


Result = TypeVar("Result")


class DeployedGrid(PassedGrid):
    """A Flower grid on which no reply ends the run, or keeps it waiting.

    Flower raises where the bytes of a reply are none of its objects, and what came with that reply in one answer of the
    SuperLink is lost. Here replies are asked for one by one, and an error stands for what cannot be read.

    A node may announce a reply and never send its parts: Flower waits for them for three minutes after each part that
    came, up to two hours. Here such a reply comes later, or never, and until then the node's next ones are errors.

    Whom a reply is from is written in it by its sender, and the SuperLink compares that with nothing. Here it must be
    the node that was asked.

    A SuperLink whose database is busy answers with an error (500), and is asked again.

    Args:
        grid: Flower's, of a run on a SuperLink.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._sent: dict[str, tuple[int, str]] = {}
        self._late: dict[tuple[int, str], _Pull] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Returns the ids of all nodes."""
        present = _in_the_end(lambda: list(self._grid.get_node_ids()))
        # What nodes that are gone sent too late nobody asks for any more.
        there = set(present)
        self._late = {asked: pull for asked, pull in self._late.items() if asked[0] in there or pull.is_alive()}
        return present

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages and returns their ids."""
        outgoing = list(messages)
        # The id of a message is its hash: one that came through before the error is not taken twice.
        pushed = _in_the_end(lambda: list(self._grid.push_messages(outgoing)))
        for message in outgoing:
            about = message.metadata
            self._sent[about.message_id] = about.dst_node_id, about.message_type
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies that have come."""
        return [reply for message_id in message_ids for reply in self._pull(message_id)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Returns the replies that come within `timeout` seconds, each from the node that was asked."""
        return list(Exchange(self, messages, LONGEST_CALL if timeout is None else timeout))

    def _pull(self, message_id: str) -> list[Message]:
        asked = self._sent.get(message_id, (0, "train"))
        pull, patience = self._late.get(asked), 0.0
        if pull is None or (pull.message_id != message_id and not pull.is_alive()):
            pull, patience = _Pull(self._grid, message_id), PATIENCE
            pull.start()
        if pull.message_id != message_id:
            self._sent.pop(message_id, None)
            return [_error(message_id, *asked, "its reply before is still on its way")]
        pull.join(patience)
        if pull.is_alive():
            self._late[asked] = pull
            return []
        self._late.pop(asked, None)
        found = self._answers(pull, *asked)
        if found:
            self._sent.pop(message_id, None)
        return found

    def _answers(self, pull: _Pull, node: int, kind: str) -> list[Message]:
        """Returns the reply that was asked for, an error in the place of one that is no good, or none."""
        if pull.error is not None:
            if isinstance(pull.error, httpx.HTTPError) and not _is_trouble(pull.error):
                raise pull.error  # it is the SuperLink that does not answer
            log(WARNING, "a reply of node %s cannot be read: %s", node, type(pull.error).__name__)
            return [_error(pull.message_id, node, kind, "the reply cannot be read")]
        for reply in pull.found:
            about = reply.metadata
            if about.reply_to_message_id != pull.message_id:
                log(WARNING, "something that is no reply to what node %s was asked is left aside", node)
            elif reply.has_content() and node and about.src_node_id != node:
                log(WARNING, "node %s replied in the name of node %s", node, about.src_node_id)
                return [_error(pull.message_id, node, kind, "the reply is in the name of another node")]
            else:
                return [reply]
        return []


class _Pull(threading.Thread):
    """Asks for one reply. A thread, because Flower waits where only parts of it have come; and one that no exit of the
    program waits for.

    Attributes:
        message_id: that is answered.
        found: what came.
        error: what was raised instead.
    """

    def __init__(self, grid: Grid, message_id: str) -> None:
        super().__init__(name=f"reply to {message_id[:8]}", daemon=True)
        self.message_id = message_id
        self.found: list[Message] = []
        self.error: Exception | None = None
        self._from = grid

    def run(self) -> None:
        """Pulls."""
        try:
            self.found = _in_the_end(lambda: list(self._from.pull_messages([self.message_id])))
        except Exception as error:
            self.error = error


def _in_the_end(call: Callable[[], Result]) -> Result:
    """Returns what the SuperLink answers a call with; for `TROUBLE` seconds its own errors are passed over."""
    end, pause = time.monotonic() + TROUBLE, 0.5
    while True:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            if not _is_trouble(error) or time.monotonic() + pause > end:
                raise
            log(WARNING, "the SuperLink answers %s: asked again", error.response.status_code)
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def _is_trouble(error: Exception) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code >= 500


def _error(message_id: str, node: int, kind: str, why: str) -> Message:
    """Returns an error as a node's reply to a message."""
    asked = Message(RecordDict(), node, kind)
    asked.metadata.__dict__["_message_id"] = message_id
    return Message(Error(UNREADABLE, why), reply_to=asked)
