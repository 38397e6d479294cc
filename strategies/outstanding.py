"""Messages of a whole run that are under way, for asynchronous strategies."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Set

from flwr.app import Message
from flwr.serverapp import Grid

from strategies.rounds import Exchange


class Outstanding(Exchange):
    """The messages of a whole run: replies that one server step leaves unread are there for the next.

    Args:
        grid: how nodes are reached.
    """

    def __init__(self, grid: Grid) -> None:
        self._unread: deque[Message] = deque()
        super().__init__(grid, [], 0.0, lasting=True)

    @property
    def busy(self) -> set[int]:
        """Nodes whose reply has not come, or has not been read."""
        return super().busy | {reply.metadata.src_node_id for reply in self._unread}

    def forget(self, nodes: Set[int]) -> None:
        """Waits for these nodes no longer, and reads nothing of them."""
        self._waiting = {message_id: node for message_id, node in self._waiting.items() if node not in nodes}
        self._unread = deque(reply for reply in self._unread if reply.metadata.src_node_id not in nodes)

    def __iter__(self) -> Iterator[Message]:
        """Yields the replies that nobody has read yet, in the order of arrival."""
        while self._unread:
            yield self._unread.popleft()
        yield from super().__iter__()

    def _pull(self, message_ids: list[str]) -> deque[Message]:
        # Whoever iterates empties this very queue: what is in it was pulled and not read.
        self._unread = super()._pull(message_ids)
        return self._unread
