r"""Five nodes in a plane, one of which may lie, so that the 5 - 1 - 2 = 2 nearest others count.

A (0, 0)   B (1, 0)   C (0, 1)   D (2, 2)   E (10, 10)

squared distances   A    B    C    D    E     score: the two smallest
               A    .    1    1    8  200     1 + 1 = 2
               B    1    .    2    5  181     1 + 2 = 3
               C    1    2    .    5  181     1 + 2 = 3
               D    8    5    5    .  128     5 + 5 = 10
               E  200  181  181  128    .     128 + 181 = 309
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from strategies.fedavg import FedAvg
from strategies.krum import Krum, KrumSelection, krum_scores
from strategies.multi_krum import MultiKrum, MultiKrumSelection
from strategies.settings import Settings
from strategies.update import Update
from tests.unit.strategies.given import after_round, arrays_of, asked, assert_arrays, by_rows, update
from tests.unit.strategies.replies import PARAMS, delta_reply, roster

POINTS = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (2.0, 2.0), (10.0, 10.0)]
DISTANCES = np.array(
    [[0, 1, 1, 8, 200], [1, 0, 2, 5, 181], [1, 2, 0, 5, 181], [8, 5, 5, 0, 128], [200, 181, 181, 128, 0]], dtype=float
)


def plane(weights: tuple[float, ...] = (1, 2, 4, 1, 50)) -> list[Update]:
    """The five nodes, one coordinate in a table and one in a number: a distance is over all parameters."""
    return [update(w, k, t=[[x]], s=y) for k, ((x, y), w) in enumerate(zip(POINTS, weights, strict=True))]


def test_scores_sum_the_nearest_distances() -> None:
    np.testing.assert_array_equal(krum_scores(DISTANCES, 1), [2, 3, 3, 10, 309])
    np.testing.assert_array_equal(krum_scores(DISTANCES, 0), [10, 8, 8, 18, 490])  # three nearest
    np.testing.assert_array_equal(krum_scores(DISTANCES, 2), [1, 1, 1, 5, 128])  # one nearest


def test_of_too_few_nodes_one_neighbour_counts_and_a_node_alone_is_chosen() -> None:
    np.testing.assert_array_equal(krum_scores(DISTANCES[:2, :2], 1), [1, 1])
    np.testing.assert_array_equal(krum_scores(DISTANCES[:1, :1], 1), [0])
    assert krum_scores(np.zeros((0, 0)), 1).shape == (0,)


def test_krum_takes_the_node_with_the_lowest_score() -> None:
    """A. Moved by (3, 3), so that what is chosen is not zero: distances stay."""
    updates = [
        update(w, k, t=[[x + 3]], s=y + 3) for k, ((x, y), w) in enumerate(zip(POINTS, range(1, 6), strict=True))
    ]
    assert_arrays(after_round(Krum(), arrays_of(t=[[1.0]], s=0.0), updates), t=[[4.0]], s=3.0)


def test_between_equal_scores_the_lowest_partition_is_taken_in_any_order() -> None:
    """Without A, f = 0 and three nearest... of B, C, D, E with f = 1 the one nearest counts: B and C 2, D 5, E 128."""
    given = plane()[1:]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [1, 0, 3, 2]):
        found = after_round(Krum(), arrays_of(t=[[0.0]], s=0.0), [given[k] for k in order])
        assert_arrays(found, t=[[1.0]], s=0.0)


def test_multi_krum_averages_all_but_who_may_lie_whatever_their_weights() -> None:
    """n - f = 4: A, B, C, D, whose mean is (3/4, 3/4)."""
    assert_arrays(after_round(MultiKrum(), arrays_of(t=[[0.0]], s=0.0), plane()), t=[[0.75]], s=0.75)


def test_multi_krum_averages_as_many_as_asked_for() -> None:
    """A and, of B and C, the lower partition: (1/2, 0)."""
    found = after_round(MultiKrum({"num_selected": 2}), arrays_of(t=[[0.0]], s=0.0), plane())
    assert_arrays(found, t=[[0.5]], s=0.0)


def test_nodes_that_do_not_answer_let_no_more_liars_into_multi_krum() -> None:
    """m = 4 of 5 nodes; D does not answer: of four at most n - f = 3 are averaged, A, B and C, and never E."""
    given = [update for update in plane() if update.partition_id != 3]
    found = after_round(MultiKrum({"num_selected": 4}), arrays_of(t=[[0.0]], s=0.0), given)
    assert_arrays(found, t=[[1 / 3]], s=1 / 3)


@pytest.mark.parametrize(
    ("options", "values", "weights", "moves"),
    [
        ({"name": "krum"}, [1, 1, 1, 9, 9], [1, 1, 1, 1, 1], True),
        ({"name": "krum"}, [1, 1, 9, 9], [1, 1, 1, 1], False),  # f = 1 needs five
        ({"name": "krum"}, [1, 1, 1, 9, 9], [1, 0, 1, 1, 1], False),  # who trained nobody is nobody
        ({"name": "trimmed-mean", "trim": 0.2}, [1, 1, 9], [1, 1, 1], True),
        ({"name": "trimmed-mean", "trim": 0.2}, [1, 9, 0, 0, 0], [1, 1, 0, 0, 0], False),
        ({"name": "median"}, [1, 9], [1, 1], True),
    ],
)
def test_a_round_with_too_few_nodes_for_what_its_rule_promises_is_skipped(
    options: dict[str, Any], values: list[float], weights: list[float], moves: bool
) -> None:
    nodes = {100 + k: k for k in range(len(values))}
    strategy = FedAvg({"aggregator": options}, Settings(), roster(nodes=nodes))
    asked(strategy, PARAMS, nodes=nodes)
    replies = [delta_reply(n, v * w, weight=w) for n, v, w in zip(nodes, values, weights, strict=True)]
    arrays, said = strategy.aggregate_train(1, replies)
    assert said is not None
    assert (arrays is not None, said.get("skipped", 0)) == (moves, 1 - moves)


def test_rows_that_are_not_sent_are_zeros_in_every_distance() -> None:
    """The plane again, as two rows of a table; nodes send what is not zero."""
    updates = []
    for k, (x, y) in enumerate(POINTS):
        sent = [row for row, value in enumerate((x, y)) if value]
        updates.append(by_rows(update(2, k, t=[[x], [y]]), "t", sent))
    found = after_round(MultiKrum({"num_selected": 3}), arrays_of(t=[[0.0], [0.0]]), updates)
    assert_arrays(found, t=[[1 / 3], [1 / 3]])


def test_who_has_no_weight_is_nobody() -> None:
    nobody = update(0, 5, t=[[0.0]], s=0.0)
    given = [nobody, *plane()]
    assert_arrays(after_round(MultiKrum(), arrays_of(t=[[0.0]], s=0.0), given), t=[[0.75]], s=0.75)
    assert_arrays(after_round(Krum(), arrays_of(t=[[1.0]], s=0.0), [nobody]), t=[[1.0]], s=0.0)


@pytest.mark.parametrize("weight", [1.0, 1e-300])
def test_who_claims_what_no_number_holds_is_not_chosen(weight: float) -> None:
    given = plane()
    given[4].scalars["weight"] = weight
    given[4].arrays["delta/s"] = np.array(3e38)
    assert_arrays(after_round(MultiKrum(), arrays_of(t=[[0.0]], s=0.0), given), t=[[0.75]], s=0.75)


def test_too_few_nodes_for_the_proof_are_a_problem() -> None:
    """n > 2 f + 2."""
    assert KrumSelection({"num_malicious": 1}).problem(5) == ""
    assert KrumSelection({"num_malicious": 1}).problem(4) == (
        "4 nodes are too few for num_malicious 1: at least 5 are needed"
    )
    assert "at least 7" in MultiKrumSelection({"num_malicious": 2}).problem(6)


def test_averaging_more_nodes_than_are_honest_is_a_problem() -> None:
    assert MultiKrumSelection({"num_selected": 4}).problem(5) == ""
    assert MultiKrumSelection({"num_selected": 5}).problem(5).endswith("at most 4")
