"""Figures of other users do not compare: the best round is chosen anew when who is judged changes."""

from __future__ import annotations

import pytest
from flwr.app import ArrayRecord, MetricRecord

from strategies.progress import Progress
from strategies.rounds import _keep_best


def best_after(*judged: tuple[float, int]) -> list[int]:
    progress, found = Progress(ArrayRecord(), ArrayRecord()), []
    for server_round, (value, users) in enumerate(judged, start=1):
        validation = MetricRecord({"ndcg@10": value, "num_users": users})
        _keep_best(progress, ArrayRecord(), server_round, validation, "ndcg@10", "best")
        found.append(progress.best_round)
    return found


@pytest.mark.parametrize(
    ("judged", "best"),
    [
        ([(0.1, 9), (0.3, 9), (0.2, 9)], [1, 2, 2]),
        ([(0.17, 9), (0.16, 9), (0.12, 18), (0.13, 18), (0.11, 18)], [1, 1, 3, 4, 4]),
        ([(0.12, 18), (0.11, 18), (0.10, 9), (0.09, 9)], [1, 1, 3, 3]),
    ],
    ids=["always the same", "a node joins", "a node leaves"],
)
def test_rounds_compare_where_the_same_users_were_judged(judged: list[tuple[float, int]], best: list[int]) -> None:
    assert best_after(*judged) == best
