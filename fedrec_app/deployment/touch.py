"""Sees SuperNodes that live and do nothing: they have no connection to a SuperLink that is there."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from fedrec_app.deployment.part import Part
from fedrec_app.errors import ConfigError
from fedrec_app.flower_process import host_and_port, listens

PATIENCE = 90.0
"""Seconds; a SuperNode that lost its SuperLink tries again after 20 s at most."""
_OPTION = "--superlink"


class Touch:
    """Looks for a SuperNode's connection to its SuperLink.

    A SuperNode whose main loop has ended, as after a TLS error, stays as a process. One that works always has a
    connection, also while it waits for messages.

    Args:
        part: the SuperNode; its command line says where the SuperLink is.
        patience: seconds without a connection, while the SuperLink listens.
        every: seconds between two looks.

    Raises:
        ConfigError: the command line names no SuperLink.
    """

    def __init__(self, part: Part, patience: float = PATIENCE, every: float = 2.0) -> None:
        address = superlink_of(part.command)
        if address is None:
            raise ConfigError(f"{part.name} is no flower-supernode with {_OPTION} HOST:PORT")
        self._host, self._port = address
        self._part, self._patience, self._every = part, patience, every
        self._pid, self._vain, self._next = 0, 0, 0.0

    def lost(self) -> str:
        """Returns why the SuperNode is held for dead, "" while it is not."""
        if time.monotonic() < self._next:
            return ""
        self._next = time.monotonic() + self._every
        if self._part.pid != self._pid or self._connected() or not listens(self._port, self._host):
            self._pid, self._vain = self._part.pid, 0
            return ""
        # Looks are counted, not seconds: whoever was stopped for a while must not find that it was long.
        self._vain += 1
        if self._vain * self._every < self._patience:
            return ""
        self._vain = 0
        return f"has had no connection to {self._host}:{self._port}, which listens, for {self._patience:.0f} s"

    def _connected(self) -> bool:
        try:
            found = psutil.Process(self._part.pid).net_connections(kind="tcp")
        except psutil.Error:
            return True  # it has just ended, or nobody may look
        return any(one.raddr and one.raddr.port == self._port and one.status == "ESTABLISHED" for one in found)


def superlink_of(command: Sequence[str]) -> tuple[str, int] | None:
    """Returns host and port of the SuperLink of a SuperNode, None where the command is none or does not say.

    Args:
        command: command line.
    """
    if not command or Path(command[0]).name != "flower-supernode":
        return None
    words = [half for word in command[1:] for half in (word.split("=", 1) if word.startswith(_OPTION) else [word])]
    named = [after for word, after in itertools.pairwise(words) if word == _OPTION]
    try:
        host, port = host_and_port(named[-1])
    except (IndexError, ConfigError):
        return None
    return host.strip("[]"), port
