"""Flower's own strategies drive our clients: by class path in a run of ours, and as a Flower user would start them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from fedrec_app import client_app, node_data
from fedrec_app.config import Scalar
from fedrec_app.errors import ConfigError
from fedrec_app.local_grid import LocalGrid
from fedrec_app.models.base import initialise
from fedrec_app.models.registry import make_model, resolved
from fedrec_app.records import Arrays, from_record, to_record
from fedrec_app.server_app import RunResult
from fedrec_app.simulate import simulate
from tests.e2e.helpers import SMALL, assert_same_arrays

NODES = 4
STOCK = "flwr.serverapp.strategy"
# Averages over users, which the mean of node means weighted by users must equal; not coverage and Gini, which are not.
AVERAGES = [f"{name}@{k}" for name in ("hr", "ndcg", "recall", "precision", "mrr") for k in (5, 10, 20)]
MODELS: dict[str, dict[str, Scalar]] = {
    "mf, all items": {"model.name": "mf"},
    "mf, sampled negatives": {
        "model.name": "mf",
        "model.options": '{"loss": "bce"}',
        "train.num-negatives": 4,
        "train.private-epochs": 1,
    },
    "neumf, pooled": {"model.name": "neumf", "train.unit": "node", "train.batch-size": 32, "train.local-epochs": 2},
}


def settings(tmp_path: Path, **more: Scalar) -> dict[str, Scalar]:
    return {**SMALL, "output-dir": str(tmp_path / "out"), **more}


def run_strategy(tmp_path: Path, name: str, options: Mapping[str, Any], **more: Scalar) -> RunResult:
    chosen = {"strategy.name": name, "strategy.options": json.dumps(options), **more}
    return simulate(settings(tmp_path, **chosen), NODES)


def initial_arrays(flat: Mapping[str, Any]) -> Arrays:
    config = resolved(flat)
    model = initialise(make_model(config.model), node_data.catalog(config.data), None, config.seed)
    return {name: model.get_parameter(name).detach().numpy().copy() for name in model.shared_names()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FedAvg", {}),
        ("FedAdam", {"eta": 0.03, "tau": 1e-8}),
        ("FedProx", {"proximal_mu": 0.1}),
        ("FedMedian", {}),
        ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 2}),
        ("Krum", {"num_malicious_nodes": 1}),
    ],
)
def test_a_stock_strategy_trains_our_clients(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    result = run_strategy(tmp_path, f"{STOCK}:{name}", options)
    assert result.summary["status"] == "completed"
    assert result.summary["num_nodes"] == NODES
    for metrics in (result.summary["test"], result.summary["validation"]):
        assert metrics["num_users"] == 60
        assert 0 < metrics["ndcg@10"] < 1
    rounds = result.folder.read_metrics()
    assert [record["round"] for record in rounds] == [1, 2, 3]
    assert all(0 < record["validation"]["ndcg@10"] < 1 for record in rounds)
    assert all(record["bytes_up"] > 0 for record in rounds)
    trained, _, _ = result.folder.read_model()
    before = initial_arrays(settings(tmp_path))
    assert sorted(trained) == sorted(before)
    for array_name, array in trained.items():
        assert np.isfinite(array).all()
        assert np.abs(array - before[array_name]).max() > 1e-4, array_name


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_stock_fedavg_is_our_fedavg_weighted_by_examples(tmp_path: Path, model: dict[str, Scalar]) -> None:
    stock = run_strategy(tmp_path, f"{STOCK}:FedAvg", {}, **model)
    ours = run_strategy(tmp_path, "fedavg", {"weighting": "examples"}, **model)
    assert_same_arrays(stock.folder.read_model()[0], ours.folder.read_model()[0])
    for one, other in zip(stock.folder.read_metrics(), ours.folder.read_metrics(), strict=True):
        assert one["validation"] == pytest.approx(other["validation"], abs=1e-5)


def test_another_weighting_is_not_stock_fedavg(tmp_path: Path) -> None:
    stock = run_strategy(tmp_path, f"{STOCK}:FedAvg", {})
    ours = run_strategy(tmp_path, "fedavg", {"weighting": "users"})
    one, other = stock.folder.read_model()[0], ours.folder.read_model()[0]
    assert max(np.abs(one[name] - other[name]).max() for name in one) > 1e-4


def test_fedprox_holds_the_clients_back(tmp_path: Path) -> None:
    many_steps: dict[str, Scalar] = {**MODELS["neumf, pooled"], "train.local-epochs": 3, "num-server-rounds": 1}
    before = initial_arrays(settings(tmp_path, **many_steps))

    def moved(mu: float) -> float:
        arrays, _, _ = run_strategy(tmp_path, f"{STOCK}:FedProx", {"proximal_mu": mu}, **many_steps).folder.read_model()
        return sum(float(np.square(arrays[name] - before[name]).sum()) for name in before)

    assert moved(1.0) < 0.9 * moved(0.0)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_a_flower_user_trains_our_clients_without_our_server(tmp_path: Path, model: dict[str, Scalar]) -> None:
    flat = settings(tmp_path / "stock", **model)
    grid = LocalGrid(client_app.app, flat, NODES)
    before = initial_arrays(flat)
    result = FedAvg().start(grid, to_record(before), num_rounds=3)

    after = from_record(result.arrays)
    assert all(np.abs(after[name] - before[name]).max() > 1e-4 for name in before)
    losses = [result.train_metrics_clientapp[r]["loss"] for r in (1, 2, 3)]
    assert losses[2] < losses[0]
    ours = run_strategy(tmp_path / "ours", "fedavg", {"weighting": "examples"}, **model)
    for record in ours.folder.read_metrics():
        evaluated = result.evaluate_metrics_clientapp[record["round"]]
        for name in AVERAGES:
            assert evaluated[name] == pytest.approx(record["validation"][name], abs=1e-5), (record["round"], name)
        assert evaluated["loss"] == pytest.approx(1 - record["validation"]["ndcg@10"], abs=1e-5)


def test_a_second_run_of_a_flower_user_starts_afresh_in_the_same_state_dir(tmp_path: Path) -> None:
    flat = settings(tmp_path, **MODELS["neumf, pooled"])

    def train() -> Arrays:
        grid = LocalGrid(client_app.app, flat, NODES)
        return from_record(FedAvg().start(grid, to_record(initial_arrays(flat)), num_rounds=3).arrays)

    assert_same_arrays(train(), train(), tolerance=1e-6)  # stock FedAvg adds up in a random order


def test_a_stock_strategy_with_an_option_it_does_not_have_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown option of strategy .*'proximal-nu'.*did you mean 'proximal_mu'"):
        run_strategy(tmp_path, f"{STOCK}:FedProx", {"proximal-nu": 0.1})
