from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from fedrec_app.errors import ConfigError
from fedrec_app.records import Arrays, from_record, to_record
from fedrec_app.schedules import Schedule
from strategies.base import RecStrategy
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.registry import make_strategy
from strategies.settings import Settings
from strategies.update import Update
from tests.unit.strategies.replies import PARAMS, SilentGrid, delta_reply, error_reply, metrics, reply, roster


def started(strategy: RecStrategy, server_round: int = 1) -> RecStrategy:
    strategy.configure_train(server_round, to_record(PARAMS), ConfigRecord({}), SilentGrid())  # type: ignore[arg-type]
    return strategy


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


def reply_of(node: int, alone: bool) -> Message:
    """A reply of a node, which trained some rows of a table: values of sizes whose float32 or float64 sum would depend
    on the order."""
    generator = np.random.default_rng(node)
    rows = np.flatnonzero(generator.random(40) < 0.4).astype(np.int32)
    values = (generator.normal(size=(len(rows), 3)) * 2.0 ** generator.integers(-40, 40, (len(rows), 3))).astype(
        np.float32
    )
    table = np.zeros((40, 3), dtype=np.float32)
    table[rows] = values
    arrays = {"rows/table": rows, "delta/table": values} if alone else {"delta/table": table}
    scale = generator.normal(size=()).astype(np.float32)
    said = metrics(weight=float(generator.random()), loss=float(generator.normal() * 1e9), num_examples=3)
    return reply(node, {**arrays, "delta/scale": scale}, said)


@pytest.mark.parametrize("strategy", [FedAvg, FedAdam])
def test_the_order_of_replies_and_their_form_leave_no_trace_in_any_bit(strategy: type[RecStrategy]) -> None:
    nodes = {node: node - 100 for node in range(100, 130)}
    params = {"table": np.ones((40, 3), dtype=np.float32), "scale": np.array(2.0, dtype=np.float32)}

    def result(order: Sequence[int], alone: Callable[[int], bool]) -> tuple[bytes, dict[str, Any]]:
        made = strategy({}, Settings(row_names=("table",)), roster(nodes=nodes))
        made.configure_train(1, to_record(params), ConfigRecord({}), SilentGrid(nodes))  # type: ignore[arg-type]
        arrays, said = made.aggregate_train(1, (reply_of(node, alone(node)) for node in order))
        assert arrays is not None
        state = b"".join(array.tobytes() for array in made.state().values())
        return b"".join(array.data for array in arrays.values()) + state, dict(said or {})

    expected = result(list(nodes), lambda node: False)
    assert expected[1]["num-updates"] == 30
    assert result(list(nodes), lambda node: True) == expected
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(list(nodes)).tolist()
        assert result(order, lambda node, seed=seed: (node + seed) % 3 > 0) == expected


class Counting(FedAvg):
    """Counts what it was given, and keeps the number as its state."""

    seen = 0.0
    given: tuple[int, ...] = ()

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        kept = list(updates)
        self.given = tuple(update.partition_id for update in kept)
        self.seen += len(kept)
        return super().aggregate(kept, params)

    def state(self) -> Arrays:
        return {"seen": np.array(self.seen)}

    def load_state(self, state: Arrays) -> None:
        self.seen = float(state["seen"])


def test_below_the_quorum_what_aggregate_returned_and_remembers_is_thrown_away() -> None:
    strategy = started(Counting({}, Settings(min_nodes=3), roster()))
    arrays, said = strategy.aggregate_train(1, [delta_reply(10, 1.0), delta_reply(12, 1.0)])
    assert arrays is None
    assert dict(said or {}) == {"dropped/no-reply": 1, "skipped": 1}
    assert strategy.given == (0, 2)  # type: ignore[attr-defined]
    assert strategy.state()["seen"] == 0


def test_without_a_valid_update_aggregate_is_not_called() -> None:
    strategy = started(Counting({}, Settings(), roster()))
    strategy.aggregate = None  # type: ignore[assignment,method-assign]
    assert strategy.aggregate_train(1, [error_reply(10)])[0] is None


def test_updates_come_as_they_arrive_or_where_single_ones_are_looked_at_in_the_order_of_partitions() -> None:
    class Individual(Counting):
        needs = "individual"

    given = []
    for made in (Counting({}, Settings(), roster()), Individual({}, Settings(), roster())):
        started(made).aggregate_train(1, [delta_reply(12, 3.0), delta_reply(10, 1.0), delta_reply(11, 2.0)])
        given.append(made.given)
    assert given == [(2, 0, 1), (0, 1, 2)]


def test_where_single_updates_are_looked_at_too_few_are_not_aggregated() -> None:
    class Individual(Counting):
        needs = "individual"

    strategy = started(Individual({}, Settings(min_nodes=3), roster()))
    assert strategy.aggregate_train(1, [delta_reply(12, 3.0), delta_reply(10, 1.0)])[0] is None
    assert strategy.given == ()  # type: ignore[attr-defined]


def test_rows_that_the_settings_do_not_name_are_refused() -> None:
    strategy = started(FedAvg({}, Settings(), roster()))
    arrays = {
        "rows/table": np.array([1], np.int32), "delta/table": np.ones((1, 2), np.float32),
        "delta/bias": np.ones(1, np.float32),
    }  # fmt: skip
    _, said = strategy.aggregate_train(1, [reply(10, arrays, metrics())])
    assert said is not None
    assert said["dropped/extra-array"] == 1


def test_losses_near_the_end_of_float64_do_not_end_the_round() -> None:
    strategy = started(FedAvg({}, Settings(), roster()))
    arrays = {"delta/table": np.ones((3, 2), np.float32), "delta/bias": np.ones(1, np.float32)}
    replies = [reply(node, arrays, metrics(loss=1.7e308)) for node in (10, 11)]
    found, said = strategy.aggregate_train(1, [*replies, delta_reply(12, 1.0)])
    assert found is not None
    assert said is not None
    assert (said["dropped/bad-scalar"], said["num-updates"]) == (2, 1)


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
    with pytest.raises(ConfigError, match=r"does not derive from fedrec_app\.api\.RecStrategy"):
        make_strategy("pathlib:Path", {}, Settings(), roster())


def test_stock_strategies_have_no_schedule_and_say_so() -> None:
    settings = Settings(schedule=Schedule.parse("cosine", "strategy.schedule"))
    with pytest.raises(ConfigError, match=r"knows no strategy\.schedule"):
        make_strategy("flwr.serverapp.strategy:FedAdam", {}, settings, roster())


class Stumbling(FedAdam):
    """Fails when its state has moved already."""

    name = "stumbling"

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        super().server_step(params, delta, server_round)
        raise RuntimeError("out of luck")


def test_a_strategy_that_fails_in_a_round_is_as_it_was_before() -> None:
    strategy = Stumbling({}, Settings(), roster())
    before = strategy.state()
    strategy.configure_train(1, to_record(PARAMS), ConfigRecord({}), SilentGrid())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="out of luck"):
        strategy.aggregate_train(1, [delta_reply(10, 1.0)])
    assert strategy.state().keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(strategy.state()[name], array)


def test_stock_strategies_get_the_settings_that_they_know() -> None:
    stock = make_strategy("flwr.serverapp.strategy:FedAdam", {"eta": 0.5}, Settings(fraction_train=0.5), roster())
    assert stock.eta == 0.5  # type: ignore[attr-defined]
    assert stock.fraction_train == 0.5  # type: ignore[attr-defined]
    assert stock.min_available_nodes == 1  # type: ignore[attr-defined]
