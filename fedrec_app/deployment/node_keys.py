"""Keys by which a SuperLink knows its SuperNodes."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedrec_app.errors import ConfigError
from fedrec_app.files import write_atomically


@dataclass(frozen=True)
class NodeKey:
    """A SuperNode's key pair, as `ssh-keygen -t ecdsa -b 384 -N ""` would have written it.

    Attributes:
        private: stays on the node; its owner alone may read it.
        public: is registered at the SuperLink.
        fingerprint: of the public key, to be compared by telephone; what `ssh-keygen -l` prints.
    """

    private: Path
    public: Path
    fingerprint: str


def make_node_key(path: Path) -> NodeKey:
    """Returns a new key pair: the private key in `path`, the public one beside it with ".pub" at its end.

    Raises:
        ConfigError: one of the files is there already.
    """
    public = path.with_name(path.name + ".pub")
    for file in (path, public):
        if file.exists():
            raise ConfigError(f"{file} is there already, and is not overwritten: a node that loses its key is unknown")
    key = ec.generate_private_key(ec.SECP384R1())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_atomically(path, secret)
    write_atomically(public, line + b"\n")
    public.chmod(0o644)
    return NodeKey(path, public, fingerprint(line))


def fingerprint(line: bytes) -> str:
    """Returns the SHA-256 fingerprint of a public key.

    Args:
        line: of OpenSSH: type, key, and perhaps a comment.
    """
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
