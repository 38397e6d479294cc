"""Item recovery: what each attack says of updates whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from fedrec_app.audits.item_recovery import POPULARITY, attack_updates, f1, leading_vector, turned
from fedrec_app.audits.updates import NodeUpdate

ITEMS = np.array([1, 4, 6])
NEGATIVES = np.array([0, 2, 9])
POPULAR = np.array([5, 9, 1, 0, 8, 7, 3, 0, 0, 0])
"""The three most popular are 1, 4 and 5."""


def of_one_user(away: bool = True, scale: float = 1.0) -> NodeUpdate:
    """Returns what a step of a factorisation makes: his items along his embedding, his negatives against it."""
    table = np.zeros((10, 4), dtype=np.float32)
    embedding = np.array([1.0, -2.0, 0.5, 3.0])
    table[ITEMS] = scale * embedding
    if away:
        table[NEGATIVES] = -0.5 * scale * embedding
    return NodeUpdate({"table": table, "bias": np.ones(4)}, [ITEMS])


def scores(update: NodeUpdate) -> dict[str, float]:
    return attack_updates([update], ["table"], POPULAR, 10).f1()


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    """2 of 4 are right, 2 of 3 are found: 2 * 2 / 7."""
    assert f1(np.array([1, 4, 5, 7]), ITEMS) == pytest.approx(4 / 7)
    assert f1(np.array([], dtype=np.int64), ITEMS) == 0.0


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e-30, 1e18])
def test_negatives_hide_rows_and_not_the_side_that_they_moved_to(scale: float) -> None:
    assert scores(of_one_user(scale=scale)) == pytest.approx(
        {
            POPULARITY: 2 / 3, "non-zero rows": 2 / 3, "longest rows": 1.0, "singular vector, sign": 1.0,
            "singular vector, largest": 1.0,
        }
    )  # fmt: skip


def test_without_negatives_the_rows_that_moved_are_the_history() -> None:
    found = scores(of_one_user(away=False))
    assert found["non-zero rows"] == found["singular vector, sign"] == 1.0


def test_an_update_of_zero_gives_nothing_away_that_is_not_known() -> None:
    found = scores(of_one_user(scale=0.0))
    assert found.pop("non-zero rows") == found.pop("singular vector, sign") == 0.0
    assert found[POPULARITY] == pytest.approx(2 / 3)


def test_each_user_of_a_node_is_attacked_and_no_more_than_asked_for() -> None:
    two = NodeUpdate(of_one_user().deltas, [ITEMS, NEGATIVES])
    found = attack_updates([two, two, two], ["table"], POPULAR, 3)
    assert found.users == 3
    assert found.scores["singular vector, sign"]["table, popular"] == [1.0, 0.0, 1.0]
    assert found.f1()["singular vector, sign"] == pytest.approx(2 / 3)


def test_the_item_table_that_gives_away_most_counts() -> None:
    update = of_one_user()
    update.deltas["hidden"] = np.zeros((10, 2))
    found = attack_updates([update], ["hidden", "table"], POPULAR, 1)
    assert found.f1()["singular vector, sign"] == found.best() == 1.0


def test_without_an_item_table_popularity_is_all_there_is() -> None:
    assert attack_updates([of_one_user()], [], POPULAR, 1).f1() == pytest.approx({POPULARITY: 2 / 3})


def test_the_leading_vector_is_that_of_the_singular_value_decomposition() -> None:
    matrix = np.random.default_rng(0).normal(size=(10, 3))
    vector = leading_vector(matrix)
    expected = np.linalg.svd(matrix)[0][:, 0]
    assert abs(expected @ vector / np.linalg.norm(vector)) == pytest.approx(1.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_vector_points_to_popular_items_or_to_the_fewer_ones(sign: float) -> None:
    vector = sign * np.array([1.0, -1.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    found = turned(vector, POPULAR)
    assert np.flatnonzero(found["popular"] > 0).tolist() == [1, 4]
    assert np.flatnonzero(found["fewer"] > 0).tolist() == [1, 4]
    unpopular = turned(vector, POPULAR.max() - POPULAR)
    assert np.flatnonzero(unpopular["popular"] > 0).tolist() == [0, 2, 6]
    one_sided = np.array([0.0, -sign, -sign, *[0.0] * 7])
    assert all((found > 0).sum() == 2 for found in turned(one_sided, POPULAR).values())
