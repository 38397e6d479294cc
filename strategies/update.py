"""What a node returns, and the checks that keep one bad reply from hurting a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fedrec_app.records import ARRAYS, COUNT, DELTA, METRICS, Arrays, Said, from_record

MAX_UNITS = 1e9
MAX_DETAIL = 300
"""Characters of what a node says that are kept and logged."""


@dataclass(frozen=True)
class Update:
    """Sums over the units (users, or one pooled node) that a node trained; additive over nodes.

    Attributes:
        arrays: "delta/<name>", the weighted sum of deltas, shaped like the parameter; "count/<name>", (num_rows,) the
            weights by row of a parameter that has a row an item.
        scalars: "weight" (sum of weights), "num-users", "num-examples", "loss" (sum over examples).
        partition_id: which part of the users it comes from; stable, unlike Flower's node ids.
        base_round: the round whose parameters it started from.
    """

    arrays: Arrays
    scalars: dict[str, float]
    partition_id: int = 0
    base_round: int = 0

    @property
    def weight(self) -> float:
        """Sum of the weights of the units behind the deltas."""
        return self.scalars[Said.WEIGHT]

    def delta(self, name: str) -> NDArray:
        """Returns the weighted sum of deltas of a parameter."""
        return self.arrays[DELTA + name]

    def count(self, name: str) -> NDArray | None:
        """Returns (num_rows,) weights by row, or None where the node was not asked to count."""
        return self.arrays.get(COUNT + name)


@dataclass(frozen=True)
class Expected:
    """What a right reply looks like.

    Attributes:
        params: the parameters that were sent, by name.
        row_names: parameters for which counts by row are asked.
        server_round: the round that was asked for.
        partitions: node id -> partition id of the nodes that were asked.
        max_weight: node id -> largest weight that the node may claim: what it said of itself in the roll-call, so a
            bound on changing one's story and not on lying from the start.
    """

    params: Arrays
    row_names: tuple[str, ...]
    server_round: int
    partitions: Mapping[int, int]
    max_weight: Mapping[int, float]


@dataclass
class Replies:
    """Replies of a round: the good ones in the order of partitions, and how many were dropped for which reason."""

    updates: list[Update] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)

    def drop(self, reason: str, detail: str) -> None:
        """Counts one reply, or one missing reply, as dropped."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self.details.append(f"{reason}: {detail}"[:MAX_DETAIL])


class BadReply(ValueError):
    """Why a reply is dropped: `reason` is a short key, the text says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def collect(messages: Iterable[Message], expected: Expected) -> Replies:
    """Returns the valid updates of a round, sorted by partition, with every other reply counted by reason.

    Never raises for what a node sent.
    """
    replies = Replies()
    seen: set[int] = set()
    for message in messages:
        node = message.metadata.src_node_id
        try:
            if node not in expected.partitions:
                raise BadReply("unknown-node", f"node {node} was not asked")
            if node in seen:
                raise BadReply("duplicate", f"partition {expected.partitions[node]} replied twice")
            seen.add(node)
            replies.updates.append(read_update(message, expected))
        except BadReply as error:
            replies.drop(error.reason, f"node {node}: {error}")
    for node in sorted(set(expected.partitions) - seen):
        replies.drop("no-reply", f"partition {expected.partitions[node]} did not answer in time")
    replies.updates.sort(key=lambda update: update.partition_id)
    return replies


def read_update(message: Message, expected: Expected) -> Update:
    """Returns the update in a reply.

    Raises:
        BadReply: the reply is an error, of another round, or not exactly what was asked for.
    """
    if message.has_error():
        raise BadReply("error-reply", f"code {message.error.code}: {_one_line(message.error.reason or '')}")
    content = message.content
    if ARRAYS not in content.array_records or METRICS not in content.metric_records:
        raise BadReply("wrong-records", f"records {sorted(content)} where '{ARRAYS}' and '{METRICS}' are expected")
    metrics = content.metric_records[METRICS]
    if metrics.get(Said.ROUND) != expected.server_round:
        raise BadReply("wrong-round", f"answers round {metrics.get(Said.ROUND)}, not {expected.server_round}")
    try:
        arrays = from_record(content.array_records[ARRAYS])
    except Exception as error:  # whatever a hostile payload makes numpy raise
        raise BadReply("unreadable", _one_line(str(error))) from None
    node = message.metadata.src_node_id
    scalars = _check_scalars(metrics, expected.max_weight.get(node, MAX_UNITS))
    _check_arrays(arrays, expected, scalars[Said.WEIGHT])
    return Update(arrays, scalars, expected.partitions[node], expected.server_round - 1)


def _check_arrays(arrays: Arrays, expected: Expected, weight: float) -> None:
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        DELTA + name: (array.shape, array.dtype) for name, array in expected.params.items()
    }
    for name in expected.row_names:
        shapes[COUNT + name] = (expected.params[name].shape[:1], np.dtype(np.float32))
    if missing := sorted(set(shapes) - set(arrays)):
        raise BadReply("missing-array", f"no {', '.join(missing)}")
    if extra := sorted(set(arrays) - set(shapes)):
        raise BadReply("extra-array", f"{', '.join(extra)} was not asked for")
    for name, (shape, dtype) in shapes.items():
        array = arrays[name]
        if array.shape != shape:
            raise BadReply("wrong-shape", f"{name} has shape {array.shape}, not {shape}")
        if array.dtype != dtype:
            raise BadReply("wrong-dtype", f"{name} is {array.dtype}, not {dtype}")
        if not np.isfinite(array).all():
            raise BadReply("non-finite", f"{name} holds NaN or infinity")
        if name.startswith(COUNT) and len(array) and not 0 <= array.min() <= array.max() <= weight * (1 + 1e-6):
            raise BadReply(
                "bad-count", f"{name} is {array.min()} to {array.max()}: 0 to the weight {weight} is allowed"
            )


def _check_scalars(metrics: Mapping[str, object], max_weight: float) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for key in (Said.WEIGHT, Said.NUM_USERS, Said.NUM_EXAMPLES, Said.LOSS):
        value = metrics.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise BadReply("bad-scalar", f"{key} is {value!r}: a finite number is expected")
        scalars[key] = float(value)
    for key in (Said.WEIGHT, Said.NUM_USERS, Said.NUM_EXAMPLES):
        if not 0 <= scalars[key] <= MAX_UNITS:
            raise BadReply("bad-weight", f"{key} is {scalars[key]}: 0 to {MAX_UNITS:.0e} is allowed")
    if scalars[Said.WEIGHT] > max_weight * (1 + 1e-6):
        raise BadReply("bad-weight", f"weight {scalars[Said.WEIGHT]} is more than the {max_weight} of the roll-call")
    return scalars


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "no reason given")[:300]
