"""Nodes for the conformance kit: they answer the roll-call, train as they are told, and may lie."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedrec_app.client_part import ClientPart
from fedrec_app.records import (
    ARRAYS,
    CONFIG,
    CONTROL,
    COUNT,
    DELTA,
    METRICS,
    ROWS,
    SCHEMA,
    Arrays,
    Ask,
    Said,
    to_record,
)
from fedrec_app.seeding import rng
from strategies.update import Update

TABLE = "table"
PARAMS: Arrays = {
    TABLE: (np.arange(18, dtype=np.float32).reshape(6, 3) - 9) / 8,
    "bias": np.array([0.5, -0.25, 0.0, 2.0], dtype=np.float32),
    "scale": np.array(1.5, dtype=np.float32),
    "empty": np.zeros((0, 3), dtype=np.float32),
}
UNITS = 1000
"""How many users, each with one example, every node says that it has: the largest weight that it may claim."""

Answer = Callable[[Message], list[Message]]


def enter_run() -> None:
    """Makes messages possible outside of a run, which Flower otherwise refuses to create."""
    if TaskIdentity._run_id is None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def drawn(label: int, weight: float = 2.0, params: Arrays = PARAMS) -> Update:
    """Returns an update that depends on the label alone: multiples of 1/4, so that float32 adds it up exactly.

    Of the item table those with an odd label have the trained rows alone.

    Args:
        label: of the stream; two thirds of the rows of the item table are trained, which ones depends on it too.
        weight: of the one unit behind it.
        params: parameters that it moves.
    """
    generator = rng(0, "conformance", label)
    arrays: Arrays = {}
    for name, param in params.items():
        delta = np.asarray(generator.integers(-8, 9, size=param.shape) / 4)
        if name == TABLE:
            trained = (np.arange(len(param)) + label) % 3 != 0
            delta *= trained[:, None]
            arrays[COUNT + name] = (weight * trained).astype(np.float32)
        arrays[DELTA + name] = np.asarray(weight * delta, dtype=param.dtype)
        arrays[CONTROL + name] = np.asarray(weight * generator.integers(-8, 9, size=param.shape) / 4, dtype=param.dtype)
    update = Update(arrays, _scalars(weight), label)
    return trained_rows(update) if label % 2 else update


def times(update: Update, factor: float) -> Update:
    """Returns an update whose deltas are multiplied; by a power of two that changes no digit of them."""
    arrays = {n: (a * a.dtype.type(factor) if n.startswith(DELTA) else a) for n, a in update.arrays.items()}
    return replace(update, arrays={name: np.asarray(array) for name, array in arrays.items()})


def level(label: int, weight: float, sum_of_deltas: float) -> Update:
    """Returns an update in which every number of every weighted sum of deltas is the same.

    Args:
        label: of the stream that everything else is drawn from.
        weight: of the one unit behind it.
        sum_of_deltas: the number, which float32 can hold.
    """
    update = whole(drawn(label, weight))
    arrays = {n: np.full_like(a, sum_of_deltas) if n.startswith(DELTA) else a for n, a in update.arrays.items()}
    return replace(update, arrays=arrays)


def whole(update: Update) -> Update:
    """Returns the update with all rows of the item table."""
    if update.rows(TABLE) is None:
        return update
    arrays = {name: array for name, array in update.arrays.items() if name != ROWS + TABLE}
    arrays[DELTA + TABLE] = update.delta(TABLE)
    if (count := update.count(TABLE)) is not None:
        arrays[COUNT + TABLE] = count
    return replace(update, arrays=arrays, num_rows={})


def trained_rows(update: Update) -> Update:
    """Returns the update with those rows of the item table alone that somebody trained, and none that stayed zero."""
    arrays = dict(whole(update).arrays)
    if DELTA + TABLE not in arrays:
        return update
    table, count = arrays[DELTA + TABLE], arrays.get(COUNT + TABLE)
    rows = np.flatnonzero(table.any(axis=1) if count is None else table.any(axis=1) | (count > 0)).astype(np.int32)
    arrays[ROWS + TABLE], arrays[DELTA + TABLE] = rows, table[rows]
    if count is not None:
        arrays[COUNT + TABLE] = count[rows]
    return replace(update, arrays=arrays, num_rows={TABLE: len(table)})


def without_change(update: Update, weight: float) -> Update:
    """Returns an update of this weight whose deltas are zero."""
    kept = {
        name: array if name.startswith(ROWS) else np.full_like(array, weight if name.startswith(COUNT) else 0.0)
        for name, array in update.arrays.items()
    }
    return replace(update, arrays=kept, scalars=_scalars(weight))


def added(one: Update, other: Update) -> Update:
    """Returns both updates as one node would send them: updates are additive."""
    arrays = {name: np.asarray(array + whole(other).arrays[name]) for name, array in whole(one).arrays.items()}
    return Update(arrays, {key: one.scalars[key] + other.scalars[key] for key in one.scalars}, one.partition_id)


def asked_for(update: Update, weighting: str, part: type[ClientPart] | None, names: Iterable[str]) -> Update:
    """Returns a copy with what a node sends that was given these parameters: counts only where rows are weighted, and
    what its client part adds: controls, and for each scalar twice the weight.

    Args:
        update: to be copied.
        weighting, part: of the strategy.
        names: of the parameters.
    """
    kinds = {DELTA, ROWS}
    if weighting == "rows":
        kinds.add(COUNT)
    if part is not None and part.has_controls:
        kinds.add(CONTROL)
    wanted = {kind + name for name in names for kind in kinds}
    arrays = {name: array.copy() for name, array in update.arrays.items() if name in wanted}
    more = dict.fromkeys(part.scalars if part else (), 2 * update.weight)
    return replace(update, arrays=arrays, scalars={**update.scalars, **more})


def contents(message: Message, update: Update) -> tuple[Arrays, dict[str, Any]]:
    """Returns the arrays and metrics of an honest reply to a training message."""
    received = message.content.array_records[ARRAYS]
    config = message.content.config_records[CONFIG]
    sent = asked_for(update, str(config.get(Ask.WEIGHTING, "examples")), None, received)
    if any(name.startswith(CONTROL) for name in received):
        sent.arrays.update({name: update.arrays[name] for name in received if name in update.arrays})
    sent.scalars.update(dict.fromkeys(filter(None, str(config.get(_SCALARS, "")).split(",")), 2 * update.weight))
    arrays = {}
    for name, array in sent.arrays.items():
        param = received.get(name.removeprefix(DELTA))
        if param is not None:
            shape = param.shape if sent.rows(name.removeprefix(DELTA)) is None else (len(array), *param.shape[1:])
            array = array.reshape(shape).astype(param.dtype)
        arrays[name] = array
    return arrays, {**sent.scalars, Said.ROUND: config[Ask.ROUND]}


def reply_to(message: Message, arrays: Arrays, said: Mapping[str, Any]) -> Message:
    """Returns a training reply with these arrays and metrics."""
    return Message(RecordDict({ARRAYS: to_record(arrays), METRICS: MetricRecord(dict(said))}), reply_to=message)


def error_to(message: Message) -> Message:
    """Returns what comes back from a node that raised."""
    return Message(Error(2, "Traceback ...\nValueError: broken"), reply_to=message)


def honest(update: Update) -> Answer:
    """Returns how a node answers that trained to this update."""
    return lambda message: [reply_to(message, *contents(message, update))]


def silent(message: Message) -> list[Message]:
    """How a node answers that does not answer."""
    return []


_SCALARS = "scalars-of-the-client-part"
"""A key that the kit adds to the config of a training message: its nodes do not run the strategy's client part."""


class Nodes(Grid):
    """A grid of nodes with partitions 0, 1, ... that answer the roll-call honestly and training as `answers` says.

    Args:
        answers: how each node answers a training message, in the order of partitions.
        ids: node id of each partition; 101, 102, ... without it.
        part: the strategy's client part, for what it adds to honest answers.
    """

    def __init__(
        self, answers: Sequence[Answer], ids: Sequence[int] | None = None, part: type[ClientPart] | None = None
    ) -> None:
        enter_run()
        self.answers = list(answers)
        self._scalars = ",".join(part.scalars) if part else ""
        self._ids = itertools.count(1)
        self._replies: dict[str, list[Message]] = {}
        self.partitions = {node: p for p, node in enumerate(ids or range(101, 101 + len(answers)))}

    def set_run(self, run: Run) -> None:
        """Does nothing: there is one run."""

    @property
    def run(self) -> Run:
        """The one run of this grid."""
        return Run.create_empty(1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Returns a message; `Message(...)` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Returns the ids of all nodes."""
        return list(self.partitions)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Returns the ids of messages, which the nodes answer at once."""
        pushed = []
        for message in messages:
            message_id = message.metadata.__dict__["_message_id"] = str(next(self._ids))
            self._replies[message_id] = self._handle(message)
            pushed.append(message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies to these messages that were not pulled yet."""
        return [reply for message_id in message_ids for reply in self._replies.pop(message_id, [])]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Returns every reply, in the order of the messages."""
        return [reply for message in messages for reply in self._handle(message)]

    def _handle(self, message: Message) -> list[Message]:
        partition = self.partitions[message.metadata.dst_node_id]
        if message.metadata.message_type == MessageType.QUERY:
            said = {
                Said.PARTITION: partition,
                "num-partitions": len(self.partitions),
                Said.NUM_USERS: UNITS,
                Said.NUM_EXAMPLES: UNITS,
                Said.QUARANTINED: 0,
                Said.COHORT_SIZE: 1_000_000,
                Said.CATALOG: "",
                Said.MODEL: "",
                Said.SCHEMA: SCHEMA,
            }
            return [Message(RecordDict({CONFIG: ConfigRecord(said)}), reply_to=message)]
        if self._scalars:
            message.content.config_records[CONFIG][_SCALARS] = self._scalars
        return self.answers[partition](message)


def _scalars(weight: float) -> dict[str, float]:
    return {Said.WEIGHT: weight, Said.NUM_USERS: weight, Said.NUM_EXAMPLES: weight, Said.LOSS: 0.5 * weight}
