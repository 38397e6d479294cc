"""How the base of an adapted model (`models/adapted.py`) comes to nodes that do not have it: once, with the roll-call.

A node finds the base of a run that starts from its seed by itself. Where the run starts from a file, or the machines
draw different numbers, the node says in the roll-call that it does not have the base, is called again with it, checks
it, and keeps it by its digest. Every later message names the digest, so factors are never added to another base.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from logging import INFO
from pathlib import Path

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedrec_app.errors import FedrecError, StateError
from fedrec_app.files import write_atomically
from fedrec_app.models.adapted import Base
from fedrec_app.node_data import Kept
from fedrec_app.passed_grid import PassedGrid
from fedrec_app.records import CONFIG, Arrays, Ask, num_bytes, to_record

BASE = "base"
"""Key of the arrays of a base in a roll-call."""
KEPT_FILES = 4
"""Bases that a node keeps at least: of the runs that used one last."""
IN_USE = 86_400.0
"""Seconds in which a base that was used is kept in any case: its run may go on, and sends it once."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BaseStore:
    """The bases that a node was sent, in `<state-dir>/bases/<digest>.safetensors`.

    Args:
        state_dir: where the node keeps state.
        durable: flush to the disk (deployments).
    """

    state_dir: Path
    durable: bool = True

    def find(self, digest: str, own: Base) -> Base | None:
        """Returns a base by its digest, None where the node does not have it.

        Args:
            digest: from a message.
            own: what the node finds by itself, which says names and shapes.

        Raises:
            FedrecError: this is no digest.
        """
        if digest == own.digest:
            return own
        path = self._path(digest)
        try:
            found = _read(path, own) if path.is_file() else None
        except StateError:
            return None  # it is sent again
        if found is not None:
            with suppress(OSError):
                path.touch()  # in use: `keep` lets it stay
        return found

    def keep(self, arrays: Arrays, digest: str, own: Base) -> None:
        """Writes a base that was sent.

        Args:
            arrays: from a message.
            digest: what the message says of them.
            own: see `find`.

        Raises:
            FedrecError: the arrays are no base of this model, or not the one that the message says.
        """
        path = self._path(digest)
        if self.find(digest, own) is not None:
            return
        try:
            base = Base.from_arrays(arrays, own)
        except ValueError as error:
            raise FedrecError(f"the base that was sent is not one of this model: {error}") from None
        if base.digest != digest:
            raise FedrecError(f"the base that was sent is {base.digest[:12]}, the message says {digest[:12]}")
        write_atomically(path, save(arrays), self.durable)
        with suppress(FileNotFoundError):  # another process of the node removes them too
            newest = sorted(path.parent.glob("*.safetensors"), key=lambda kept: kept.stat().st_mtime, reverse=True)
            for old in newest[KEPT_FILES:]:
                if old.stat().st_mtime < time.time() - IN_USE:
                    old.unlink()

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise FedrecError(f"{Ask.BASE_HASH} is {digest[:80]!r}: 64 hexadecimal digits are expected")
        return self.state_dir / "bases" / f"{digest}.safetensors"


def _from_file(path: Path, own: Base) -> Base:
    try:
        base = Base.from_arrays(load(path.read_bytes()), own)
    except (SafetensorError, OSError, ValueError) as error:
        raise StateError(f"{path} is damaged: {error}") from None
    if base.digest != path.stem:  # here, so that what is not right is not kept in memory
        raise StateError(f"{path} is damaged: its digest is {base.digest[:12]}")
    return base


_read: Kept[Base] = Kept(_from_file, 2, lambda base: 1)


class WithBase(PassedGrid):
    """A grid that tells every node which base the run has, and sends it to those that answer the roll-call without it.

    Args:
        grid: how nodes are reached.
        base: of the run.

    Attributes:
        nodes: how many nodes it was sent to.
        bytes_down: what that took.
    """

    def __init__(self, grid: Grid, base: Base) -> None:
        super().__init__(grid)
        self._base = base
        self.nodes = self.bytes_down = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Returns the replies; of a node that had not the base, that to the second call."""
        replies, missing = [], []
        told = self._told(messages)
        sent = {message.metadata.dst_node_id: message for message in told}
        for reply in super().send_and_receive(told, timeout=timeout):
            message = sent.get(reply.metadata.src_node_id)
            (replies if message is None or self._is_served(message, reply) else missing).append(reply)
        if missing:
            arrays = to_record(self._base.arrays())
            again = []
            for reply in missing:
                node = reply.metadata.src_node_id
                config = sent[node].content[CONFIG]
                again.append(Message(RecordDict({CONFIG: config, BASE: arrays}), node, MessageType.QUERY))
            self.nodes += len(again)
            self.bytes_down += sum(num_bytes(message.content) for message in again)
            log(INFO, "%s nodes are sent the base of the adapters, %s bytes in all", len(again), self.bytes_down)
            replies += super().send_and_receive(again, timeout=timeout)
        return replies

    def _is_served(self, message: Message, reply: Message) -> bool:
        """Returns whether there is nothing to send: this is no roll-call, or the node has the base."""
        if message.metadata.message_type != MessageType.QUERY or reply.has_error():
            return True
        config = reply.content.config_records.get(CONFIG)
        return config is None or config.get(Ask.BASE_HASH) == self._base.digest

    def _told(self, messages: Iterable[Message]) -> list[Message]:
        told = list(messages)
        for message in told:
            if CONFIG not in message.content:
                message.content[CONFIG] = ConfigRecord()
            message.content.config_records[CONFIG][Ask.BASE_HASH] = self._base.digest
        return told

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages and returns their ids."""
        return super().push_messages(self._told(messages))
