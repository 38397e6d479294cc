"""Counts of pairs of items: as they travel, added up by a server that trusts nobody, and as a matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrec_app.data.histories import Histories
from fedrec_app.models.cooccurrence import COUNTS, ITEMS, MOST_ITEMS, STARTS, TRIANGLE, Cooccurrences, cooccurrences
from fedrec_app.records import Arrays, from_record, to_record

USERS = [[0, 1], [1, 0, 1, 3], [], [3]]
GRAM = [[2, 2, 0, 1], [2, 2, 0, 1], [0, 0, 0, 0], [1, 1, 0, 2]]
"""Of four items, item 2 unknown to all: user 1 met item 1 twice, which counts once."""


def naive(users: list[list[int]], num_items: int) -> NDArray[np.int64]:
    x = np.zeros((len(users), num_items), dtype=np.int64)
    for u, items in enumerate(users):
        x[u, items] = 1
    return x.T @ x


def drawn(num_users: int, num_items: int, mean: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(num_items, size=rng.poisson(mean)).tolist() for _ in range(num_users)]


def added(*parts: Arrays, num_items: int, num_users: int = 10_000) -> NDArray[np.float64]:
    total = Cooccurrences(num_items)
    for arrays in parts:
        total.add(arrays, num_users)
    return total.matrix(np.arange(num_items))


def test_a_small_gram_matrix() -> None:
    arrays = cooccurrences(Histories.from_lists(USERS), 4)
    assert arrays[TRIANGLE].tolist() == [2, 2, 0, 1, 2, 0, 1, 0, 0, 2]
    assert arrays[TRIANGLE].dtype == np.uint8
    np.testing.assert_array_equal(added(arrays, num_items=4), GRAM)
    total = Cooccurrences(4)
    total.add(arrays, 4)
    assert total.popularity().tolist() == [2, 2, 0, 2]
    np.testing.assert_array_equal(total.matrix(np.array([1, 3])), [[2, 1], [1, 2]])


@pytest.mark.parametrize(
    ("num_users", "num_items", "mean", "form"),
    [(30, 40, 12, TRIANGLE), (30, 400, 5, COUNTS), (300, 9, 4, TRIANGLE), (0, 50, 1, COUNTS), (3, 1, 2, TRIANGLE)],
)
def test_both_forms_are_the_product_of_the_sets(num_users: int, num_items: int, mean: int, form: str) -> None:
    users = drawn(num_users, num_items, mean)
    arrays = cooccurrences(Histories.from_lists(users), num_items)
    assert form in arrays
    np.testing.assert_array_equal(added(arrays, num_items=num_items), naive(users, num_items))


def test_nodes_add_up_to_all_users_whatever_their_form_and_order() -> None:
    users = drawn(500, 60, 6)
    parts = [cooccurrences(Histories.from_lists(part), 60) for part in (users[:3], users[3:400], users[400:])]
    assert [TRIANGLE in part for part in parts] == [False, True, True]
    assert [part[TRIANGLE].dtype for part in parts[1:]] == [np.uint8, np.uint8]
    for order in (parts, parts[::-1]):
        np.testing.assert_array_equal(added(*order, num_items=60), naive(users, 60))


def test_counts_take_the_smallest_type_that_holds_them() -> None:
    for number, dtype in ((255, np.uint8), (256, np.uint16), (65_536, np.uint32)):
        arrays = cooccurrences(Histories.from_lists([[1]] * number), 2)
        assert arrays[TRIANGLE].dtype == dtype
        assert added(arrays, num_items=2, num_users=number)[1, 1] == number


def test_what_travels_is_the_smaller_form() -> None:
    for mean in (1, 2, 5, 10, 20, 40):
        users = drawn(40, 100, mean)
        arrays = cooccurrences(Histories.from_lists(users), 100)
        pairs = np.count_nonzero(np.triu(naive(users, 100)))
        sent = sum(array.nbytes for array in arrays.values())
        assert sent == min(100 * 101 // 2, pairs * 5 + 101 * 8)
        assert from_record(to_record(arrays)).keys() == arrays.keys()


TRI: Arrays = {TRIANGLE: np.array([2, 1, 0, 2, 1, 1], np.uint8)}
ROWS: Arrays = {
    STARTS: np.array([0, 2, 4, 5]), ITEMS: np.array([0, 1, 1, 2, 2], np.int32),
    COUNTS: np.array([2, 1, 2, 1, 1], np.uint8),
}  # fmt: skip


def changed(arrays: Arrays, name: str, change: Callable[[NDArray], NDArray]) -> Arrays:
    return {**arrays, name: change(arrays[name].copy())}


def put(at: int, value: int) -> Callable[[NDArray], NDArray]:
    def change(array: NDArray) -> NDArray:
        array[at] = value
        return array

    return change


HOSTILE: dict[str, Arrays] = {
    "nothing": {},
    "both forms": {**TRI, **ROWS},
    "a form that is not whole": {STARTS: ROWS[STARTS], ITEMS: ROWS[ITEMS]},
    "a triangle that is too short": changed(TRI, TRIANGLE, lambda a: a[:5]),
    "a triangle of floats": changed(TRI, TRIANGLE, lambda a: a.astype(np.float32)),
    "a triangle of signed numbers": changed(TRI, TRIANGLE, lambda a: a.astype(np.int8)),
    "a triangle of 64 bits": changed(TRI, TRIANGLE, lambda a: a.astype(np.uint64)),
    "the other endianness": changed(TRI, TRIANGLE, lambda a: a.astype(">u2")),
    "more than there are users": changed(TRI, TRIANGLE, put(0, 4)),
    "a pair more often than its first item": changed(TRI, TRIANGLE, put(1, 3)),
    "a pair more often than its second item": changed(TRI, TRIANGLE, put(4, 2)),
    "rows that do not start at 0": changed(ROWS, STARTS, put(0, 1)),
    "rows that end too early": changed(ROWS, STARTS, put(3, 4)),
    "rows that end too late": changed(ROWS, STARTS, put(3, 6)),
    "rows that go back": changed(ROWS, STARTS, put(1, 5)),
    "starts of 32 bits": changed(ROWS, STARTS, lambda a: a.astype(np.int32)),
    "items of 64 bits": changed(ROWS, ITEMS, lambda a: a.astype(np.int64)),
    "a table of items": changed(ROWS, ITEMS, lambda a: a[None]),
    "fewer counts than items": changed(ROWS, COUNTS, lambda a: a[:4]),
    "a row without its own item": changed(ROWS, ITEMS, put(0, 1)),
    "an item beyond the last": changed(ROWS, ITEMS, put(1, 3)),
    "a negative item": changed(ROWS, ITEMS, put(1, -1)),
    "an item twice": changed(ROWS, ITEMS, put(3, 1)),
    "an item below the row": changed(ROWS, ITEMS, put(3, 0)),
    "counts that users do not have": changed(ROWS, COUNTS, put(2, 9)),
    "counts of a pair that its items do not have": changed(ROWS, COUNTS, put(1, 3)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_is_refused_and_nothing_of_it_is_added(case: str) -> None:
    total = Cooccurrences(3)
    for good in (TRI, ROWS):
        total.add(good, 3)
    with pytest.raises(ValueError, match=r"."):
        total.add(HOSTILE[case], 3)
    np.testing.assert_array_equal(total.matrix(np.arange(3)), np.array([[4, 2, 0], [2, 4, 2], [0, 2, 2]]))


def test_a_catalog_too_large_for_its_pairs_says_so() -> None:
    with pytest.raises(ValueError, match=f"{MOST_ITEMS + 1} items: .*{MOST_ITEMS} at most"):
        Cooccurrences(MOST_ITEMS + 1)
