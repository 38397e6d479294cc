"""One node with many users and many nodes with one user are the same federation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrec_app.records import Arrays
from fedrec_app.simulate import simulate

SMALL = '{"num_users": 61, "num_items": 90, "mean_interactions": 20, "min_interactions": 5}'


def run(output_dir: Path, num_nodes: int, **settings: Any) -> tuple[Arrays, dict[str, Any]]:
    flat = {"output-dir": str(output_dir), "num-server-rounds": 2, "data.options": SMALL, **settings}
    result = simulate(flat, num_nodes)
    arrays, _, _ = result.folder.read_model()
    return arrays, result.summary


def assert_same(one: tuple[Arrays, dict[str, Any]], other: tuple[Arrays, dict[str, Any]]) -> None:
    assert one[0].keys() == other[0].keys()
    for name, array in one[0].items():
        np.testing.assert_allclose(array, other[0][name], rtol=0, atol=1e-5, err_msg=name)
    for part in ("test", "sampled", "validation"):
        left, right = dict(one[1][part]), dict(other[1][part])
        for metrics in (left, right):
            metrics.pop("popularity@10", None)  # one-user nodes do not tell their counts
        intervals, others = left.pop("ci", {}), right.pop("ci", {})
        assert left.keys() == right.keys()
        for name in left:
            assert left[name] == pytest.approx(right[name], abs=1e-5), f"{part} {name}"
        for name in intervals:
            assert intervals[name] == pytest.approx(others[name], abs=1e-5), f"{part} {name} interval"


MODELS: dict[str, dict[str, Any]] = {
    "mf": {},
    "mf bce": {
        "model.options": '{"loss": "bce"}', "train.num-negatives": 4, "train.batch-size": 8,
        "strategy.options": '{"learning_rate": 0.03, "tau": 1e-4}',  # a smaller tau makes much of float32 rounding
    },
    "neumf": {"model.name": "neumf", "model.embedding-dim": 8},
    "neumf rows adam": {
        "model.name": "neumf", "model.embedding-dim": 4, "train.optimizer": "adam", "train.learning-rate": 0.01,
        "train.private-learning-rate": 0.01, "strategy.name": "fedavg", "strategy.options": '{"weighting": "rows"}',
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "user_fraction"),
    [
        ("mf", 1.0),
        ("mf", 0.3),
        ("mf bce", 0.3),
        pytest.param("neumf", 1.0, marks=pytest.mark.slow),
        ("neumf rows adam", 0.3),
        pytest.param("mf bce", 1.0, marks=pytest.mark.slow),
        pytest.param("neumf", 0.3, marks=pytest.mark.slow),
        pytest.param("neumf rows adam", 1.0, marks=pytest.mark.slow),
    ],
)
def test_the_number_of_nodes_does_not_change_the_model_or_its_metrics(
    tmp_path: Path, model: str, user_fraction: float
) -> None:
    settings = {**MODELS[model], "train.user-fraction": user_fraction}
    one = run(tmp_path, 1, **settings)
    for num_nodes in (2, 8, 61):
        assert_same(one, run(tmp_path, num_nodes, **settings))


@pytest.mark.parametrize("partition", ["by:region", "dirichlet:0.3"])
def test_the_way_users_are_dealt_does_not_change_the_model(tmp_path: Path, partition: str) -> None:
    settings: dict[str, Any] = {"model.name": "neumf", "model.embedding-dim": 4}
    assert_same(run(tmp_path, 5, **settings), run(tmp_path, 5, **settings, **{"data.partition": partition}))


def test_more_nodes_than_users_leaves_nodes_empty_and_changes_nothing(tmp_path: Path) -> None:
    assert_same(run(tmp_path, 1), run(tmp_path, 70))


def test_the_seed_changes_the_model(tmp_path: Path) -> None:
    one, other = run(tmp_path, 2), run(tmp_path, 2, seed=1)
    assert not np.allclose(one[0]["item_embedding"], other[0]["item_embedding"], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("user_fraction", [1.0, 0.3])
def test_943_nodes_equal_1_2_and_8_on_ml_100k(tmp_path: Path, ml_100k: Path, user_fraction: float) -> None:
    settings = {
        "data.name": "ml-100k", "data.path": str(ml_100k), "data.options": "{}", "train.user-fraction": user_fraction,
    }  # fmt: skip
    one = run(tmp_path, 1, **settings)
    for num_nodes in (2, 8, 943):
        assert_same(one, run(tmp_path, num_nodes, **settings))
