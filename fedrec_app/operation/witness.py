"""A grid that notes who was asked to train, and what came back: it sees the same under every strategy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedrec_app.operation.digests import of_reply
from fedrec_app.passed_grid import PassedGrid
from strategies.rollcall import Roster


@dataclass
class Seen:
    """Training messages and replies since somebody looked last, by partition.

    Attributes:
        asked: to whom messages went.
        replies: partition -> SHA-256 of the reply.
        failed: partition -> "error-reply" or "no-reply".
    """

    asked: list[int] = field(default_factory=list)
    replies: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


class Witness(PassedGrid):
    """Hands everything on and notes training messages.

    Args:
        grid: the grid.
        roster: says which partition a node holds.
        lasting: replies may come in a later round than the message went out.
    """

    def __init__(self, grid: Grid, roster: Roster, lasting: bool = False) -> None:
        super().__init__(grid)
        self._roster, self._lasting = roster, lasting
        self._seen = Seen()
        self._under_way: dict[str, int] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages and returns their ids."""
        outgoing = list(messages)
        pushed = list(super().push_messages(outgoing))
        for message in outgoing:
            member = self._roster.members.get(message.metadata.dst_node_id)
            if member is not None and _kind(message) == MessageType.TRAIN:
                self._seen.asked.append(member.partition_id)
                # One that could not be sent has no id, and no reply.
                key = message.metadata.message_id or f"unsent {member.partition_id}"
                self._under_way[key] = member.partition_id
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Yields the replies that have come."""
        for reply in super().pull_messages(message_ids):
            partition = self._under_way.pop(reply.metadata.reply_to_message_id, None)
            if partition is not None and reply.has_content():
                self._seen.replies[partition] = of_reply(reply.content)
            elif partition is not None:
                self._seen.failed[partition] = "error-reply"
            yield reply

    def take(self) -> Seen:
        """Returns what has been seen, and begins anew: a round is over."""
        seen, self._seen = self._seen, Seen()
        if not self._lasting:
            seen.failed.update(dict.fromkeys(self._under_way.values(), "no-reply"))
            self._under_way.clear()
        return seen


def _kind(message: Message) -> str:
    return message.metadata.message_type.partition(".")[0]
