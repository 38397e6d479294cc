"""What a server on this machine agrees to when somebody connects."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from fedrec_app.errors import FedrecError


def negotiated(port: int, ca: Path, host: str = "127.0.0.1") -> str:
    """Returns the version of TLS that a server and a client who trusts `ca` agree on, such as "TLSv1.3".

    Raises:
        FedrecError: there is no handshake: another authority, another host, or no TLS.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca))
        with (
            socket.create_connection((host, port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            return secured.version() or "unknown"
    except (OSError, ssl.SSLError) as error:
        raise FedrecError(f"no TLS with {host}:{port} under {ca}: {error}") from None
