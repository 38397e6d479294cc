"""The message schema: what travels between ServerApp and ClientApp, in one place.

to the node     arrays  ArrayRecord   shared parameters by name, and "control/<name>" where the strategy has some
                config  ConfigRecord  keys of `Ask`
training reply  arrays  ArrayRecord   "delta/<name>", "count/<name>" (asked for deltas) or parameters by name;
                                      "control/<name>", (shape of the parameter) what a strategy's client part adds
                metrics MetricRecord  scalars; "num-examples" is the weight that stock strategies use
evaluation      arrays  ArrayRecord   "eval/<...>" sums (asked for sums), else none
                metrics MetricRecord
query           arrays  ArrayRecord   "stat/<...>" (asked for statistics), else none
                config  ConfigRecord  properties of the node
(asked)         base    ArrayRecord   what stays fixed in an adapted model, for a node that does not have it

Of a parameter with a row an item ("row parameter"), a node sends those rows alone that it changed, where that takes
fewer bytes: "rows/<name>" are their positions, (k,) int32, strictly increasing; "delta/<name>" is (k, ...) then, and
"count/<name>" is (k,). All other rows are zero. An array is in that form where "rows/<name>" is there.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

Arrays = dict[str, NDArray]

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"

DELTA, COUNT, ROWS, CONTROL, EVAL, STAT = "delta/", "count/", "rows/", "control/", "eval/", "stat/"


SCHEMA = 1
"""Version of this schema. A node that speaks another one is refused at the roll-call."""


class Ask:
    """Keys of the config that a message carries; every one may be absent (stock strategies send two of them)."""

    ROUND = "server-round"
    UPDATE = "update"  # "delta": sums of weighted deltas; absent: parameters
    WEIGHTING = "weighting"  # "examples" | "users" | "uniform" | "rows"
    CATALOG = "catalog-hash"  # of the run: a node whose own catalog has changed since the roll-call does not answer
    LINEAGE = "lineage"  # name of the line of private states that the run continues
    PARENT = "parent"  # "<lineage>:<round>" whose private rows this lineage begins with
    KEEP_ROUND = "keep-round"  # private state of this round, or of each in a list, must stay
    MEMORY_ROUND = "memory-round"  # of this node's last reply that was used: its client part goes on from there
    PRIVATE_ROUND = "private-round"  # evaluation: the round whose private state goes with the arrays
    PART = "part"  # "validation" | "test"
    SUMS = "sums"  # evaluation: return sums, not means
    BOOTSTRAP = "bootstrap"  # evaluation: number of bootstrap rows
    STATISTICS = "statistics"  # query: comma-separated names of additive statistics
    BASE_HASH = "base-hash"  # SHA-256 of what stays fixed in an adapted model; in answers, of what the node has
    CLIP_NORM = "clip-norm"  # bound on each user's delta, under user-level privacy
    COUNT_UNCLIPPED = "count-unclipped"  # whether "centred-unclipped" is to come with the deltas
    PROXIMAL_MU = "proximal-mu"  # FedProx's strength (the key that Flower's own FedProx sends)


class Said:
    """Keys of metrics and properties in replies."""

    WEIGHT = "weight"
    NUM_EXAMPLES = "num-examples"
    NUM_USERS = "num-users"
    LOSS = "loss"
    CENTRED = "centred-unclipped"  # sum over participants of (1 if his delta was within the bound, else 0) - 1/2
    ROUND = "server-round"
    PARTITION = "partition-id"
    CATALOG = "catalog-hash"
    MODEL = "model-hash"
    COHORT_SIZE = "cohort-size"
    QUARANTINED = "num-quarantined"
    VERSION = "fedrec-version"
    SCHEMA = "schema"


_LINEAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def checked_lineage(name: str) -> str:
    """Returns the name of a lineage, which becomes a folder on the node.

    Raises:
        ValueError: the name could leave that folder.
    """
    if not _LINEAGE.fullmatch(name) or ".." in name:
        raise ValueError(f"lineage {name!r}: 1 to 100 letters, digits, '.', '_' or '-' are allowed")
    return name


def to_record(arrays: Mapping[str, NDArray]) -> ArrayRecord:
    """Returns a record of named arrays, C-contiguous, in the order given."""
    # Not np.ascontiguousarray: it makes a 0-d array 1-d.
    return ArrayRecord({name: _array(np.asarray(array, order="C")) for name, array in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Returns the arrays of a record by name.

    Raises:
        ValueError: an array is not in Flower's numpy format, or cannot be read (pickled objects are refused).
    """
    return {name: _numpy(array) for name, array in record.items()}


def changed_rows(delta: NDArray, count: NDArray | None = None) -> NDArray[np.int32] | None:
    """Returns (k,) positions of the rows to send, increasing, or None where sending all rows takes no more bytes.

    Args:
        delta: (num_rows, ...) of a row parameter.
        count: (num_rows,) its weights by row, where they are sent too: rows with a positive one are sent.
    """
    changed = delta.reshape(len(delta), math.prod(delta.shape[1:])).any(axis=1)
    if count is not None:
        changed |= count > 0
    number = int(np.count_nonzero(changed))
    width = math.prod(delta.shape[1:]) + (count is not None)  # numbers a row, of 4 bytes each like a position
    if 4 * number * (width + 1) + _HEADER >= 4 * len(delta) * width:
        return None
    return np.flatnonzero(changed).astype(np.int32)


_HEADER = 128  # bytes that numpy's format puts before an array
_PLAIN = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([<|][biuf][1248])', 'fortran_order': False, 'shape': \(([0-9, ]*)\), \} *\n",
    re.S,
)


@lru_cache(maxsize=256)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Returns what numpy's format puts before a C-contiguous array."""
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(start, {"descr": dtype, "fortran_order": False, "shape": shape})
    return start.getvalue()


def _array(array: NDArray) -> Array:
    """Returns `Array(array)`, its bytes copied once and not three times."""
    if array.dtype.kind not in "biuf":
        return Array(array)
    data = b"".join((_header(array.dtype.str, array.shape), array.reshape(-1).view(np.uint8).data))
    return Array(str(array.dtype), array.shape, "numpy.ndarray", data)


def _numpy(array: Array) -> NDArray:
    """Returns what `array.numpy()` returns, in a tenth of the time for small ones: it goes into parsing headers."""
    found = _PLAIN.match(array.data) if array.stype == "numpy.ndarray" else None
    if found is None or found.end() != 10 + int.from_bytes(found[1], "little"):
        return array.numpy()
    shape = [int(size) for size in found[3].split(b",") if size.strip()]
    flat = np.frombuffer(array.data, found[2].decode(), math.prod(shape), found.end())
    return flat.reshape(shape).copy()


def num_bytes(content: RecordDict) -> int:
    """Returns the payload of a message, in bytes: arrays, metrics and config.

    Flower's own count raises over empty texts and lists, which any node may send.
    """
    return sum(
        record.count_bytes() if isinstance(record, ArrayRecord) else sum(map(_footprint, record.items()))
        for record in content.values()
        if isinstance(record, (ArrayRecord, MetricRecord, ConfigRecord))
    )


def _footprint(item: tuple[str, Any]) -> int:
    """Returns the bytes of a name and its value: numbers take 8."""
    name, value = item
    values = value if isinstance(value, list) else [value]
    sizes = (1 if isinstance(v, bool) else len(v) if isinstance(v, str | bytes) else 8 for v in values)
    return len(name) + sum(sizes)
