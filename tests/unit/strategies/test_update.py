from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from fedrec_app.records import from_record
from strategies.accumulator import UpdateSum
from strategies.update import Expected, Intake, Update
from tests.unit.strategies.replies import NODES, PARAMS, delta_reply, error_reply, metrics, reply

EXPECTED = Expected(PARAMS, ("table",), False, 1, NODES, {10: 5.0, 11: 5.0, 12: 5.0})


def taken_in(replies: Iterable[Message], expected: Expected = EXPECTED) -> tuple[Intake, list[Update]]:
    intake = Intake(expected)
    return intake, list(intake.updates(replies))


def good() -> dict[str, np.ndarray]:
    return {"delta/table": np.ones((3, 2), dtype=np.float32), "delta/bias": np.ones(1, dtype=np.float32)}


def with_array(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    return {**good(), name: array}


HOSTILE = {
    "nan": (with_array("delta/table", np.full((3, 2), np.nan, dtype=np.float32)), metrics(), "non-finite"),
    "infinity": (with_array("delta/bias", np.full(1, np.inf, dtype=np.float32)), metrics(), "non-finite"),
    "wrong shape": (with_array("delta/table", np.ones((2, 2), dtype=np.float32)), metrics(), "wrong-shape"),
    "a shape that would broadcast": (
        with_array("delta/table", np.ones((1, 2), dtype=np.float32)),
        metrics(),
        "wrong-shape",
    ),
    "wrong dtype": (with_array("delta/table", np.ones((3, 2))), metrics(), "wrong-dtype"),
    "missing array": ({"delta/table": good()["delta/table"]}, metrics(), "missing-array"),
    "extra array": (with_array("delta/other", np.ones(1, dtype=np.float32)), metrics(), "extra-array"),
    "negative weight": (good(), metrics(weight=-5.0), "bad-weight"),
    "huge weight": (good(), metrics(weight=1e12), "bad-weight"),
    "more weight than in the roll-call": (good(), metrics(weight=5.1), "bad-weight"),
    "weight that is not a number": (good(), metrics(weight=float("nan")), "bad-scalar"),
    "no loss": (good(), {k: v for k, v in metrics().items() if k != "loss"}, "bad-scalar"),
    "another round": (good(), metrics(server_round=7), "wrong-round"),
    "list for a number": (good(), metrics(num_users=[1, 2]), "bad-scalar"),
}


def by_rows(rows: object = (0, 2), delta: object = None, dtype: str = "int32") -> dict[str, np.ndarray]:
    """A reply in which only some rows of the table come."""
    positions = np.array(rows, dtype=dtype)
    values = np.ones((positions.size, 2)) if delta is None else np.array(delta)
    return {**good(), "rows/table": positions, "delta/table": values.astype(np.float32)}


def without(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in arrays.items() if key != name}


HOSTILE_ROWS = {
    "the same row twice": (by_rows([1, 1]), "bad-rows"),
    "rows that go down": (by_rows([2, 0]), "bad-rows"),
    "rows that go up and down": (by_rows([0, 2, 1]), "bad-rows"),
    "a row beyond the last": (by_rows([0, 3]), "bad-rows"),
    "a row far beyond the last": (by_rows([2**31 - 1]), "bad-rows"),
    "a negative row": (by_rows([-1, 0]), "bad-rows"),
    "more rows than there are": (by_rows([0, 1, 2, 2]), "bad-rows"),
    "rows as int64": (by_rows(dtype="int64"), "wrong-dtype"),
    "rows as floats": (by_rows([0.0, 1.0], dtype="float32"), "wrong-dtype"),
    "rows of the other endianness": (by_rows(dtype=">i4"), "wrong-dtype"),
    "rows as booleans": (by_rows([True, False, True], dtype="bool"), "wrong-dtype"),
    "rows as a matrix": (by_rows([[0], [1]]), "wrong-shape"),
    "one row as a scalar": (by_rows(1), "wrong-shape"),
    "fewer deltas than rows": (by_rows([0, 1], [[1, 1]]), "wrong-shape"),
    "all deltas for some rows": (by_rows([0, 1], np.ones((3, 2))), "wrong-shape"),
    "deltas that are too narrow": (by_rows([0, 1], [[1], [1]]), "wrong-shape"),
    "rows without deltas": (without(by_rows(), "delta/table"), "missing-array"),
    "rows of a parameter that has none": ({**good(), "rows/bias": np.zeros(1, np.int32)}, "extra-array"),
    "rows of no parameter": ({**good(), "rows/other": np.zeros(1, np.int32)}, "extra-array"),
    "NaN in a row": (by_rows([1], [[np.nan, 1]]), "non-finite"),
}
HOSTILE.update({case: (arrays, metrics(), reason) for case, (arrays, reason) in HOSTILE_ROWS.items()})


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bad_reply_is_dropped_with_its_reason_and_the_rest_is_kept(case: str) -> None:
    arrays, said, reason = HOSTILE[case]
    intake, updates = taken_in([delta_reply(11, 1.0), reply(10, arrays, said), delta_reply(12, 2.0)])
    assert intake.dropped == {reason: 1}
    assert [update.partition_id for update in updates] == [1, 2]
    assert intake.partitions == [1, 2]
    assert intake.scalars["weight"] == [1.0, 1.0]


def test_an_error_reply_a_duplicate_an_unknown_node_and_silence_are_counted() -> None:
    intake, updates = taken_in([error_reply(10), delta_reply(11, 1.0), delta_reply(11, 2.0), delta_reply(99, 1.0)])
    assert intake.dropped == {"error-reply": 1, "duplicate": 1, "unknown-node": 1, "no-reply": 1}
    assert [float(update.delta("table")[0, 0]) for update in updates] == [1.0]
    assert "ValueError: broken" in "".join(intake.details)


def test_a_pickled_array_is_refused_as_unreadable() -> None:
    message = delta_reply(10, 1.0)
    array = message.content.array_records["arrays"]["delta/bias"]
    array.data = np.array([None], dtype=object).dumps()
    intake, _ = taken_in([message, delta_reply(11, 1.0), delta_reply(12, 1.0)])
    assert intake.dropped == {"unreadable": 1}


@pytest.mark.parametrize("header", [b"(9999999, 2)", b"(-1, 2)", b"(3, " + b"9" * 5000 + b")", b"(3 3, 2)"])
def test_an_array_that_claims_another_shape_than_it_has_is_refused(header: bytes) -> None:
    message = delta_reply(10, 1.0)
    array = message.content.array_records["arrays"]["delta/table"]
    found = array.data.replace(b"(3, 2)", header)
    array.data = found[:8] + (found.index(b"\n") + 1 - 10).to_bytes(2, "little") + found[10:]
    intake, _ = taken_in([message, delta_reply(11, 1.0), delta_reply(12, 1.0)])
    assert intake.dropped == {"unreadable": 1}


@pytest.mark.parametrize("array", [np.arange(6.0, dtype=np.float32).reshape(3, 2), np.float32([[1, 2]] * 3).copy("F")])
def test_an_array_is_read_as_numpy_reads_it_however_its_header_is_written(array: np.ndarray) -> None:
    record = ArrayRecord({"t": Array(array)})
    plain = record["t"].data
    end = plain.index(b"\n") + 1
    header = plain[10:end].replace(b" ", b"  ").rstrip(b"\n") + b"\n"
    for written in (plain[10:end], plain[10:end] + b" \n", plain[10:end] + b"\n\n", header):
        record["t"].data = plain[:8] + len(written).to_bytes(2, "little") + written + plain[end:]
        np.testing.assert_array_equal(from_record(record)["t"], array)
        assert from_record(record)["t"].flags.writeable


def test_counts_by_row_are_required_when_asked_for() -> None:
    expected = replace(EXPECTED, counts=True, partitions={10: 0})
    assert taken_in([delta_reply(10, 1.0)], expected)[0].dropped == {"missing-array": 1}
    arrays = with_array("count/table", np.array([1, 0, -1], dtype=np.float32))
    assert taken_in([reply(10, arrays, metrics())], expected)[0].dropped == {"bad-count": 1}
    assert taken_in([reply(10, by_rows(), metrics())], expected)[0].dropped == {"missing-array": 1}


@pytest.mark.parametrize(
    ("count", "reason"),
    [([1, 1, 1], "wrong-shape"), ([1], "wrong-shape"), ([1, -1], "bad-count"), ([1, 9], "bad-count")],
)
def test_counts_go_with_the_rows_that_are_sent(count: list[float], reason: str) -> None:
    expected = replace(EXPECTED, counts=True, partitions={10: 0})
    arrays = {**by_rows(), "count/table": np.array(count, dtype=np.float32)}
    assert taken_in([reply(10, arrays, metrics())], expected)[0].dropped == {reason: 1}


def test_counts_that_nobody_asked_for_are_refused() -> None:
    arrays = with_array("count/table", np.ones(3, dtype=np.float32))
    assert taken_in([reply(10, arrays, metrics())])[0].dropped == {"extra-array": 1, "no-reply": 2}


PART = replace(EXPECTED, scalars=("steps", "bend"), controls=True, partitions={10: 0})
"""What is expected where a client part adds two sums of numbers, and controls."""


def with_part() -> dict[str, np.ndarray]:
    controls = {"control/table": np.full((3, 2), 2.0, np.float32), "control/bias": np.full(1, -1.0, np.float32)}
    return {**good(), **controls}


def test_what_a_client_part_adds_is_read_and_added_up() -> None:
    intake, (update,) = taken_in([reply(10, with_part(), metrics(steps=3, bend=0.0))], PART)
    assert intake.dropped == {}
    assert (update.scalars["steps"], update.scalars["bend"]) == (3.0, 0.0)
    assert intake.scalars["steps"] == [3.0]
    total = UpdateSum(PARAMS)
    assert total.scalar("steps") == 0.0
    with pytest.raises(KeyError):
        total.control("table")
    for _ in range(2):
        total.add(update)
    assert (total.scalar("steps"), total.scalar("no such thing")) == (6.0, 0.0)
    np.testing.assert_array_equal(total.control("table"), np.full((3, 2), 4.0))
    np.testing.assert_array_equal(total.control("bias"), [-2.0])


def test_controls_come_whole_where_a_table_comes_as_rows() -> None:
    arrays = {**by_rows([0, 2], [[1, 2], [3, 4]]), **{k: v for k, v in with_part().items() if k.startswith("control")}}
    intake, (update,) = taken_in([reply(10, arrays, metrics(steps=1, bend=1))], PART)
    assert intake.dropped == {}
    total = UpdateSum(PARAMS)
    total.add(update)
    np.testing.assert_array_equal(total.delta("table"), [[1, 2], [0, 0], [3, 4]])
    np.testing.assert_array_equal(total.control("table"), np.full((3, 2), 2.0))


def test_scaled_deltas_leave_controls_and_scalars_as_they_are() -> None:
    _, (update,) = taken_in([reply(10, with_part(), metrics(steps=3, bend=1))], PART)
    scaled = update.scaled(0.5)
    np.testing.assert_array_equal(scaled.delta("bias"), [0.5])
    np.testing.assert_array_equal(scaled.arrays["control/bias"], [-1.0])
    assert scaled.scalars == update.scalars


@pytest.mark.parametrize(
    ("arrays", "said", "reason"),
    [
        (with_part(), metrics(steps=1), "bad-scalar"),
        (with_part(), metrics(steps=1, bend=-1e-9), "bad-scalar"),
        (with_part(), metrics(steps=float("nan"), bend=1), "bad-scalar"),
        (with_part(), metrics(steps=float("inf"), bend=1), "bad-scalar"),
        (with_part(), metrics(steps=1e101, bend=1), "bad-scalar"),
        (with_part(), metrics(steps=[1], bend=1), "bad-scalar"),
        (without(with_part(), "control/bias"), metrics(steps=1, bend=1), "missing-array"),
        ({**with_part(), "control/table": np.ones((1, 2), np.float32)}, metrics(steps=1, bend=1), "wrong-shape"),
        ({**with_part(), "control/table": np.ones((3, 2))}, metrics(steps=1, bend=1), "wrong-dtype"),
        ({**with_part(), "control/bias": np.float32([np.nan])}, metrics(steps=1, bend=1), "non-finite"),
        ({**with_part(), "control/other": np.ones(1, np.float32)}, metrics(steps=1, bend=1), "extra-array"),
    ],
)
def test_what_a_client_part_adds_is_checked(arrays: dict[str, np.ndarray], said: dict, reason: str) -> None:
    intake, updates = taken_in([reply(10, arrays, said)], PART)
    assert (intake.dropped, updates) == ({reason: 1}, [])


def test_controls_that_nobody_asked_for_are_refused_and_further_scalars_are_not_kept() -> None:
    expected = replace(EXPECTED, partitions={10: 0})
    assert taken_in([reply(10, with_part(), metrics())], expected)[0].dropped == {"extra-array": 1}
    _, (update,) = taken_in([reply(10, good(), metrics(steps=5))], expected)
    assert "steps" not in update.scalars


def test_rows_that_were_sent_alone_read_as_the_whole_parameter() -> None:
    expected = replace(EXPECTED, counts=True, partitions={10: 0})
    arrays = {**by_rows([0, 2], [[1, 2], [3, 4]]), "count/table": np.array([1, 0], dtype=np.float32)}
    intake, (update,) = taken_in([reply(10, arrays, metrics())], expected)
    assert intake.dropped == {}
    np.testing.assert_array_equal(update.rows("table"), [0, 2])
    np.testing.assert_array_equal(update.delta("table"), np.array([[1, 2], [0, 0], [3, 4]], dtype=np.float32))
    assert update.delta("table").dtype == np.float32
    np.testing.assert_array_equal(update.count("table"), [1, 0, 0])
    assert update.rows("bias") is None
    np.testing.assert_array_equal(update.delta("bias"), [1])


def test_a_node_that_changed_no_row_sends_none() -> None:
    intake, (update,) = taken_in(
        [reply(10, by_rows([], np.zeros((0, 2))), metrics())], replace(EXPECTED, partitions={10: 0})
    )
    assert intake.dropped == {}
    np.testing.assert_array_equal(update.delta("table"), np.zeros((3, 2)))
