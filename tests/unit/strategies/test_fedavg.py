from __future__ import annotations

import numpy as np
import pytest

from fedrec_app.records import from_record, to_record
from strategies.fedavg import FedAvg
from strategies.settings import Settings
from strategies.update import Update
from tests.unit.strategies.given import after_round, arrays_of, asked, assert_arrays, update
from tests.unit.strategies.replies import PARAMS, delta_reply, metrics, reply, roster


def test_it_adds_the_weighted_mean_delta() -> None:
    """Weights 1 and 3: p moves by (1 * 4 + 3 * -8) / 4 = -5, s by (1 * 2 + 3 * 6) / 4 = 5; a weight of 0 is nobody."""
    updates = [update(1, p=[4.0, 0.0], s=2.0), update(3, p=[-8.0, 4.0], s=6.0), update(0, p=[9.0, 9.0], s=9.0)]
    params = arrays_of(p=[1.0, 2.0], s=0.5)
    assert_arrays(after_round(FedAvg(), params, updates), p=[-4.0, 5.0], s=5.5)
    assert_arrays(after_round(FedAvg({"learning_rate": 0.5}), params, updates), p=[-1.5, 3.5], s=3.0)


def test_replies_are_divided_by_the_sum_of_weights_in_the_dtype_of_the_parameters() -> None:
    strategy = FedAvg({}, Settings(), roster())
    asked(strategy, PARAMS)
    replies = [
        delta_reply(10, 1.0, 2.0, weight=1),
        delta_reply(11, 9.0, -6.0, weight=3),
        delta_reply(12, 0.0, 0.0, weight=0),
    ]
    arrays, said = strategy.aggregate_train(1, replies)
    assert arrays is not None
    params = from_record(arrays)
    np.testing.assert_array_equal(params["table"], np.full((3, 2), 2.5, dtype=np.float32))  # (1 + 9) / (1 + 3)
    np.testing.assert_array_equal(params["bias"], np.zeros(1, dtype=np.float32))  # 1 + (2 - 6) / 4
    assert params["table"].dtype == np.float32
    assert said is not None
    assert said["num-updates"] == 3


@pytest.mark.parametrize("weighting", ["examples", "rows"])
def test_where_no_weight_came_nothing_moves_whatever_was_sent(weighting: str) -> None:
    params = arrays_of(t=np.ones((2, 1)), b=[3.0])
    sent = update(0, t=np.zeros((2, 1)), b=[0.0])
    sent.arrays["delta/b"] = np.array([5.0], np.float32)
    sent.arrays["delta/t"] = np.array([[7.0], [1.0]], np.float32)
    if weighting == "rows":
        sent.arrays["count/t"] = np.array([0.0, 2.0], np.float32)
    after = after_round(FedAvg({"weighting": weighting}), params, [sent])
    assert_arrays(after, t=[[1.0], [1.5 if weighting == "rows" else 1.0]], b=[3.0])


def test_ten_clients_with_a_hundred_samples_each_average_to_the_mean_of_their_models() -> None:
    nodes = {100 + k: k for k in range(10)}
    models = [np.random.default_rng(k).normal(size=(3, 2)).astype(np.float32) for k in range(10)]
    strategy = FedAvg({"weighting": "uniform"}, Settings(unit="node"), roster(100, nodes))
    asked(strategy, {"table": PARAMS["table"]}, nodes=nodes)
    replies = [
        reply(node, {"delta/table": models[k] - PARAMS["table"]}, metrics(weight=1.0, num_examples=100))
        for node, k in nodes.items()
    ]
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    np.testing.assert_allclose(from_record(arrays)["table"], sum(models) / 10, rtol=0, atol=1e-7)


def test_rows_weighting_averages_each_row_over_those_who_trained_it() -> None:
    first = Update(
        {"delta/t": np.array([[2.0], [4.0], [0.0]]), "count/t": np.array([2.0, 1.0, 0.0]), "delta/b": np.array([6.0])},
        {"weight": 2.0},
    )
    second = Update(
        {"delta/t": np.array([[4.0], [0.0], [0.0]]), "count/t": np.array([1.0, 0.0, 0.0]), "delta/b": np.array([0.0])},
        {"weight": 1.0},
    )
    params = arrays_of(t=np.zeros((3, 1)), b=[0.0])
    found = after_round(FedAvg({"weighting": "rows"}), params, [first, second])
    assert_arrays(found, t=[[2.0], [4.0], [0.0]], b=[2.0])


def test_what_it_asks_for() -> None:
    messages = asked(FedAvg({"weighting": "users"}, Settings(), roster()), PARAMS, server_round=4)
    config = dict(messages[0].content.config_records["config"])
    assert config == {"server-round": 4, "update": "delta", "weighting": "users"}
    assert messages[0].content.array_records["arrays"] == to_record(PARAMS)
