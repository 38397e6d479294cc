"""The command lines of a SuperLink and of its SuperNodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedrec_app.deployment.certificates import Certificates
from fedrec_app.flower_process import executable


@dataclass(frozen=True)
class SuperLinkSettings:
    """How a SuperLink is started.

    Attributes:
        database: file that holds nodes, runs and messages.
        certificates: for TLS; None: everything travels in the clear.
        authenticated: only SuperNodes whose key is registered may come; needs certificates.
        host: interface that it listens on.
        port: of its one API.
    """

    database: Path
    certificates: Certificates | None
    authenticated: bool
    host: str = "127.0.0.1"
    port: int = 8000

    def command(self) -> list[str]:
        """Returns the command line."""
        line = [executable("flower-superlink"), "--host", self.host, "--port", str(self.port)]
        line += ["--database", str(self.database), "--disable-runtime-dependency-installation"]
        if self.certificates is None:
            return [*line, "--insecure"]
        made = self.certificates
        line += ["--ssl-ca-certfile", str(made.ca), "--ssl-certfile", str(made.server)]
        line += ["--ssl-keyfile", str(made.server_key)]
        return [*line, "--enable-supernode-auth"] if self.authenticated else line


@dataclass(frozen=True)
class SuperNodeSettings:
    """How a SuperNode is started.

    Attributes:
        superlink: host:port.
        node_config: TOML file with what the operator tells the node.
        ca: certificate of the authority that the SuperLink's must come from; None: everything travels in the clear.
        key: the node's private key; None where the SuperLink asks for none.
        port: of the API on the node's own loopback interface, which its ClientApps use.
    """

    superlink: str
    node_config: Path
    ca: Path | None
    key: Path | None
    port: int = 9094

    def command(self) -> list[str]:
        """Returns the command line."""
        line = [executable("flower-supernode"), "--superlink", self.superlink, "--port", str(self.port)]
        line += ["--node-config", str(self.node_config)]
        line += ["--insecure"] if self.ca is None else ["--root-certificates", str(self.ca)]
        return line if self.key is None else [*line, "--auth-supernode-private-key", str(self.key)]
