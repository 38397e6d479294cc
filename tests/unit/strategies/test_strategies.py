from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedrec_app.errors import ConfigError
from fedrec_app.records import from_record, to_record
from strategies.aggregators import WeightedMean
from strategies.base import RecStrategy, Settings
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.registry import make_strategy
from strategies.update import Update
from tests.unit.strategies.replies import PARAMS, SilentGrid, delta_reply, error_reply, roster


def started(strategy: RecStrategy, server_round: int = 1) -> RecStrategy:
    strategy.configure_train(server_round, to_record(PARAMS), ConfigRecord({}), SilentGrid())  # type: ignore[arg-type]
    return strategy


def test_fedavg_divides_the_sum_of_weighted_deltas_by_the_sum_of_weights() -> None:
    strategy = started(FedAvg({}, Settings(), roster()))
    replies = [
        delta_reply(10, 1.0, 2.0, weight=1),
        delta_reply(11, 9.0, -6.0, weight=3),
        delta_reply(12, 0.0, 0.0, weight=0),
    ]
    arrays, metrics = strategy.aggregate_train(1, replies)
    assert arrays is not None
    params = from_record(arrays)
    np.testing.assert_array_equal(params["table"], np.full((3, 2), 2.5, dtype=np.float32))  # (1 + 9) / (1 + 3)
    np.testing.assert_array_equal(params["bias"], np.zeros(1, dtype=np.float32))  # 1 + (2 - 6) / 4
    assert params["table"].dtype == np.float32
    assert metrics is not None
    assert metrics["num-updates"] == 3


def test_ten_clients_with_a_hundred_samples_each_average_to_the_mean_of_their_models() -> None:
    nodes = {100 + k: k for k in range(10)}
    models = [np.random.default_rng(k).normal(size=(3, 2)).astype(np.float32) for k in range(10)]
    strategy = FedAvg({"weighting": "uniform"}, Settings(unit="node"), roster(100, nodes))
    strategy.configure_train(1, to_record({"table": PARAMS["table"]}), ConfigRecord({}), SilentGrid(nodes))  # type: ignore[arg-type]
    from tests.unit.strategies.replies import metrics, reply

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
    mean = WeightedMean()([first, second], {"t": np.zeros((3, 1)), "b": np.zeros(1)})
    np.testing.assert_array_equal(mean["t"], [[2.0], [4.0], [0.0]])
    np.testing.assert_array_equal(mean["b"], [2.0])


def test_fedadam_takes_the_step_worked_out_by_hand() -> None:
    options = {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3, "bias_correction": False}
    strategy = FedAdam(options)
    one = strategy.server_step({"p": np.zeros(1, dtype=np.float32)}, {"p": np.array([2.0])}, 1)
    # m = .1 * 2 = .2; v = .01 * 4 = .04; step = .1 * .2 / (.2 + .001)
    assert one["p"][0] == pytest.approx(0.1 * 0.2 / 0.201, rel=1e-6)
    two = strategy.server_step(one, {"p": np.array([-1.0])}, 2)
    # m = .9 * .2 - .1 = .08; v = .99 * .04 + .01 = .0496
    assert two["p"][0] - one["p"][0] == pytest.approx(0.1 * 0.08 / (0.0496**0.5 + 0.001), rel=1e-5)


def test_fedadam_with_bias_correction_first_moves_by_the_learning_rate() -> None:
    strategy = FedAdam({"learning_rate": 0.1, "tau": 1e-9})
    moved = strategy.server_step({"p": np.zeros(2, dtype=np.float32)}, {"p": np.array([5.0, -0.01])}, 1)
    np.testing.assert_allclose(moved["p"], [0.1, -0.1], rtol=1e-5)


def test_a_round_below_the_quorum_is_skipped_and_said_so() -> None:
    strategy = started(FedAvg({}, Settings(min_nodes=2), roster()))
    arrays, metrics = strategy.aggregate_train(1, [delta_reply(10, 1.0), error_reply(11)])
    assert arrays is None
    assert metrics is not None
    assert metrics["skipped"] == 1
    assert metrics["dropped/error-reply"] == 1
    assert metrics["dropped/no-reply"] == 1


def test_a_round_in_which_nobody_had_anything_to_train_changes_nothing() -> None:
    strategy = started(FedAvg({}, Settings(), roster()))
    arrays, _ = strategy.aggregate_train(1, [delta_reply(node, 0.0, weight=0) for node in (10, 11, 12)])
    assert arrays is not None
    np.testing.assert_array_equal(from_record(arrays)["bias"], PARAMS["bias"])


def test_nodes_are_drawn_by_partition_and_round_and_not_by_node_id() -> None:
    def drawn(nodes: dict[int, int], server_round: int) -> list[int]:
        strategy = FedAvg({}, Settings(seed=3, fraction_train=0.5), roster(nodes=nodes))
        strategy.configure_train(server_round, to_record(PARAMS), ConfigRecord({}), SilentGrid(nodes))  # type: ignore[arg-type]
        return [member.partition_id for member in strategy._asked]

    ids = {1000 - k: k for k in range(20)}
    shuffled = {7 * k + 1: k for k in range(20)}
    picks = [drawn(ids, r) for r in range(1, 6)]
    assert picks == [drawn(shuffled, r) for r in range(1, 6)]
    assert all(len(pick) == 10 for pick in picks)
    assert len({tuple(pick) for pick in picks}) > 1


def test_the_config_of_the_caller_is_not_changed() -> None:
    config = ConfigRecord({"lineage": "a"})
    FedAvg({}, Settings(), roster()).configure_train(1, to_record(PARAMS), config, SilentGrid())  # type: ignore[arg-type]
    assert dict(config) == {"lineage": "a"}


def test_unknown_options_and_names_are_refused_with_the_nearest_match() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown option of strategy 'fedadam' 'learning_rte'.*did you mean 'learning_rate'"
    ):
        make_strategy("fedadam", {"learning_rte": 0.1}, Settings(), roster())
    with pytest.raises(ConfigError, match="did you mean 'fedavg'"):
        make_strategy("fedavgg", {}, Settings(), roster())
    with pytest.raises(ConfigError, match="learning_rate is -1"):
        make_strategy("fedavg", {"learning_rate": -1}, Settings(), roster())
    with pytest.raises(ConfigError, match=r"proximal_mu|fraction"):
        make_strategy("flwr.serverapp.strategy:FedProx", {"mu": 1}, Settings(), roster())
    with pytest.raises(ConfigError, match=r"not a flwr\.serverapp\.strategy\.Strategy"):
        make_strategy("pathlib:Path", {}, Settings(), roster())


def test_stock_strategies_get_the_settings_that_they_know() -> None:
    stock = make_strategy("flwr.serverapp.strategy:FedAdam", {"eta": 0.5}, Settings(fraction_train=0.5), roster())
    assert stock.eta == 0.5  # type: ignore[attr-defined]
    assert stock.fraction_train == 0.5  # type: ignore[attr-defined]
    assert stock.min_available_nodes == 1  # type: ignore[attr-defined]
