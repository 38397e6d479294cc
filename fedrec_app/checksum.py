"""The SHA-256 of a safetensors file, kept in the file's own header: its 64 digits are taken as zeros there."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

NO_SUM = "0" * 64
"""What stands for the sum, under the key "sha256" of the metadata, until it is known."""


def summed(content: bytes) -> bytes:
    """Returns a file with its checksum.

    Args:
        content: of a file whose metadata has `NO_SUM` under "sha256".
    """
    return _with(content, NO_SUM, sha256(content).hexdigest())


def said_by(content: bytes) -> dict[str, str]:
    """Returns the metadata in the header of a file.

    Raises:
        ValueError, KeyError, TypeError: there is no such header.
    """
    header: Any = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(header.get("__metadata__") or {})


def require_sum(content: bytes, said: str) -> None:
    """Raises ValueError unless a file has the checksum that its metadata says."""
    if sha256(_with(content, said, NO_SUM)).hexdigest() != said:
        raise ValueError("its checksum is wrong")


def _with(content: bytes, old: str, new: str) -> bytes:
    """Returns a file with another checksum in its header; quotes inside of values are escaped there, so it is found."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[:end].replace(f'"sha256":"{old}"'.encode(), f'"sha256":"{new}"'.encode(), 1)
    return b"".join((header, memoryview(content)[end:]))
