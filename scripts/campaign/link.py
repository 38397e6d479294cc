"""A TCP connection that can be cut: what lies between a SuperNode and its SuperLink.

What is cut or refused is reset, as by a machine on which nobody listens, or else ended in an orderly way, as by a load
balancer that has nobody behind it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)
"""How long a socket that is closed lingers: not at all, so that the other side sees a reset."""


class Link:
    """Forwards connections to a port of this machine, until it is told not to.

    Args:
        port: where connections go on.

    Attributes:
        entry: port of the loopback interface that it listens on.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._refuses = self._orderly = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.entry: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name=f"link to {port}", daemon=True).start()

    def drop(self, orderly: bool = False) -> None:
        """Closes all connections, and each new one at once.

        Args:
            orderly: without a reset.
        """
        self._refuses, self._orderly = True, orderly
        self._close_all()

    def stall(self) -> None:
        """Keeps connections open and lets nothing through."""
        self._flows.clear()

    def heal(self) -> None:
        """Lets everything through again."""
        self._refuses = False
        self._flows.set()

    def close(self) -> None:
        """Ends it for good."""
        self.drop()
        self._flows.set()
        # Closing alone leaves a thread that waits in accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = None
            with contextlib.suppress(OSError):
                far = None if self._refuses else socket.create_connection(("127.0.0.1", self._port), timeout=5)
            if far is None:
                self._refuse(near)
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            if self._refuses:  # since it began to connect
                self._close_all()
                continue
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                self._flows.wait()
                target.sendall(data)
        self._end(source, target)

    def _close_all(self) -> None:
        with self._lock:
            ended, self._open = list(self._open), set()
        for one in ended:
            # The thread that reads it wakes up.
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RD)
            self._refuse(one)

    def _refuse(self, one: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._orderly:
                one.shutdown(socket.SHUT_WR)
                one.settimeout(0.2)
                while one.recv(_CHUNK):  # what is left unread would make it a reset
                    pass
            else:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        one.close()

    def _end(self, *two: socket.socket) -> None:
        with self._lock:
            # Who drops a connection takes it away first: an orderly end must not come before the reset.
            ended = self._open & set(two)
            self._open -= ended
        for one in ended:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
