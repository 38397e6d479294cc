"""What one lying node can do to a run: nothing but be dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedrec_app.errors import FedrecError
from fedrec_app.evaluation.sums import MetricSums
from fedrec_app.records import ARRAYS, CONFIG, METRICS, num_bytes, to_record
from strategies.evaluation import FederatedEvaluation
from strategies.fedavg import FedAvg
from strategies.rollcall import Member, MembersOnly, Roster
from strategies.settings import Settings
from tests.unit.strategies.replies import PARAMS, SilentGrid, metrics, reply, roster
from tests.unit.test_rollcall_rounds import Nodes, on
from tests.unit.test_rollcall_rounds import roster as called

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
MEMBERS = [Member(node, partition, 3, 10, 100, 0, 10) for node, partition in ((10, 0), (11, 1), (12, 2))]


def judged(node: int, value: float, users: int, server_round: int = 1, weight: float | None = None) -> Message:
    asked = Message(RecordDict({CONFIG: ConfigRecord({})}), node, "evaluate")
    total = float(users) if weight is None else weight
    found = MetricSums(
        ("ndcg@10",), np.array([[value * total, total]]), np.zeros(4, dtype=np.int64), users, 0, users, 0, 10
    )
    arrays = to_record({f"eval/{name}": array for name, array in found.to_arrays().items()})
    said = MetricRecord({"server-round": server_round})
    return Message(RecordDict({ARRAYS: arrays, METRICS: said}), reply_to=asked)


def aggregated(*replies: Message) -> Any:
    evaluation = FederatedEvaluation()
    evaluation.configure(1, ArrayRecord({}), ConfigRecord({}), MEMBERS)
    return evaluation.aggregate(1, replies)


def test_a_node_cannot_claim_users_that_it_does_not_have() -> None:
    found = aggregated(judged(10, 0.1, 5), judged(11, 0.3, 5), judged(12, 1.0, 1_000_000))
    assert found["ndcg@10"] == pytest.approx(0.2)
    assert found["dropped-evaluations"] == 1


def test_numbers_near_the_end_of_int64_do_not_end_the_run() -> None:
    found = aggregated(judged(10, 0.1, 5), judged(12, 1.0, 2**63 - 1, weight=float(2**63)))
    assert found["ndcg@10"] == pytest.approx(0.1)
    assert found["dropped-evaluations"] == 2  # and the one that did not answer


def test_an_evaluation_counts_once_and_only_for_its_round_and_from_who_was_asked() -> None:
    found = aggregated(judged(10, 0.1, 5), judged(10, 0.9, 5), judged(11, 0.9, 5, server_round=2), judged(99, 0.9, 5))
    assert found["ndcg@10"] == pytest.approx(0.1)
    assert found["dropped-evaluations"] == 4  # and the one that did not answer


@pytest.mark.parametrize("counts", [[2**63 - 1, 0, 0], [5, 5, 1], [10, 10, 0]])
def test_item_counts_that_do_not_add_up_to_the_examples_are_not_believed(counts: list[int]) -> None:
    def lie(answer: Any) -> None:
        if answer.partition == 1:
            answer.arrays = {"stat/item-counts": np.array(counts, dtype=np.int64)}

    found = called(statistics=["item-counts"])
    found.wait(Nodes(3, lie), 1)
    assert found.sums == {}


def test_a_count_above_the_weight_is_dropped() -> None:
    strategy = FedAvg({"weighting": "rows"}, Settings(row_names=("table",)), roster())
    strategy.configure_train(1, to_record(PARAMS), ConfigRecord({}), SilentGrid())  # type: ignore[arg-type]
    arrays = {
        "delta/table": np.ones((3, 2), dtype=np.float32), "delta/bias": np.ones(1, dtype=np.float32),
        "count/table": np.array([1, 1e38, 1], dtype=np.float32),
    }  # fmt: skip
    _, found = strategy.aggregate_train(1, [reply(10, arrays, metrics(weight=5.0))])
    assert found is not None
    assert found["dropped/bad-count"] == 1


def test_a_step_that_leaves_float32_is_undone_and_the_next_round_goes_on() -> None:
    strategy = FedAvg({"learning_rate": 10.0}, Settings(), roster())
    ones = {"delta/table": np.ones((3, 2), dtype=np.float32), "delta/bias": np.ones(1, dtype=np.float32)}
    huge = {name: array * np.float32(3e38) for name, array in ones.items()}
    strategy.configure_train(1, to_record(PARAMS), ConfigRecord({}), SilentGrid())  # type: ignore[arg-type]
    arrays, found = strategy.aggregate_train(1, [reply(10, huge, metrics())])
    assert arrays is None
    assert found is not None
    assert found["skipped"] == 1
    strategy.configure_train(2, to_record(PARAMS), ConfigRecord({}), SilentGrid())  # type: ignore[arg-type]
    arrays, _ = strategy.aggregate_train(2, [reply(10, ones, metrics(server_round=2))])
    assert arrays is not None


def test_stock_strategies_see_members_only_and_cannot_wait_without_end() -> None:
    nodes = Nodes(3, on("query", 1, **{"catalog-hash": "another"}))
    found = called()
    found.wait(nodes, 1)
    grid = MembersOnly(nodes, found, patience=0.05)
    assert list(grid.get_node_ids()) == [nodes.node[0], nodes.node[2]]
    with pytest.raises(FedrecError, match="more than 2 nodes"):
        _ask_for_ever(grid)


def _ask_for_ever(grid: MembersOnly) -> None:
    while True:
        grid.get_node_ids()


def test_a_node_that_never_answers_the_roll_call_is_not_waited_for_in_every_round() -> None:
    nodes = Nodes(2)
    nodes.silent.add(1)
    found = Roster("catalog", "model", timeout=0.1)
    for _ in range(40):
        found.refresh(nodes)
    assert len([asked for kind, asked in nodes.asked if kind == "query"]) == 6  # at looks 1, 2, 4, 8, 16, 32
    assert "did not answer" in next(iter(found.refused.values()))


def test_empty_texts_and_lists_in_a_reply_are_counted_and_not_raised_over() -> None:
    config = ConfigRecord({"text": "", "texts": [], "word": "four", "yes": True, "numbers": [1, 2]})
    content = RecordDict({"config": config, "metrics": MetricRecord({"loss": 0.5, "losses": []})})
    assert num_bytes(content) == (4 + 0) + (5 + 0) + (4 + 4) + (3 + 1) + (7 + 16) + (4 + 8) + (6 + 0)
