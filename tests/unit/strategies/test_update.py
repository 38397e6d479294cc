from __future__ import annotations

import numpy as np
import pytest

from strategies.update import Expected, collect
from tests.unit.strategies.replies import NODES, PARAMS, delta_reply, error_reply, metrics, reply

EXPECTED = Expected(PARAMS, (), 1, NODES, {10: 5.0, 11: 5.0, 12: 5.0})


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


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bad_reply_is_dropped_with_its_reason_and_the_rest_is_kept(case: str) -> None:
    arrays, said, reason = HOSTILE[case]
    replies = collect([delta_reply(11, 1.0), reply(10, arrays, said), delta_reply(12, 2.0)], EXPECTED)
    assert replies.dropped == {reason: 1}
    assert [update.partition_id for update in replies.updates] == [1, 2]


def test_an_error_reply_a_duplicate_an_unknown_node_and_silence_are_counted() -> None:
    replies = collect([error_reply(10), delta_reply(11, 1.0), delta_reply(11, 1.0), delta_reply(99, 1.0)], EXPECTED)
    assert replies.dropped == {"error-reply": 1, "duplicate": 1, "unknown-node": 1, "no-reply": 1}
    assert [update.partition_id for update in replies.updates] == [1]
    assert "ValueError: broken" in "".join(replies.details)


def test_a_pickled_array_is_refused_as_unreadable() -> None:
    message = delta_reply(10, 1.0)
    array = message.content.array_records["arrays"]["delta/bias"]
    array.data = np.array([None], dtype=object).dumps()
    replies = collect([message, delta_reply(11, 1.0), delta_reply(12, 1.0)], EXPECTED)
    assert replies.dropped == {"unreadable": 1}


def test_updates_come_in_the_order_of_partitions_whatever_the_order_of_arrival() -> None:
    replies = collect([delta_reply(12, 3.0), delta_reply(10, 1.0), delta_reply(11, 2.0)], EXPECTED)
    assert [float(u.delta("table")[0, 0]) for u in replies.updates] == [1.0, 2.0, 3.0]


def test_counts_by_row_are_required_when_asked_for() -> None:
    expected = Expected(PARAMS, ("table",), 1, {10: 0}, {10: 5.0})
    assert collect([delta_reply(10, 1.0)], expected).dropped == {"missing-array": 1}
    arrays = with_array("count/table", np.array([1, 0, -1], dtype=np.float32))
    assert collect([reply(10, arrays, metrics())], expected).dropped == {"bad-count": 1}
