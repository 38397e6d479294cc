"""What the shipped defaults reach on real data, and what must not be reachable at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrec_app import node_data
from fedrec_app.config import RunConfig
from fedrec_app.local_only import local_only
from fedrec_app.models.registry import model_class
from fedrec_app.simulate import simulate


def test_the_shipped_mf_reaches_its_bar_on_ml_100k(tmp_path: Path, ml_100k: Path) -> None:
    flat = {
        "output-dir": str(tmp_path), "data.name": "ml-100k", "data.path": str(ml_100k), "evaluate.every": 10,
    }  # fmt: skip
    summary = simulate(flat, 2).summary
    assert summary["protocol"] == "leave-one-out"
    assert summary["unit"] == "user"
    assert summary["rounds"] <= 100
    assert summary["sampled"]["hr@10"] >= 0.70
    assert summary["sampled"]["ndcg@10"] >= 0.44
    assert summary["test"]["hr@10"] >= 0.19
    assert summary["test"]["ndcg@10"] >= 0.105
    assert summary["test"]["num_users"] == 943


@pytest.mark.parametrize("model", ["mf", pytest.param("neumf", marks=pytest.mark.slow)])
def test_users_who_train_alone_score_at_chance(ml_100k: Path, model: str) -> None:
    flat = {"data.name": "ml-100k", "data.path": str(ml_100k), "model.name": model, "num-server-rounds": 3}
    config = RunConfig.from_flat(flat).resolve(model_class(model).recipe)
    catalog = node_data.prepared(config.data).dataset.catalog
    cohort = node_data.cohort(config.data, None, 1)
    metrics = local_only(config, catalog, cohort, "test")
    assert metrics["num_users"] == 943
    assert 0.06 < metrics["sampled/hr@10"] < 0.13


def test_the_leaky_protocol_is_labelled_wherever_figures_stand(tmp_path: Path, ml_100k: Path) -> None:
    flat = {
        "output-dir": str(tmp_path), "data.name": "ml-100k", "data.path": str(ml_100k), "num-server-rounds": 1,
        "data.protocol": "leaky-pfedrec", "model.options": '{"loss": "bce"}', "train.num-negatives": 4,
    }  # fmt: skip
    result = simulate(flat, 2)
    assert "leaky" in result.summary["warning"]
    assert result.summary["protocol"] == "leaky-pfedrec"
    assert "leaky" in (result.folder.path / "report.md").read_text().split("|")[0]
