"""The message schema: what travels between ServerApp and ClientApp, in one place.

to the node     arrays  ArrayRecord   shared parameters by name
                config  ConfigRecord  keys of `Ask`
training reply  arrays  ArrayRecord   "delta/<name>", "count/<name>" (asked for deltas) or parameters by name
                metrics MetricRecord  scalars; "num-examples" is the weight that stock strategies use
evaluation      arrays  ArrayRecord   "eval/<...>" sums (asked for sums), else none
                metrics MetricRecord
query           arrays  ArrayRecord   "stat/<...>" (asked for statistics), else none
                config  ConfigRecord  properties of the node
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

Arrays = dict[str, NDArray]

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"

DELTA, COUNT, EVAL, STAT = "delta/", "count/", "eval/", "stat/"


class Ask:
    """Keys of the config that a message carries; every one may be absent (stock strategies send two of them)."""

    ROUND = "server-round"
    UPDATE = "update"  # "delta": sums of weighted deltas; absent: parameters
    WEIGHTING = "weighting"  # "examples" | "users" | "uniform" | "rows"
    LINEAGE = "lineage"  # name of the line of private states that the run continues
    KEEP_ROUND = "keep-round"  # private state of this round must stay
    PRIVATE_ROUND = "private-round"  # evaluation: the round whose private state goes with the arrays
    PART = "part"  # "validation" | "test"
    SUMS = "sums"  # evaluation: return sums, not means
    BOOTSTRAP = "bootstrap"  # evaluation: number of bootstrap rows
    STATISTICS = "statistics"  # query: comma-separated names of additive statistics
    PROXIMAL_MU = "proximal-mu"  # FedProx's strength (the key that Flower's own FedProx sends)


class Said:
    """Keys of metrics and properties in replies."""

    WEIGHT = "weight"
    NUM_EXAMPLES = "num-examples"
    NUM_USERS = "num-users"
    LOSS = "loss"
    ROUND = "server-round"
    PARTITION = "partition-id"
    CATALOG = "catalog-hash"
    MODEL = "model-hash"
    COHORT_SIZE = "cohort-size"
    QUARANTINED = "num-quarantined"
    VERSION = "fedrec-version"


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
    return ArrayRecord({name: Array(np.asarray(array, order="C")) for name, array in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Returns the arrays of a record by name.

    Raises:
        ValueError: an array is not in Flower's numpy format, or cannot be read (pickled objects are refused).
    """
    return {name: array.numpy() for name, array in record.items()}


def num_bytes(content: RecordDict) -> int:
    """Returns the payload of a message, in bytes: arrays, metrics and config."""
    return sum(
        record.count_bytes()
        for record in content.values()
        if isinstance(record, (ArrayRecord, MetricRecord, ConfigRecord))
    )
