from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrec_app.errors import DataError
from fedrec_app.evaluation.sums import MetricSums


def example() -> MetricSums:
    return MetricSums(
        names=("hr@10", "sampled/ndcg@10"),
        sums=np.array([[2.0, 1.5, 3.0], [1.0, 0.5, 4.0]]),
        item_counts=np.array([3, 1, 0, 2]),
        num_users=3,
        num_without_held_out=1,
        num_held_out=5,
        num_short_negatives=2,
        list_length=10,
    )


def test_sums_add_up_field_by_field():
    total = example() + example() + MetricSums.zero(example().names, 4, num_bootstrap=1)
    assert total.sums.tolist() == [[4.0, 3.0, 6.0], [2.0, 1.0, 8.0]]
    assert total.item_counts.tolist() == [6, 2, 0, 4]
    assert (total.num_users, total.num_without_held_out) == (6, 2)
    assert (total.num_held_out, total.num_short_negatives, total.list_length) == (10, 4, 10)


def test_arrays_carry_everything_and_no_objects():
    arrays = example().to_arrays()
    assert {a.dtype.kind for a in arrays.values()} <= set("uif")
    back = MetricSums.from_arrays(arrays, like=example())
    assert back.to_arrays().keys() == arrays.keys()
    assert all(np.array_equal(back.to_arrays()[name], arrays[name]) for name in arrays)
    assert back.names == example().names


def test_sums_of_something_else_are_not_added():
    for other in (
        MetricSums.zero(("hr@10",), 4, 1),
        MetricSums.zero(example().names, 5, 1),
        MetricSums.zero(example().names, 4, 2),
        MetricSums.zero(example().names, 4, 1, list_length=20),
    ):
        with pytest.raises(DataError, match="do not add up"):
            example() + other
        with pytest.raises(DataError, match="do not add up"):
            MetricSums.from_arrays(other.to_arrays(), like=example())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sums", np.array([[2.0, np.nan, 3.0], [1.0, np.inf, 4.0]]), "2 numbers that are not finite"),
        ("sums", np.array([[2.0, 1.5], [1.0, 0.5]]), r"must be float64 \(1 \+ num_bootstrap, 3\)"),
        ("sums", np.zeros((0, 3)), "shape"),
        ("sums", np.zeros((2, 3), dtype=np.float32), "sums is float32: must be float64"),
        ("sums", np.array([[2.0, 1.5, 4.0], [1.0, 0.5, 4.0]]), "sums counts 4.0 users, num_users 3"),
        ("sums", np.array([[2.0, 3.5, 3.0], [1.0, 0.5, 4.0]]), "first sampled/ndcg@10 in row 0: 3.5 of 3.0"),
        ("sums", np.array([[2.0, 1.5, 3.0], [-1.0, 0.5, 4.0]]), "first hr@10 in row 1"),
        ("item_counts", np.array([3, 1, 0, -2]), "item_counts is -2..3"),
        ("item_counts", np.array([4, 1, 0, 2]), r"must be in 0\.\.3"),
        ("item_counts", np.array([[3, 1]]), "must be int64"),
        ("item_counts", np.array([3.0]), "item_counts is float64: must be int64"),
        ("counts", np.array([3, 1, 5, 2]), r"counts has shape \(4,\)"),
        ("counts", np.array([3, -1, 5, 2, 10]), "num_without_held_out is -1"),
        ("counts", np.array([3, 1, 2, 2, 10]), "2 held-out items of 3 users"),
        ("counts", np.array([3, 1, 5, 4, 10]), "4 of 3 users short of negatives"),
        ("counts", np.array([3, 1, 5, 2, 0]), "list_length is 0"),
        ("counts", np.array([3, 1, 5, 2, 1]), "item_counts sums to 6: at most 3 lists of 1"),
        ("names", np.array([255, 254], dtype=np.uint8), "not UTF-8"),
        ("names", np.frombuffer(b"hr@10\nhr@10", dtype=np.uint8), "must be distinct"),
        ("extra", np.zeros(1), "array 'extra' is not expected"),
    ],
)
def test_arrays_from_another_process_are_checked(name, value, message):
    with pytest.raises(DataError, match=message):
        MetricSums.from_arrays(example().to_arrays() | {name: value})


def test_an_error_lists_all_that_is_wrong():
    arrays = example().to_arrays()
    del arrays["names"]
    arrays["sums"] = arrays["sums"].astype(np.float32)
    with pytest.raises(DataError, match="array 'names' is missing; sums is float32"):
        MetricSums.from_arrays(arrays)
    with pytest.raises(DataError, match=r"num_short_negatives is -1.*item_counts is -1"):
        replace(example(), num_short_negatives=-1, item_counts=np.array([0, -1, 0, 0]))
