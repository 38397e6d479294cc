"""PFedRec in a federation: placement, what leaves a node, what it learns, and that it learns nothing alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fedrec_app import node_data
from fedrec_app.config import RunConfig
from fedrec_app.local_only import local_only
from fedrec_app.models.pfedrec import PFedRec
from fedrec_app.recommend import recommend
from fedrec_app.server_app import RunResult
from fedrec_app.simulate import simulate
from tests.small import somebody

SMALL = '{"num_users": 41, "num_items": 60, "mean_interactions": 12, "min_interactions": 3}'
LARGER = '{"num_users": 300, "num_items": 120, "mean_interactions": 30, "min_interactions": 5, "num_topics": 6}'
HEADS = {"linear": "{}", "hidden": '{"hidden": 4, "view_epochs": 2}'}


pytestmark = pytest.mark.usefixtures("without_pictures")


def run(output_dir: Path, num_nodes: int, **settings: Any) -> RunResult:
    taps = settings.pop("taps", [])
    flat = {
        "output-dir": str(output_dir), "model.name": "pfedrec", "model.embedding-dim": 8, "data.options": SMALL,
        "num-server-rounds": 2, "evaluate.bootstrap": 0, **settings,
    }  # fmt: skip
    return simulate(flat, num_nodes, taps=taps)


@pytest.mark.parametrize("head", HEADS)
def test_the_number_of_nodes_changes_nothing(tmp_path: Path, head: str) -> None:
    one, *others = (run(tmp_path, nodes, **{"model.options": HEADS[head]}) for nodes in (1, 3, 7))
    items = one.folder.read_model()[0]
    assert set(items) == {"item_embedding"}
    for other in others:
        found = other.folder.read_model()[0]["item_embedding"]
        np.testing.assert_allclose(found, items["item_embedding"], rtol=0, atol=1e-5)
        for part in ("test", "validation"):
            for metric in ("ndcg@10", "hr@10"):
                assert other.summary[part][metric] == pytest.approx(one.summary[part][metric], abs=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_no_part_of_a_score_function_is_in_a_message(tmp_path: Path, head: str) -> None:
    messages: list[Message] = []
    run(tmp_path, 3, taps=[messages.append], **{"model.options": HEADS[head], "num-server-rounds": 1})
    names = {name for m in messages for record in m.content.array_records.values() for name in record}
    assert {name for name in names if not name.startswith(("eval/", "stat/"))} <= {
        "item_embedding", "delta/item_embedding", "rows/item_embedding",
    }  # fmt: skip
    assert "delta/item_embedding" in names


def test_training_learns_tastes_that_popularity_does_not_know(tmp_path: Path) -> None:
    popular = simulate(
        {"output-dir": str(tmp_path), "model.name": "popularity", "data.options": LARGER, "evaluate.bootstrap": 0}, 3
    )
    settings = {"data.options": LARGER, "num-server-rounds": 20, "evaluate.every": 5, "model.embedding-dim": 16}
    trained = run(tmp_path, 3, **settings)
    assert trained.summary["validation"]["ndcg@10"] > 1.3 * popular.summary["validation"]["ndcg@10"]


def test_a_user_of_the_data_and_a_history_alone_are_recommended_to(tmp_path: Path) -> None:
    found = run(tmp_path, 2)
    user, seen = somebody(SMALL)
    known, alone = recommend(found.folder, user, [], 5), recommend(found.folder, "", seen, 5)
    assert (known["method"], alone["method"]) == ("private rows", "fold-in")
    for answer in (known, alone):
        assert len({item["item_id"] for item in answer["items"]} - set(seen)) == 5


@pytest.mark.slow
@pytest.mark.parametrize("options", ["{}", '{"view_learning_rate": 1.0, "view_epochs": 5}'])
def test_users_who_train_alone_score_at_chance(ml_100k: Path, options: str) -> None:
    flat = {
        "data.name": "ml-100k", "data.path": str(ml_100k), "model.name": "pfedrec", "model.options": options,
        "num-server-rounds": 3,
    }  # fmt: skip
    config = RunConfig.from_flat(flat).resolve(PFedRec.recipe)
    catalog = node_data.prepared(config.data).dataset.catalog
    metrics = local_only(config, catalog, node_data.cohort(config.data, None, 1), "test")
    assert metrics["num_users"] == 943
    assert 0.06 < metrics["sampled/hr@10"] < 0.13


def test_a_user_who_trains_alone_cannot_rank_what_he_never_met() -> None:
    data = LARGER.replace("300", "60")
    flat = {"model.name": "pfedrec", "data.options": data, "num-server-rounds": 2, "model.embedding-dim": 8}
    config = RunConfig.from_flat(flat).resolve(PFedRec.recipe)
    metrics = local_only(config, node_data.catalog(config.data), node_data.cohort(config.data, None, 1), "test")
    # Of 120 items a user has 30: ten places among about 90.
    assert metrics["num_users"] == 60
    assert metrics["hr@10"] < 0.24
