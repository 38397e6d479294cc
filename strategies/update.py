"""What a node returns, and the checks that keep one bad reply from hurting a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

from fedrec_app.records import ARRAYS, CONTROL, COUNT, DELTA, METRICS, ROWS, Arrays, Said, from_record

MAX_UNITS = 1e9
MAX_SCALAR = 1e100
"""Of a billion scalars no larger than this the sum is finite."""
MAX_DETAIL = 300
"""Characters of what a node says that are kept and logged."""


@dataclass(frozen=True)
class Update:
    """Sums over the units (users, or one pooled node) that a node trained; additive over nodes.

    `delta` and `count` return whole arrays. What adds updates up is better off with `UpdateSum`, which makes none.

    Attributes:
        arrays: "delta/<name>", the weighted sum of deltas, shaped like the parameter; "count/<name>", (num_rows,) the
            weights by row of a parameter that has a row an item. Where "rows/<name>" is there, (k,) positions, both
            have these k rows alone and all others are zero. "control/<name>", what a client part adds, shaped like the
            parameter.
        scalars: "weight" (sum of weights), "num-users", "num-examples", "loss" (sum over examples), and the sums of a
            client part.
        partition_id: which part of the users it comes from; stable, unlike Flower's node ids.
        base_round: the round whose parameters it started from.
        num_rows: how many rows a parameter has, of those with "rows/<name>".
    """

    arrays: Arrays
    scalars: dict[str, float]
    partition_id: int = 0
    base_round: int = 0
    num_rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        """Sum of the weights of the units behind the deltas."""
        return self.scalars[Said.WEIGHT]

    def scaled(self, factor: float) -> Update:
        """Returns the update with its deltas multiplied, everything else as it was."""
        arrays = {
            name: np.asarray(array * factor, dtype=array.dtype) if name.startswith(DELTA) else array
            for name, array in self.arrays.items()
        }
        return replace(self, arrays=arrays)

    def rows(self, name: str) -> NDArray[np.int32] | None:
        """Returns (k,) positions of the only rows of a parameter that are there, or None where all are."""
        return self.arrays.get(ROWS + name)

    def delta(self, name: str) -> NDArray:
        """Returns the weighted sum of deltas of a parameter."""
        return self._whole(self.arrays[DELTA + name], name)

    def count(self, name: str) -> NDArray | None:
        """Returns (num_rows,) weights by row, or None where the node was not asked to count."""
        count = self.arrays.get(COUNT + name)
        return None if count is None else self._whole(count, name)

    def _whole(self, array: NDArray, name: str) -> NDArray:
        rows = self.rows(name)
        if rows is None:
            return array
        whole = np.zeros((self.num_rows[name], *array.shape[1:]), dtype=array.dtype)
        whole[rows] = array
        return whole


@dataclass(frozen=True)
class Expected:
    """What a right reply looks like.

    Attributes:
        params: the parameters that were sent, by name.
        row_names: parameters with a row an item, which may come as some of their rows.
        counts: whether counts by row are asked for these.
        server_round: the round that was asked for.
        partitions: node id -> partition id of the nodes that were asked.
        max_weight: node id -> largest weight that the node may claim: what it said of itself in the roll-call, so a
            bound on changing one's story and not on lying from the start.
        scalars: further sums of numbers, none of them negative, that a client part sends.
        signed: further sums of numbers that may be negative.
        max_norm: node id -> largest L2 norm of the node's deltas over all parameters together; who is not named has
            none.
        controls: whether "control/<name>" arrays come beside the deltas.
        rounds: node id -> the round that this node was asked for, of those to whom `server_round` does not apply.
        lasting: whoever does not reply in this round may do so in a later one.
    """

    params: Arrays
    row_names: tuple[str, ...]
    counts: bool
    server_round: int
    partitions: Mapping[int, int]
    max_weight: Mapping[int, float]
    scalars: tuple[str, ...] = ()
    signed: tuple[str, ...] = ()
    max_norm: Mapping[int, float] = field(default_factory=dict)
    controls: bool = False
    rounds: Mapping[int, int] = field(default_factory=dict)
    lasting: bool = False

    def asked_round(self, node: int) -> int:
        """Returns the round that a node was asked for."""
        return self.rounds.get(node, self.server_round)


class BadReply(ValueError):
    """Why a reply is dropped: `reason` is a short key, the text says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Intake:
    """The replies of a round, one by one: valid updates are handed on, every other reply is counted by its reason.

    Never raises for what a node sent, and keeps of an update its scalars alone.

    Args:
        expected: what a right reply looks like.
        read: returns the update in a reply, or raises `BadReply`; `read_update` without it.

    Attributes:
        dropped: reason -> how many replies, or missing replies, were dropped for it.
        details: what was found in each of them.
        scalars: key -> what each valid update said.
        partitions: whose updates were valid, in the order of arrival.
        rejected: partition -> why its reply, or missing reply, was dropped.
    """

    def __init__(self, expected: Expected, read: Callable[[Message, Expected], Update] | None = None) -> None:
        self._open = read or read_update
        self.dropped: dict[str, int] = {}
        self.details: list[str] = []
        self.scalars: dict[str, list[float]] = {key: [] for key in (*_SCALARS, *expected.scalars, *expected.signed)}
        self.partitions: list[int] = []
        self.rejected: dict[int, str] = {}
        self._expected = expected
        self._seen: set[int] = set()

    def updates(self, replies: Iterable[Message]) -> Iterator[Update]:
        """Yields the valid updates in the order of arrival; after the last one, who did not reply is counted."""
        for update in map(self._read, replies):
            if update is None:
                continue
            self.partitions.append(update.partition_id)
            for key, values in self.scalars.items():
                values.append(update.scalars[key])
            yield update
        silent = set() if self._expected.lasting else set(self._expected.partitions) - self._seen
        for node in sorted(silent):
            self._drop("no-reply", f"partition {self._expected.partitions[node]} did not answer in time", node)

    def _read(self, message: Message) -> Update | None:
        node, partitions = message.metadata.src_node_id, self._expected.partitions
        try:
            if node not in partitions:
                raise BadReply("unknown-node", f"node {node} was not asked")
            if node in self._seen:
                raise BadReply("duplicate", f"partition {partitions[node]} replied twice")
            self._seen.add(node)
            return self._open(message, self._expected)
        except BadReply as error:
            self._drop(error.reason, f"node {node}: {error}", node)
            return None

    def _drop(self, reason: str, detail: str, node: int) -> None:
        if (partition := self._expected.partitions.get(node)) is not None:
            self.rejected[partition] = reason
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self.details.append(f"{reason}: {detail}"[:MAX_DETAIL])


def opened(message: Message, expected: Expected) -> tuple[Arrays, dict[str, float], int]:
    """Returns the arrays of a reply, whatever they are, its scalars and its partition.

    Raises:
        BadReply: the reply is an error, of another round, or not in the form of one.
    """
    if message.has_error():
        raise BadReply("error-reply", f"code {message.error.code}: {_one_line(message.error.reason or '')}")
    content = message.content
    record, metrics = content.get(ARRAYS), content.get(METRICS)
    if not isinstance(record, ArrayRecord) or not isinstance(metrics, MetricRecord):
        raise BadReply("wrong-records", f"records {sorted(content)} where '{ARRAYS}' and '{METRICS}' are expected")
    node = message.metadata.src_node_id
    asked_round = expected.asked_round(node)
    if metrics.get(Said.ROUND) != asked_round:
        raise BadReply("wrong-round", f"answers round {metrics.get(Said.ROUND)}, not {asked_round}")
    try:
        arrays = from_record(record)
    except Exception as error:  # whatever a hostile payload makes numpy raise
        raise BadReply("unreadable", _one_line(str(error))) from None
    scalars = _check_scalars(metrics, expected.max_weight.get(node, MAX_UNITS), expected)
    return arrays, scalars, expected.partitions[node]


def read_update(message: Message, expected: Expected) -> Update:
    """Returns the update in a reply.

    Raises:
        BadReply: the reply is an error, of another round, or not exactly what was asked for.
    """
    arrays, scalars, partition = opened(message, expected)
    _check_names(arrays, expected)
    num_rows = {}
    for name, param in expected.params.items():
        shape = param.shape
        if (rows := arrays.get(ROWS + name)) is not None:
            _check_rows(name, rows, len(param))
            num_rows[name], shape = len(param), (len(rows), *shape[1:])
        _check_array(DELTA + name, arrays[DELTA + name], shape, param.dtype)
        if (count := arrays.get(COUNT + name)) is not None:
            _check_array(COUNT + name, count, shape[:1], np.dtype(np.float32))
            _check_count(name, count, scalars[Said.WEIGHT])
        if (control := arrays.get(CONTROL + name)) is not None:
            _check_array(CONTROL + name, control, param.shape, param.dtype)
    _check_norm(arrays, expected.max_norm.get(message.metadata.src_node_id, math.inf))
    base_round = expected.asked_round(message.metadata.src_node_id) - 1
    return Update(arrays, scalars, partition, base_round, num_rows)


def _check_names(arrays: Arrays, expected: Expected) -> None:
    by_row = [name for name in expected.row_names if name in expected.params]
    needed = {DELTA + name for name in expected.params}
    if expected.counts:
        needed |= {COUNT + name for name in by_row}
    if expected.controls:
        needed |= {CONTROL + name for name in expected.params}
    if missing := sorted(needed - set(arrays)):
        raise BadReply("missing-array", f"no {', '.join(missing)}")
    if extra := sorted(set(arrays) - needed - {ROWS + name for name in by_row}):
        raise BadReply("extra-array", f"{', '.join(extra)} was not asked for")


def _check_rows(name: str, rows: NDArray, num_rows: int) -> None:
    if rows.ndim != 1:
        raise BadReply("wrong-shape", f"{ROWS + name} has shape {rows.shape}, not (k,)")
    if rows.dtype != np.int32:
        raise BadReply("wrong-dtype", f"{ROWS + name} is {rows.dtype}, not int32")
    if len(rows) and not 0 <= rows[0] <= rows[-1] < num_rows:
        raise BadReply("bad-rows", f"{ROWS + name} is {rows[0]} to {rows[-1]}: 0 to {num_rows - 1} is allowed")
    if not (rows[1:] > rows[:-1]).all():
        raise BadReply("bad-rows", f"{ROWS + name} is not strictly increasing")


def _check_array(key: str, array: NDArray, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if array.shape != shape:
        raise BadReply("wrong-shape", f"{key} has shape {array.shape}, not {shape}")
    if array.dtype != dtype:
        raise BadReply("wrong-dtype", f"{key} is {array.dtype}, not {dtype}")
    if not np.isfinite(array).all():
        raise BadReply("non-finite", f"{key} holds NaN or infinity")


def _check_count(name: str, count: NDArray, weight: float) -> None:
    if len(count) and not 0 <= count.min() <= count.max() <= weight * (1 + 1e-6):
        raise BadReply(
            "bad-count", f"{COUNT + name} is {count.min()} to {count.max()}: 0 to the weight {weight} is allowed"
        )


def _check_norm(arrays: Arrays, largest: float) -> None:
    if largest == math.inf:
        return
    squares = (np.sum(np.square(a, dtype=np.float64)) for name, a in arrays.items() if name.startswith(DELTA))
    norm = math.sqrt(math.fsum(map(float, squares)))
    if norm > largest:
        raise BadReply("too-long", f"its deltas have norm {norm:.6g}, those of its users cannot exceed {largest:.6g}")


_SCALARS = (Said.WEIGHT, Said.NUM_USERS, Said.NUM_EXAMPLES, Said.LOSS)


def _check_scalars(metrics: Mapping[str, object], max_weight: float, expected: Expected) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for key in (*_SCALARS, *expected.scalars, *expected.signed):
        value = metrics.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_SCALAR:
            raise BadReply("bad-scalar", f"{key} is {value!r}: a number up to {MAX_SCALAR:.0e} is expected")
        scalars[key] = float(value)
        if key in expected.scalars and value < 0:
            raise BadReply("bad-scalar", f"{key} is {value!r}: a sum of numbers that are not negative is expected")
    for key in (Said.WEIGHT, Said.NUM_USERS, Said.NUM_EXAMPLES):
        if not 0 <= scalars[key] <= MAX_UNITS:
            raise BadReply("bad-weight", f"{key} is {scalars[key]}: 0 to {MAX_UNITS:.0e} is allowed")
    if scalars[Said.WEIGHT] > max_weight * (1 + 1e-6):
        raise BadReply("bad-weight", f"weight {scalars[Said.WEIGHT]} is more than the {max_weight} of the roll-call")
    return scalars


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "no reason given")[:300]
