"""What a hostile SuperNode says: by name, each with the reason that the server drops it for."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from fedrec_app.records import ARRAYS, CONFIG, DELTA, EVAL, METRICS, Arrays, Ask, Said, from_record, to_record
from tests.e2e.hostile_supernode import Sent

EXAMPLES = 100
USERS = 10
OVERSIZED = 200_000_000
"""Bytes of an array that nobody asked for."""


@dataclass(frozen=True)
class Lie:
    """One lie.

    Attributes:
        tell: returns what is sent, given the message and what an honest node would have said.
        reason: that it is dropped for, or several that would do.
    """

    tell: Callable[[Message, Arrays, dict[str, Any]], list[Sent]]
    reason: str | tuple[str, ...]


def _sent(asked: Message, arrays: Arrays | ArrayRecord, said: Mapping[str, Any], **more: Any) -> list[Sent]:
    record = arrays if isinstance(arrays, ArrayRecord) else to_record(arrays)
    return [Sent.of(Message(RecordDict({ARRAYS: record, METRICS: MetricRecord(dict(said)), **more}), reply_to=asked))]


def _arrays(change: Callable[[Arrays], Any]) -> Callable[[Message, Arrays, dict[str, Any]], list[Sent]]:
    """Returns how to answer with the arrays changed."""

    def tell(asked: Message, arrays: Arrays, said: dict[str, Any]) -> list[Sent]:
        change(arrays)
        return _sent(asked, arrays, said)

    return tell


def _said(**changes: Any) -> Callable[[Message, Arrays, dict[str, Any]], list[Sent]]:
    """Returns how to answer with other scalars; None takes one away."""

    def tell(asked: Message, arrays: Arrays, said: dict[str, Any]) -> list[Sent]:
        merged = {**said, **{key.replace("_", "-"): value for key, value in changes.items()}}
        return _sent(asked, arrays, {key: value for key, value in merged.items() if value is not None})

    return tell


def _first(arrays: Arrays) -> str:
    return next(name for name in sorted(arrays) if arrays[name].ndim == 2)


def _with(arrays: Arrays, value: Any) -> None:
    arrays[_first(arrays)].flat[0] = value


def _raw(data: bytes, dtype: str = "float32", shape: tuple[int, ...] = (1,), stype: str = "numpy.ndarray") -> Any:
    """Returns how to answer with an array of these bytes in the place of the first one."""

    def tell(asked: Message, arrays: Arrays, said: dict[str, Any]) -> list[Sent]:
        record = to_record(arrays)
        return _sent(asked, ArrayRecord({**record, _first(arrays): Array(dtype, shape, stype, data)}), said)

    return tell


def _pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


def _claims(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def _nan(asked: Message, arrays: Arrays, said: dict[str, Any]) -> Sent:
    _with(arrays, np.nan)
    return _sent(asked, arrays, said)[0]


def _twice(asked: Message, arrays: Arrays, said: dict[str, Any]) -> list[Sent]:
    return [_nan(asked, arrays, said), *_sent(asked, arrays, {**said, Said.LOSS: 2.0})]


def _garbled(kind: bytes, change: Callable[[bytes], bytes]) -> Any:
    def tell(asked: Message, arrays: Arrays, said: dict[str, Any]) -> list[Sent]:
        return [_sent(asked, arrays, said)[0].replaced(change, kind)]

    return tell


def _body(content: bytes, body: bytes) -> bytes:
    """Returns an object whose head says that it is what it was, and whose body is another."""
    head = content[: content.index(b"\x00")].split(b" ")
    return b" ".join([*head[:-1], str(len(body)).encode()]) + b"\x00" + body


def _kind(content: bytes, kind: bytes) -> bytes:
    head, _, body = content.partition(b"\x00")
    return b" ".join([kind, *head.split(b" ")[1:]]) + b"\x00" + body


def _never_sent(asked: Message, arrays: Arrays, said: dict[str, Any]) -> list[Sent]:
    sent = _sent(asked, arrays, said)[0]
    sent.withheld = set(sent.objects) - {sent.tree.object_id}
    return [sent]


def _in_the_name_of(node: Callable[[Message], int]) -> Any:
    """Returns how to answer so that the reply names another sender than the envelope."""

    def tell(asked: Message, arrays: Arrays, said: dict[str, Any]) -> list[Sent]:
        reply = _sent(asked, arrays, said)[0].message
        inner = Message(reply.content, reply_to=asked)
        inner.metadata.__dict__["_src_node_id"] = node(asked)
        return [_enveloped(reply, inner)]

    return tell


def _to_another(asked: Message, arrays: Arrays, said: dict[str, Any]) -> list[Sent]:
    reply = _sent(asked, arrays, said)[0].message
    inner = Message(reply.content, reply_to=asked)
    inner.metadata.__dict__["_reply_to_message_id"] = "0" * 64
    return [_enveloped(reply, inner)]


def _enveloped(reply: Message, inner: Message) -> Sent:
    """Returns the objects of one message under the envelope of another."""
    sent = Sent.of(inner)
    reply.metadata.__dict__["_message_id"] = sent.tree.object_id
    return Sent(reply, sent.tree, sent.objects)


def _deep(asked: Message, arrays: Arrays, said: dict[str, Any]) -> list[Sent]:
    """A tree of objects in objects, deeper than Flower's own messages are."""
    sent = _nan(asked, arrays, said)
    tree = sent.tree
    for _ in range(60):
        tree = ObjectTree(object_id=tree.object_id, children=[tree])
    return [Sent(sent.message, tree, sent.objects)]


def _other_tree(asked: Message, arrays: Arrays, said: dict[str, Any]) -> list[Sent]:
    """A tree that is not the message's."""
    sent = _sent(asked, arrays, said)[0]
    return [Sent(sent.message, ObjectTree(object_id="f" * 64), sent.objects)]


def _many(asked: Message, arrays: Arrays, said: dict[str, Any]) -> list[Sent]:
    tiny = {f"delta/{number}": np.full(1, number, dtype=np.float32) for number in range(200)}
    return _sent(asked, {**arrays, **tiny}, said)


def _unasked(asked: Message, arrays: Arrays, said: dict[str, Any]) -> list[Sent]:
    """A message in the SuperLink's own name, to the SuperLink, which nobody asked for; then nothing."""
    reply = _sent(asked, arrays, said)[0].message
    about = reply.metadata.__dict__
    about.update(_reply_to_message_id="", _src_node_id=1, _dst_node_id=1)
    return [Sent.of(reply)]


_EMPTY: dict[str, Any] = {"": ConfigRecord({"": "", "a": [], "b": b""}), "more": MetricRecord({"": []})}
TRAIN: dict[str, Lie] = {
    "NaN": Lie(_arrays(lambda a: _with(a, np.nan)), "non-finite"),
    "infinity": Lie(_arrays(lambda a: _with(a, np.inf)), "non-finite"),
    "a wrong shape": Lie(_arrays(lambda a: a.update({_first(a): a[_first(a)][:-1]})), "wrong-shape"),
    "a shape that would broadcast": Lie(_arrays(lambda a: a.update({_first(a): a[_first(a)][:1]})), "wrong-shape"),
    "a wrong dtype": Lie(_arrays(lambda a: a.update({_first(a): a[_first(a)].astype(np.float64)})), "wrong-dtype"),
    "a missing array": Lie(_arrays(lambda a: a.pop(_first(a))), "missing-array"),
    "an extra array": Lie(_arrays(lambda a: a.update({"delta/extra": np.ones(3, dtype=np.float32)})), "extra-array"),
    "a negative weight": Lie(_said(weight=-1.0), "bad-weight"),
    "a huge weight": Lie(_said(weight=1e12), "bad-weight"),
    "a weight above that of the roll-call": Lie(_said(weight=2.0 * EXAMPLES * USERS), "bad-weight"),
    "a weight of NaN": Lie(_said(weight=math.nan), "bad-scalar"),
    "a list for a weight": Lie(_said(weight=[1.0, 2.0]), "bad-scalar"),
    "an empty list for a weight": Lie(_said(weight=[]), "bad-scalar"),
    "no weight": Lie(_said(weight=None), "bad-scalar"),
    "another round": Lie(_said(server_round=1_000), "wrong-round"),
    "two replies": Lie(_twice, "non-finite"),
    "an error": Lie(lambda m, a, s: [Sent.of(Message(Error(2, "x" * 5000), reply_to=m))], "error-reply"),
    "empty records": Lie(lambda m, a, s: _sent(m, {}, {}, **_EMPTY), "wrong-round"),
    "no records": Lie(lambda m, a, s: [Sent.of(Message(RecordDict(), reply_to=m))], "wrong-records"),
    "silence": Lie(lambda m, a, s: [], "no-reply"),
    "a pickled object": Lie(_raw(_pickled(), "object"), "unreadable"),
    "four billion numbers that are not there": Lie(_raw(_claims("(4000000000,)"), shape=(4 * 10**9,)), "unreadable"),
    "a negative length": Lie(_raw(_claims("(-1,)")), "unreadable"),
    "another way to write arrays": Lie(_raw(b"x", stype="pickle"), "unreadable"),
    "bytes that are no array": Lie(_raw(b"\x93NUMPY\x01\x00garbage"), "unreadable"),
    "a garbled record": Lie(_garbled(b"ArrayRecord", lambda c: _body(c, b"\xff" * 40)), "error-reply"),
    "a garbled message": Lie(_garbled(b"Message", lambda c: _body(c, b"\xff" * 40)), "error-reply"),
    # The SuperLink itself does not take it, so that it never comes.
    "an object of no kind": Lie(
        _garbled(b"ArrayRecord", lambda c: _kind(c, b"Nonsense")), ("error-reply", "no-reply")
    ),
    "a message for a record": Lie(_garbled(b"ArrayRecord", lambda c: _kind(c, b"MetricRecord")), "error-reply"),
    "the name of another node": Lie(_in_the_name_of(lambda m: 12345), "error-reply"),
    # The SuperLink may notice, and answers for the node.
    "an answer to another message": Lie(_to_another, ("no-reply", "error-reply")),
    "a message that nobody asked for": Lie(_unasked, ("no-reply", "error-reply")),
    "a deep tree": Lie(_deep, ("non-finite", "error-reply", "no-reply")),
    "another message's tree": Lie(_other_tree, ("error-reply", "no-reply")),
    "two hundred tiny arrays": Lie(_many, ("extra-array", "no-reply")),
    "an oversized array": Lie(
        # Drawn, as Flower sends equal parts of an array once.
        _arrays(lambda a: a.update({_first(a): np.random.default_rng(0).random(OVERSIZED // 4, dtype=np.float32)})),
        ("wrong-shape", "no-reply"),
    ),
    "parts that never come": Lie(_never_sent, "no-reply"),
}  # fmt: skip


def _judged(**changes: Any) -> Callable[[Message, Arrays, dict[str, Any]], list[Sent]]:
    """Returns how to answer an evaluation, with sums as an honest node of these users sends them, changed."""

    def tell(asked: Message, arrays: Arrays, said: dict[str, Any]) -> list[Sent]:
        users = int(changes.get("users", USERS))
        names = changes.get("names", b"ndcg@10")
        value = changes.get("value", 0.5 * users)
        found = {
            "names": np.frombuffer(names, dtype=np.uint8), "sums": np.array([[value, float(users)]]),
            "item_counts": np.zeros(changes.get("items", 80), dtype=np.int64),
            "counts": np.array(changes.get("counts", [users, 0, users, 0, 10]), dtype=np.int64),
        }  # fmt: skip
        for name in changes.get("without", ()):
            del found[name]
        told = {**said, Said.ROUND: changes.get("round", said[Said.ROUND])}
        return _sent(asked, {EVAL + name: array for name, array in found.items()}, told)

    return tell


EVALUATE: dict[str, Lie] = {
    "sums of NaN": Lie(_judged(value=math.nan), "dropped"),
    "sums above their users": Lie(_judged(value=1e6), "dropped"),
    "more users than there are": Lie(_judged(users=10**9), "dropped"),
    "counts near the end of int64": Lie(_judged(counts=[2**63 - 1, 0, 2**63 - 1, 0, 10]), "dropped"),
    "names that are no text": Lie(_judged(names=b"\xff\xfe"), "dropped"),
    "other metrics": Lie(_judged(names=b"mine"), "dropped"),
    "no sums": Lie(_judged(without=["sums"]), "dropped"),
    "a judgement of another round": Lie(_judged(round=99), "dropped"),
    "an error for a judgement": Lie(lambda m, a, s: [Sent.of(Message(Error(2, ""), reply_to=m))], "dropped"),
    "a judgement that is garbled": Lie(
        lambda m, a, s: [_judged()(m, a, s)[0].replaced(lambda c: _body(c, b"\xff" * 40), b"ArrayRecord")], "dropped"
    ),
}

QUERY: dict[str, dict[str, Any]] = {
    "a huge count": {Said.NUM_EXAMPLES: 10**15},
    "a count of NaN": {Said.NUM_USERS: math.nan},
    # By then the node that it belongs to has answered: before, whoever comes first has it.
    "a partition that is taken": {Said.PARTITION: 0},
    "a text for a number": {Said.COHORT_SIZE: "ten"},
    "a negative partition": {Said.PARTITION: -1},
    "another model": {Said.MODEL: "0" * 64},
    "no catalog": {Said.CATALOG: None},
}
"""What is told in the place of the truth, each of which gets a node refused."""


class Liar:
    """Tells its lies one after the other.

    Args:
        honest: "properties" for the roll-call, and "train", "evaluate" and "query": names of lies, in order; when there
            are none left it is silent, or, at the roll-call, honest.
    """

    def __init__(self, honest: Mapping[str, Any]) -> None:
        self._left = {kind: list(honest.get(kind, ())) for kind in ("train", "evaluate", "query")}
        self._properties = dict(honest["properties"])

    def answers(self, asked: Message) -> tuple[str, list[Sent]]:
        """Returns the name of a lie and what is sent."""
        kind = asked.metadata.message_type.split(".")[0]
        name = self._left[kind].pop(0) if self._left.get(kind) else ""
        if kind == "query":
            told = {**self._properties, **QUERY.get(name, {})}
            content = {CONFIG: ConfigRecord({key: value for key, value in told.items() if value is not None})}
            return name, [Sent.of(Message(RecordDict(content), reply_to=asked))]
        config = asked.content.config_records[CONFIG]
        said: dict[str, Any] = {Said.ROUND: int(config[Ask.ROUND])}
        if not name:
            return name, [Sent.of(Message(Error(2, "no lie is left"), reply_to=asked))]
        if kind == "evaluate":
            return name, EVALUATE[name].tell(asked, {}, said)
        params = from_record(asked.content.array_records[ARRAYS])
        arrays = {DELTA + key: np.full(array.shape, 100.0, dtype=array.dtype) for key, array in params.items()}
        said |= {Said.WEIGHT: 1.0, Said.NUM_USERS: USERS, Said.NUM_EXAMPLES: EXAMPLES, Said.LOSS: 1.0}
        return name, TRAIN[name].tell(asked, arrays, said)
