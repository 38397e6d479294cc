"""SASRec in a federation: placement, training, recommendations, and settings that make no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrec_app.errors import FedrecError
from fedrec_app.recommend import recommend
from fedrec_app.server_app import RunResult
from fedrec_app.simulate import simulate
from tests.small import somebody

SMALL = '{"num_users": 41, "num_items": 60, "mean_interactions": 12, "min_interactions": 3}'
LARGER = '{"num_users": 300, "num_items": 120, "mean_interactions": 30, "min_interactions": 5, "num_topics": 6}'
TINY = '{"layers": 1, "heads": 2, "max_length": 8, "dropout": 0.2, "crop": 0.3}'
OTHER = '{"layers": 1, "heads": 2, "max_length": 8, "crop": 0.3, "mask": 0.5, "reorder": 0.5, %s}'
BY_USER: dict[str, dict[str, Any]] = {
    "one step": {"train.optimizer": "sgd", "train.learning-rate": 0.5, "train.local-epochs": 1,
                 "train.weight-decay": 0.0},
    "several bounded steps of adam": {"train.optimizer": "adam", "train.learning-rate": 0.005, "train.local-epochs": 2,
                                      "train.max-grad-norm": 0.5, "strategy.options": '{"weighting": "examples"}'},
    "sampled softmax, histories that are changed": {
        "model.options": OTHER % '"negatives": 9', "train.optimizer": "sgd", "train.learning-rate": 0.5,
        "train.weight-decay": 0.01, "train.local-epochs": 1, "strategy.options": '{"weighting": "rows"}'},
    "sampled softmax of hidden items, several steps": {
        "model.options": OTHER % '"negatives": 9, "objective": "masked"', "train.optimizer": "adam",
        "train.learning-rate": 0.005, "train.local-epochs": 2, "strategy.options": '{"weighting": "rows"}'},
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("without_pictures")


def run(output_dir: Path, num_nodes: int, **settings: Any) -> RunResult:
    flat = {
        "output-dir": str(output_dir), "model.name": "sasrec", "model.embedding-dim": 8, "model.options": TINY,
        "data.options": SMALL, "num-server-rounds": 2, "evaluate.bootstrap": 0, **settings,
    }  # fmt: skip
    return simulate(flat, num_nodes)


def parameters(result: RunResult) -> dict[str, np.ndarray]:
    return result.folder.read_model()[0]


@pytest.mark.parametrize("how", BY_USER)
def test_by_user_the_number_of_nodes_changes_nothing(tmp_path: Path, how: str) -> None:
    settings = {"train.unit": "user", **BY_USER[how]}
    one = run(tmp_path, 1, **settings)
    for num_nodes in (3, 7):
        other = run(tmp_path, num_nodes, **settings)
        for name, array in parameters(one).items():
            np.testing.assert_allclose(parameters(other)[name], array, rtol=0, atol=1e-5, err_msg=name)
        for part in ("test", "validation"):
            for metric in ("ndcg@10", "hr@10"):
                assert other.summary[part][metric] == pytest.approx(one.summary[part][metric], abs=1e-5)


@pytest.mark.parametrize("unit", ["user", "node"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path, unit: str) -> None:
    one, again = (parameters(run(tmp_path, 2, **{"train.unit": unit})) for _ in range(2))
    other = parameters(run(tmp_path, 2, **{"train.unit": unit}, seed=9))
    for name, array in one.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    assert np.abs(other["item_embedding"] - one["item_embedding"]).max() > 1e-3


def test_pooled_nodes_learn_more_than_popularity(tmp_path: Path) -> None:
    popular = simulate(
        {"output-dir": str(tmp_path), "model.name": "popularity", "data.options": LARGER, "evaluate.bootstrap": 0}, 3
    )
    trained = run(
        tmp_path, 3,
        **{"data.options": LARGER, "num-server-rounds": 8, "model.embedding-dim": 16, "train.learning-rate": 0.01,
           "model.options": '{"layers": 1, "heads": 2, "max_length": 20, "dropout": 0.1}'},
    )  # fmt: skip
    losses = [line["train"]["loss"] for line in trained.folder.read_metrics() if "train" in line]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.2
    assert trained.summary["validation"]["ndcg@10"] > 1.3 * popular.summary["validation"]["ndcg@10"]


def test_a_user_of_the_data_and_a_history_alone_are_recommended_to(tmp_path: Path) -> None:
    found = run(tmp_path, 2)
    user, seen = somebody(SMALL)
    known = recommend(found.folder, user, [], 5)
    assert len(known["items"]) == 5
    assert not {item["item_id"] for item in known["items"]} & set(seen)
    assert "warnings" not in known
    # There is nothing private: somebody else with his history is recommended the same.
    alone = recommend(found.folder, "", seen, 5)
    assert alone["items"] == known["items"]
    backwards = recommend(found.folder, "", seen[::-1], 5)
    assert backwards["items"] != alone["items"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.options": '{"heads": 3}'}, r"heads is 3: it must divide model.embedding-dim = 8"),
        ({"model.options": '{"dropout": -0.1}'}, r"sasrec.*dropout"),
        ({"model.options": '{"max_length": 0}'}, r"sasrec.*max_length"),
        ({"model.options": '{"head": 2}'}, r"sasrec.*head.*heads"),
    ],
)
def test_options_that_make_no_sense_are_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FedrecError, match=rf"(?s){message}"):
        run(tmp_path, 2, **settings)
