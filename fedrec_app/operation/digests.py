"""SHA-256 of what an audit log vouches for: messages, parameters, JSON values, files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from fedrec_app.records import Arrays


def of_reply(content: RecordDict) -> str:
    """Returns the digest of the arrays and metrics of a message, as they travelled; nothing of them is parsed."""
    digest = sha256()
    for name, record in content.array_records.items():
        for key, array in record.items():
            digest.update(_header("array", name, key, array.dtype, list(array.shape), array.stype, len(array.data)))
            digest.update(array.data)
    for name, record in content.metric_records.items():
        digest.update(_header("metrics", name, dict(record)))
    return digest.hexdigest()


def of_arrays(arrays: Arrays) -> str:
    """Returns the digest of named arrays, whatever their order: names, dtypes, shapes and values in C order."""
    digest = sha256()
    for name, array in sorted(arrays.items()):
        digest.update(_header(name, array.dtype.str, list(array.shape)))
        digest.update(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def of_json(value: Mapping[str, Any]) -> str:
    """Returns the digest of a JSON object, whatever the order of its keys; numbers that JSON does not have are null."""
    text = json.dumps(value, default=lambda number: number.tolist())
    plain = json.loads(text, parse_constant=lambda name: None)
    return sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def of_file(path: Path) -> str:
    """Returns the digest of a file's bytes, "" where there is none."""
    if not path.is_file():
        return ""
    digest = sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _header(*said: Any) -> bytes:
    return (json.dumps(said, separators=(",", ":")) + "\n").encode()
