"""The roll-call, the loop over rounds and federated evaluation, over nodes that behave and nodes that do not."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedrec_app.errors import ConfigError, FedrecError
from fedrec_app.evaluation.sums import MetricSums
from fedrec_app.local_grid import LocalGrid
from fedrec_app.records import ARRAYS, CONFIG, METRICS, Arrays, Ask, from_record, num_bytes, to_record
from fedrec_app.simulate import simulate
from strategies.evaluation import FederatedEvaluation
from strategies.fedavg import FedAvg
from strategies.rollcall import Roster
from strategies.rounds import Progress, RoundRecord, run_rounds
from strategies.settings import Settings
from tests.small import SMALL
from tests.unit.strategies.test_exchange import Alive

PARAMS: Arrays = {"table": np.zeros((3, 2), dtype=np.float32)}


@dataclass
class Reply:
    """What a node is about to answer; tests change it."""

    kind: str
    partition: int
    round: int
    said: dict[str, Any]
    arrays: Arrays = field(default_factory=dict)


def well_behaved(reply: Reply) -> None:
    """Leaves the reply as it is."""


class Nodes(LocalGrid):
    """Nodes with one user each: partition p moves the table by p + 1 and finds what the script says.

    Args:
        num_nodes: how many.
        change: called with every reply before it goes out; may change it or raise.
        found: validation metric by round.
    """

    def __init__(
        self, num_nodes: int, change: Callable[[Reply], None] = well_behaved, found: Iterable[float] = (0.5,) * 9
    ) -> None:
        self.away: set[int] = set()
        self.silent: set[int] = set()
        self.asked: list[tuple[str, list[int]]] = []
        self.sent: list[Message] = []
        self.told: list[Message] = []
        found = list(found)
        app = ClientApp()

        def partition_of(context: Context) -> int:
            return int(context.node_config["partition-id"])

        @app.query()
        def query(message: Message, context: Context) -> Message:
            partition = partition_of(context)
            said = {
                "partition-id": partition, "num-partitions": num_nodes, "num-users": 1, "num-examples": 10,
                "catalog-hash": "catalog", "model-hash": "model", "schema": 1,
                "num-quarantined": 0, "cohort-size": 1000,
            }  # fmt: skip
            counts = {"stat/item-counts": np.array([partition, 1, 9 - partition], dtype=np.int64)}
            reply = Reply("query", partition, 0, said, counts)
            change(reply)
            records = {CONFIG: ConfigRecord(reply.said), ARRAYS: to_record(reply.arrays)}
            return Message(RecordDict(records), reply_to=message)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            config, partition = message.content.config_records[CONFIG], partition_of(context)
            server_round = int(config[Ask.ROUND])  # type: ignore[arg-type]
            said = {"weight": 10.0, "num-users": 1, "num-examples": 10, "loss": 5.0, "server-round": server_round}
            arrays = {"delta/table": np.full((3, 2), 10 * (partition + 1), dtype=np.float32)}
            reply = Reply("train", partition, server_round, said, arrays)
            change(reply)
            records = {METRICS: MetricRecord(reply.said), ARRAYS: to_record(reply.arrays)}
            return Message(RecordDict(records), reply_to=message)

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            server_round = int(message.content.config_records[CONFIG][Ask.ROUND])  # type: ignore[arg-type]
            reply = Reply("evaluate", partition_of(context), server_round, {}, metric_sums(found[server_round - 1]))
            change(reply)
            records = {
                METRICS: MetricRecord({"num-examples": 1, "server-round": server_round}),
                ARRAYS: to_record(reply.arrays),
            }
            return Message(RecordDict(records), reply_to=message)

        super().__init__(app, {}, num_nodes, taps=[self._tap])
        self.partition = {node: int(c.node_config["partition-id"]) for node, c in self._contexts.items()}
        self.node = {partition: node for node, partition in self.partition.items()}

    def _tap(self, message: Message) -> None:
        (self.told if message.metadata.reply_to_message_id else self.sent).append(message)

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if self.partition[node] not in self.away]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        asked = [self.partition[m.metadata.dst_node_id] for m in messages]
        self.asked.append((messages[0].metadata.message_type, asked))
        heard = [m for m, partition in zip(messages, asked, strict=True) if partition not in self.silent]
        return super().push_messages(heard)


def metric_sums(value: float, names: tuple[str, ...] = ("ndcg@10",), num_items: int = 3) -> Arrays:
    sums = np.array([[value] * len(names) + [1.0]])
    found = MetricSums(names, sums, np.zeros(num_items, dtype=np.int64), 1, 0, 1, 0, 10)
    return {f"eval/{name}": array for name, array in found.to_arrays().items()}


def roster(timeout: float = 5.0, **changed: Any) -> Roster:
    return Roster(**{"catalog_hash": "catalog", "model_hash": "model", "timeout": timeout, **changed})


def partitions(found: Roster) -> list[int]:
    return [member.partition_id for member in found.partitions()]


def on(kind: str, partition: int, **said: Any) -> Callable[[Reply], None]:
    def change(reply: Reply) -> None:
        if (reply.kind, reply.partition) == (kind, partition):
            reply.said.update({key.replace("_", "-"): value for key, value in said.items()})

    return change


# Roll-call -----------------------------------------------------------------------------------------------------------


def test_members_come_in_the_order_of_partitions_with_what_they_said() -> None:
    grid = Nodes(4, on("query", 2, num_users=7, num_examples=70, num_quarantined=3))
    found = roster()
    found.wait(grid, 1)
    assert partitions(found) == [0, 1, 2, 3]
    assert found.refused == {}
    third = found.partitions()[2]
    assert (third.node_id, third.num_partitions, third.num_users, third.num_examples) == (grid.node[2], 4, 7, 70)
    assert third.num_quarantined == 3
    assert grid.asked == [("query", [grid.partition[node] for node in sorted(grid.partition)])]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"catalog_hash": "c" * 64}, "its catalog-hash is cccccccccccc, this run's is catalog"),
        ({"model_hash": "m" * 64}, "its model-hash is mmmmmmmmmmmm, this run's is model"),
        ({"num_users": -1}, "its numbers [1, 3, -1, 10, 0, 1000] are not whole numbers from 0 to 1e+09"),
        ({"num_users": 1.5}, "its numbers [1, 3, 1.5, 10, 0, 1000] are not whole numbers from 0 to 1e+09"),
        ({"partition_id": "one"}, "its numbers ['one', 3, 1, 10, 0, 1000] are not whole numbers from 0 to 1e+09"),
        (
            {"num_examples": 2 * 10**9},
            "its numbers [1, 3, 1, 2000000000, 0, 1000] are not whole numbers from 0 to 1e+09",
        ),
    ],
)
def test_a_node_that_does_not_fit_is_refused_with_the_reason(said: dict[str, Any], reason: str) -> None:
    grid, found = Nodes(3, on("query", 1, **said)), roster()
    found.wait(grid, 2)
    assert partitions(found) == [0, 2]
    assert found.refused == {grid.node[1]: reason}


def test_an_answer_that_lacks_something_or_is_an_error_is_refused() -> None:
    def change(reply: Reply) -> None:
        if reply.partition == 0:
            del reply.said["catalog-hash"]
        if reply.partition == 1:
            raise ConfigError("no file here.csv")

    grid, found = Nodes(3, change), roster()
    found.wait(grid, 1)
    assert partitions(found) == [2]
    assert "catalog-hash" in found.refused[grid.node[0]]
    assert found.refused[grid.node[1]] == "no file here.csv"


def test_a_partition_is_given_to_one_node_and_to_the_other_when_the_first_leaves() -> None:
    grid, found = Nodes(2, on("query", 1, partition_id=0)), roster(statistics=["item-counts"])
    found.wait(grid, 1)
    first, second = sorted(grid.partition)
    assert list(found.members) == [first]
    assert found.refused == {second: "partition 0 is taken by another node"}
    counts = found.sums["item-counts"]
    grid.away.add(grid.partition[first])
    found.refresh(grid)
    assert list(found.members) == [second]
    assert found.refused == {}
    np.testing.assert_array_equal(found.sums["item-counts"], counts)


def test_nodes_that_join_later_are_called_once_and_nodes_that_leave_are_forgotten() -> None:
    grid, found = Nodes(3, on("query", 2, catalog_hash="another")), roster()
    grid.away = {1, 2}
    found.refresh(grid)
    assert partitions(found) == [0]
    grid.away = set()
    found.refresh(grid)
    found.refresh(grid)
    assert partitions(found) == [0, 1]
    assert grid.asked == [
        ("query", [0]),
        ("query", [grid.partition[n] for n in sorted(grid.partition) if n != grid.node[0]]),
    ]
    grid.away = {0, 2}
    found.refresh(grid)
    assert partitions(found) == [1]
    assert found.refused == {}


def test_a_node_that_did_not_answer_is_called_again() -> None:
    grid, found = Nodes(2), roster()
    grid.silent = {1}
    found.refresh(grid)
    assert partitions(found) == [0]
    grid.silent = set()
    found.refresh(grid)
    assert partitions(found) == [0, 1]


def test_a_refused_node_that_was_mended_takes_part_without_a_restart() -> None:
    wrong = {"hash": "another"}
    grid = Nodes(2, lambda reply: reply.said.update({"catalog-hash": wrong["hash"]}) if reply.partition == 1 else None)
    found = roster(statistics=["item-counts"])
    found.wait(grid, 1)
    assert partitions(found) == [0]
    counts = found.sums["item-counts"].copy()
    wrong["hash"] = "catalog"
    found.refresh(grid)
    assert partitions(found) == [0]  # not at every look: that would cost each round an exchange
    found.refresh(grid)
    assert partitions(found) == [0, 1]
    assert found.refused == {}
    np.testing.assert_array_equal(found.sums["item-counts"], counts)
    asked = [message.content.config_records[CONFIG]["statistics"] for message in grid.sent]
    assert asked == ["item-counts", "item-counts", ""]  # who joins later keeps his counts


def test_a_silent_node_is_not_called_again_because_others_come_and_go() -> None:
    class Flapping(Nodes):
        looks = 0

        def get_node_ids(self) -> Iterable[int]:
            self.looks += 1
            self.away = {2} if self.looks % 2 else set()
            return super().get_node_ids()

    grid, found = Flapping(3), roster(timeout=0.01)
    grid.silent = {1}
    for _ in range(40):
        found.refresh(grid)
    assert sum(1 in asked for _, asked in grid.asked) == 6  # at looks 1, 2, 4, 8, 16, 32


@pytest.mark.parametrize(
    "reason",
    [
        "Traceback ...\nfedrec_app.errors.ConfigError: unknown node setting 'data-pth'",
        "<class 'fedrec_app.errors.ConfigError'>:<'unknown node setting 'data-pth''>",
    ],
    ids=["as Python says it", "as Flower's ClientApp says it"],
)
def test_the_reason_of_a_refusal_is_the_text_alone(reason: str) -> None:
    asked = Message(RecordDict(), 7, MessageType.QUERY)
    found = roster()
    found._admit(Message(Error(2, reason), reply_to=asked))
    assert found.refused == {7: "unknown node setting 'data-pth'"}


def test_nodes_that_left_are_waited_for_where_the_others_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.rollcall._PAUSE", 0.01)

    class Restarted(Nodes):
        looks = 0

        def get_node_ids(self) -> Iterable[int]:
            self.looks += 1
            self.away = {1} if self.looks in (2, 3, 4) else set()
            return super().get_node_ids()

    grid, found = Restarted(2), roster()
    found.wait(grid, 2)
    found.gather(grid, 1)
    assert (grid.looks, partitions(found)) == (2, [0])  # one is enough
    found.gather(grid, 2)
    assert (grid.looks, partitions(found)) == (3, [0])  # nobody has left since
    grid.looks = 0
    found.gather(grid, 2)
    found.gather(grid, 2)
    assert (grid.looks, partitions(found)) == (5, [0, 1])


def test_nodes_that_do_not_come_back_are_waited_for_no_longer_than_the_timeout() -> None:
    grid, found = Nodes(2), roster(timeout=0.3)
    found.wait(grid, 2)
    grid.away = {1}
    began = time.monotonic()
    found.gather(grid, 2)
    assert 0.3 <= time.monotonic() - began < 2
    assert partitions(found) == [0]


def test_the_roll_call_waits_until_every_announced_partition_is_there() -> None:
    class Slow(Nodes):
        calls = 0

        def get_node_ids(self) -> Iterable[int]:
            self.calls += 1
            self.away = {1, 2} if self.calls == 1 else {2} if self.calls == 2 else set()
            return super().get_node_ids()

    grid, found = Slow(3), roster()
    found.wait(grid, 1)
    assert partitions(found) == [0, 1, 2]
    assert grid.calls == 3


def test_too_few_nodes_are_an_error_within_the_timeout() -> None:
    grid, found = Nodes(3, on("query", 1, catalog_hash="another")), roster(timeout=0.5)
    grid.away = {2}
    began = time.monotonic()
    with pytest.raises(FedrecError) as caught:
        found.wait(grid, 2)
    assert 0.5 <= time.monotonic() - began < 2.0
    assert str(caught.value) == (
        "1 of at least 2 nodes take part after 0.5 s; 1 refused: its catalog-hash is another, this run's is catalog"
    )


def test_where_all_are_refused_nobody_is_waited_for() -> None:
    grid, found = Nodes(1, on("query", 0, catalog_hash="another")), roster(timeout=30)
    began = time.monotonic()
    with pytest.raises(
        FedrecError, match=r"0 of at least 1 nodes take part after 0\.\d s; 1 refused: its catalog-hash"
    ):
        found.wait(grid, 1)
    assert time.monotonic() - began < 5


def test_statistics_are_added_over_all_nodes() -> None:
    found = roster(statistics=["item-counts"])
    found.wait(Nodes(3), 1)
    assert found.withheld == 0
    np.testing.assert_array_equal(found.sums["item-counts"], [0 + 1 + 2, 3, 9 + 8 + 7])


def _statistic(value: Any) -> Callable[[Reply], None]:
    def change(reply: Reply) -> None:
        if reply.partition == 1:
            reply.arrays = {} if value is None else {"stat/item-counts": value}

    return change


@pytest.mark.parametrize(
    "value",
    [None, np.array([1.0, 2.0, 3.0]), np.array([1, -1, 0]), np.array([1, 2]), np.array([[1, 2, 3]])],
    ids=["withheld", "floats", "negative", "shorter", "matrix"],
)
def test_statistics_that_one_node_does_not_tell_rightly_give_no_sum_at_all(value: Any) -> None:
    found = roster(statistics=["item-counts"])
    found.wait(Nodes(3, _statistic(value)), 1)
    assert partitions(found) == [0, 1, 2]
    assert found.sums == {}
    assert found.withheld >= 1


def test_statistics_that_cannot_be_read_do_not_hurt_the_run() -> None:
    class Broken(Nodes):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            replies = list(super().send_and_receive(messages, timeout=timeout))
            for reply in replies:
                if self.partition[reply.metadata.src_node_id] == 1:
                    reply.content.array_records[ARRAYS]["stat/item-counts"].data = b"\x93NUMPY broken"
            return replies

    found = roster(statistics=["item-counts"])
    found.wait(Broken(3), 1)
    assert partitions(found) == [0, 1, 2]
    assert found.sums == {}


# Rounds --------------------------------------------------------------------------------------------------------------


@dataclass
class Hook:
    """Keeps what it is told."""

    best: list[int] = field(default_factory=list)
    records: list[RoundRecord] = field(default_factory=list)

    def on_round(self, record: RoundRecord, progress: Progress) -> None:
        self.records.append(record)
        self.best.append(progress.best_round)


def start(grid: Nodes, num_rounds: int, settings: Settings = Settings(), **asked: Any) -> tuple[Progress, Hook]:
    found, hook = roster(), Hook()
    found.wait(grid, 1)
    progress = run_rounds(
        FedAvg({}, settings, found), grid, to_record(PARAMS), num_rounds=num_rounds, hooks=hook, **asked
    )
    return progress, hook


def table(record: ArrayRecord) -> float:
    value = from_record(record)["table"]
    assert (value == value[0, 0]).all()
    return float(value[0, 0])


def test_rounds_add_the_mean_delta_and_count_what_travelled() -> None:
    grid = Nodes(3)
    progress, hook = start(grid, 3)
    assert table(progress.arrays) == 3 * (1 + 2 + 3) / 3
    assert [record.round for record in progress.rounds] == [1, 2, 3]
    assert hook.records == progress.rounds
    assert progress.rounds[0].train == {
        "num-users": 3.0, "num-examples": 30.0, "loss": 0.5, "num-updates": 3,
    }  # fmt: skip
    for name, messages in (("bytes_down", grid.sent), ("bytes_up", grid.told)):
        travelled = sum(num_bytes(m.content) for m in messages if m.metadata.message_type != "query")
        assert sum(getattr(record, name) for record in progress.rounds) == travelled > 0


def test_the_best_round_is_kept_with_its_parameters_and_named_to_the_nodes() -> None:
    grid = Nodes(3, found=[0.1, 0.5, 0.5, 0.3])
    progress, hook = start(grid, 4)
    assert (progress.best_round, progress.best_value) == (2, 0.5)
    assert (table(progress.best_arrays), table(progress.arrays)) == (4.0, 8.0)
    assert hook.best == [1, 2, 2, 2]
    asked = [m.content.config_records[CONFIG] for m in grid.sent if m.metadata.message_type == "train"]
    assert [config[Ask.KEEP_ROUND] for config in asked[::3]] == [0, 1, 2, 2]
    assert not progress.stopped_early


def test_validation_is_every_n_rounds_and_after_the_last() -> None:
    progress, _ = start(Nodes(2), 5, evaluate_every=2)
    assert [record.round for record in progress.rounds if record.validation] == [2, 4, 5]


@pytest.mark.parametrize(
    ("found", "every", "patience", "rounds", "best"),
    [
        ([0.5, 0.4, 0.3, 0.9], 1, 2, 3, 1),
        ([0.1, 0.2, 0.3, 0.4], 1, 1, 4, 4),
        ([0.5, 0.5, 0.4, 0.4, 0.3, 0.4, 0.9, 0.9], 3, 2, 6, 3),
        ([0.5, 0.4, 0.3, 0.2], 1, 0, 4, 1),
    ],
    ids=["stops", "keeps getting better", "not between validations", "never"],
)
def test_a_run_stops_early_when_a_validation_finds_no_progress(
    found: list[float], every: int, patience: int, rounds: int, best: int
) -> None:
    if every == 3:
        found[2] = 0.5
    progress, _ = start(Nodes(2, found=found), len(found), evaluate_every=every, early_stopping_rounds=patience)
    assert len(progress.rounds) == rounds
    assert progress.best_round == best
    assert progress.stopped_early is (rounds < len(found))


def test_without_any_validation_the_last_round_is_the_best() -> None:
    def change(reply: Reply) -> None:
        if reply.kind == "evaluate":
            raise RuntimeError("no")

    progress, _ = start(Nodes(2, change), 3)
    assert [record.validation for record in progress.rounds] == [None] * 3
    assert progress.best_round == 3
    assert table(progress.best_arrays) == table(progress.arrays) == 4.5


def test_a_run_may_validate_nothing_at_all() -> None:
    grid = Nodes(2)
    progress, _ = start(grid, 3, evaluate_every=0)
    assert {kind for kind, _ in grid.asked} == {"query", "train"}
    assert (progress.best_round, table(progress.best_arrays), progress.best_value) == (3, 4.5, -math.inf)


def test_where_the_last_round_is_released_validation_chooses_nothing_and_stops_nothing() -> None:
    grid = Nodes(3, found=[0.1, 0.5, 0.4, 0.3])
    progress, hook = start(grid, 4, choose="last", early_stopping_rounds=1)
    assert hook.best == [1, 2, 3, 4]
    assert (progress.best_round, progress.best_value, table(progress.best_arrays)) == (4, 0.3, 8.0)
    asked = [m.content.config_records[CONFIG] for m in grid.sent if m.metadata.message_type == "train"]
    assert [config[Ask.KEEP_ROUND] for config in asked[::3]] == [0, 1, 2, 3]
    assert not progress.stopped_early


def test_a_skipped_round_that_is_the_last_is_released_with_the_parameters_before_it() -> None:
    progress, _ = start(Nodes(3, failing({3}, {0, 1, 2})), 3, choose="last")
    assert (progress.best_round, table(progress.best_arrays)) == (3, 4.0)


class Budget(FedAvg):
    """Allows a number of rounds."""

    allowed = 0

    def stops(self, server_round: int) -> str:
        return f"round {server_round} is too much" if server_round > self.allowed else ""


def with_budget(allowed: int, grid: Nodes, **asked: Any) -> Progress:
    found = roster()
    found.wait(grid, 1)
    strategy = Budget({}, Settings(), found)
    strategy.allowed = allowed
    return run_rounds(strategy, grid, to_record(PARAMS), **asked)


def test_no_round_starts_that_the_strategy_does_not_allow_and_the_last_one_is_validated() -> None:
    progress = with_budget(3, Nodes(3), num_rounds=9, evaluate_every=2)
    assert progress.stopped_why == "round 4 is too much"
    assert table(progress.arrays) == 6.0
    assert [record.round for record in progress.rounds if record.validation] == [2, 3]
    assert not progress.stopped_early
    assert with_budget(3, Nodes(3), num_rounds=3).stopped_why == ""


def test_where_not_even_the_first_round_is_allowed_the_run_fails_with_the_reason() -> None:
    grid = Nodes(3)
    with pytest.raises(FedrecError, match="not even the first round may start: round 1 is too much"):
        with_budget(0, grid, num_rounds=9)
    assert {kind for kind, _ in grid.asked} == {"query"}


def test_nodes_keep_what_goes_with_the_best_round_and_with_every_checkpoint() -> None:
    class Checkpoints(Hook):
        def on_round(self, record: RoundRecord, progress: Progress) -> None:
            progress.keep_rounds = [record.round // 2 * 2] if record.round > 1 else []

    grid, found = Nodes(3, found=[0.5, 0.1, 0.1, 0.1, 0.1]), roster()
    found.wait(grid, 1)
    run_rounds(FedAvg({}, Settings(), found), grid, to_record(PARAMS), num_rounds=5, hooks=Checkpoints())
    asked = [m.content.config_records[CONFIG] for m in grid.sent if m.metadata.message_type == "train"]
    assert [config[Ask.KEEP_ROUND] for config in asked[::3]] == [0, 1, [1, 2], [1, 2], [1, 4]]


def failing(rounds: set[int], who: set[int]) -> Callable[[Reply], None]:
    def change(reply: Reply) -> None:
        if reply.kind == "train" and reply.round in rounds and reply.partition in who:
            raise RuntimeError("out of memory")

    return change


def test_a_node_that_raises_is_dropped_and_counted_and_the_run_goes_on() -> None:
    progress, _ = start(Nodes(3, failing({2}, {2})), 3)
    assert table(progress.arrays) == 2 + (1 + 2) / 2 + 2
    assert progress.rounds[1].train["dropped/error-reply"] == 1
    assert progress.rounds[1].train["num-updates"] == 2
    assert all("dropped/error-reply" not in progress.rounds[i].train for i in (0, 2))


def test_a_node_that_does_not_answer_is_counted() -> None:
    grid, found = Nodes(3), roster()
    found.wait(grid, 1)
    grid.silent = {0}
    progress = run_rounds(FedAvg({}, Settings(), found), grid, to_record(PARAMS), num_rounds=1)
    assert progress.rounds[0].train["dropped/no-reply"] == 1
    assert table(progress.arrays) == 2.5


def test_a_round_in_which_every_node_raises_is_skipped_and_says_so() -> None:
    progress, _ = start(Nodes(3, failing({2}, {0, 1, 2})), 3)
    assert table(progress.arrays) == 4
    assert progress.rounds[1].train == {"dropped/error-reply": 3, "skipped": 1}
    assert progress.rounds[1].validation is not None


def test_a_round_below_the_quorum_is_skipped() -> None:
    progress, _ = start(Nodes(3, failing({1}, {0})), 2, Settings(min_nodes=3))
    assert table(progress.arrays) == 2
    assert progress.rounds[0].train["skipped"] == 1


def test_a_run_in_which_no_round_succeeds_is_an_error() -> None:
    with pytest.raises(FedrecError) as caught:
        start(Nodes(3, failing({1, 2}, {0, 1, 2})), 2)
    assert str(caught.value) == ("none of the 2 rounds took a step: dropped 6 error-reply; the log says why")


class Misspelt(FedAvg):
    def aggregate(self, updates: Any, params: Any) -> Any:
        return {"tabel": 0.0}


class Forgetful(FedAvg):
    def aggregate(self, updates: Any, params: Any) -> Any:
        super().aggregate(updates, params)


class Flat(FedAvg):
    def server_step(self, params: Any, delta: Any, server_round: int) -> Any:
        return {name: array.ravel() for name, array in params.items()}


class Raising(FedAvg):
    def aggregate(self, updates: Any, params: Any) -> Any:
        return {"x": params["item_embeddin"]}


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (Misspelt, "TypeError: Misspelt.aggregate returned shapes {'tabel': ()}, expected {'table': (3, 2)}"),
        (Forgetful, "TypeError: Forgetful.aggregate returned NoneType, not a dict of arrays by name"),
        (Flat, "TypeError: Flat.server_step returned shapes {'table': (6,)}, expected {'table': (3, 2)}"),
        (Raising, "KeyError: 'item_embeddin'"),
    ],
)
def test_a_strategy_that_fails_is_named_with_what_it_did_and_its_first_traceback(
    strategy: type[FedAvg], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    grid, found = Nodes(3), roster()
    found.wait(grid, 1)
    with pytest.raises(FedrecError) as caught:
        run_rounds(strategy({}, Settings(), found), grid, to_record(PARAMS), num_rounds=3)
    assert str(caught.value).startswith(f"none of the 3 rounds took a step: the strategy failed 3 times with {said}")
    assert [record.exc_info is not None for record in caplog.records if "failed" in record.message] == [
        True, False, False
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_run_that_diverges_at_once_ends_as_failed_with_the_reason(tmp_path: Path) -> None:
    flat = {
        "output-dir": str(tmp_path), "num-server-rounds": 2, "data.options": SMALL, "train.learning-rate": 1e39,
    }  # fmt: skip
    with pytest.raises(FedrecError, match="none of the 2 rounds took a step: dropped 4 non-finite"):
        simulate(flat, 2)
    (summary,) = tmp_path.glob("*/*/summary.json")
    found = json.loads(summary.read_text())
    assert found["status"] == "failed"
    assert "dropped 4 non-finite" in found["error"]


def test_a_share_of_the_nodes_trains_and_all_evaluate() -> None:
    grid = Nodes(10)
    start(grid, 6, Settings(fraction_train=0.3))
    trained = [asked for kind, asked in grid.asked if kind == "train"]
    judged = [asked for kind, asked in grid.asked if kind == "evaluate"]
    assert [len(asked) for asked in trained] == [3] * 6
    assert all(asked == sorted(set(asked)) for asked in trained)
    assert len({tuple(asked) for asked in trained}) > 1
    assert judged == [list(range(10))] * 6
    again = Nodes(10)
    start(again, 6, Settings(fraction_train=0.3))
    assert [asked for kind, asked in again.asked if kind == "train"] == trained


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, 2), (0.01, 1), (1.0, 4)])
def test_the_setting_fraction_train_reaches_the_nodes(tmp_path: Path, fraction: float, expected: int) -> None:
    flat = {
        "output-dir": str(tmp_path), "num-server-rounds": 2, "data.options": SMALL, "strategy.fraction-train": fraction,
    }  # fmt: skip
    records = simulate(flat, 4).folder.read_metrics()
    assert [record["train"]["num-updates"] for record in records] == [expected] * 2
    assert {record["validation"]["num_users"] for record in records} == {40}


# Evaluation ----------------------------------------------------------------------------------------------------------


def judged(change: Callable[[Reply], None], num_nodes: int = 4) -> MetricRecord | None:
    grid, found = Nodes(num_nodes, change), roster()
    found.wait(grid, 1)
    evaluation = FederatedEvaluation()
    messages = evaluation.configure(1, to_record(PARAMS), ConfigRecord({Ask.PART: "test"}), found.partitions())
    return evaluation.aggregate(1, grid.send_and_receive(messages))


def answer(partition: int, arrays: Arrays) -> Callable[[Reply], None]:
    def change(reply: Reply) -> None:
        if reply.kind == "evaluate":
            reply.arrays = arrays if reply.partition == partition else metric_sums(0.25 * reply.partition)

    return change


def test_means_are_over_all_users() -> None:
    found = judged(answer(0, metric_sums(1.0)))
    assert found is not None
    assert found["ndcg@10"] == (1.0 + 0.25 + 0.5 + 0.75) / 4
    assert found["num_users"] == 4
    assert "dropped-evaluations" not in found


@pytest.mark.parametrize("partition", [0, 3])
@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"eval/sums": np.zeros((1, 2))},
        {**metric_sums(0.5), "eval/sums": np.array([[np.nan, 1.0]])},
        {**metric_sums(0.5), "eval/sums": np.array([[1.5, 1.0]])},
        {**metric_sums(0.5), "eval/names": np.array([255], dtype=np.uint8)},
        {**metric_sums(0.5), "eval/more": np.zeros(1)},
        metric_sums(0.5, ("ndcg@10", "hr@10")),
        metric_sums(0.5, num_items=5),
    ],
    ids=["nothing", "partial", "nan", "above 1", "bad names", "extra", "other metrics", "other catalog"],
)
def test_a_broken_evaluation_is_dropped_and_counted_whoever_sends_it(partition: int, arrays: Arrays) -> None:
    found = judged(answer(partition, arrays))
    assert found is not None
    others = [0.25 * p for p in range(4) if p != partition]
    assert found["ndcg@10"] == pytest.approx(sum(others) / 3, abs=1e-12)
    assert found["num_users"] == 3
    assert found["dropped-evaluations"] == 1


def test_the_order_of_arrival_changes_no_bit_of_the_metrics() -> None:
    values = [0.1, 0.2, 0.3, 1e-17]
    rng = np.random.default_rng(1)
    replicates = [rng.random((50, 1)) * [value, 1.0] for value in values]

    def change(reply: Reply) -> None:
        if reply.kind == "evaluate" and reply.partition < len(values):
            reply.arrays = metric_sums(values[reply.partition])
            reply.arrays["eval/sums"] = np.vstack([reply.arrays["eval/sums"], replicates[reply.partition]])

    grid, found = Nodes(5, change), roster()
    found.wait(grid, 1)
    evaluation = FederatedEvaluation()
    messages = evaluation.configure(1, to_record(PARAMS), ConfigRecord({}), found.partitions())
    replies = list(grid.send_and_receive(messages))
    metrics = [dict(evaluation.aggregate(1, order) or {}) for order in itertools.permutations(replies)]
    assert all(other == metrics[0] for other in metrics)
    assert metrics[0]["ndcg@10"] == math.fsum(values) / 4 != sum(values) / 4
    assert {"num_users": 4, "dropped-evaluations": 1}.items() <= metrics[0].items()
    totals = np.array([[math.fsum(place) for place in row] for row in np.stack(replicates, axis=-1)])
    assert metrics[0]["ci/ndcg@10"] == np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5]).tolist()


@pytest.mark.parametrize("num_alike", [1, 2])
def test_between_equal_numbers_the_lowest_partition_says_what_is_measured(num_alike: int) -> None:
    def change(reply: Reply) -> None:
        if reply.kind == "evaluate":
            lowest = reply.partition in (0, 3)[:num_alike]
            reply.arrays = metric_sums(0.5, ("ndcg@10",) if lowest else ("hr@10",))

    grid, found = Nodes(2 * num_alike, change), roster()
    found.wait(grid, 1)
    evaluation = FederatedEvaluation()
    messages = evaluation.configure(1, to_record(PARAMS), ConfigRecord({}), found.partitions())
    for order in itertools.permutations(grid.send_and_receive(messages)):
        metrics = evaluation.aggregate(1, order)
        assert metrics is not None
        assert metrics["dropped-evaluations"] == num_alike
        assert metrics["ndcg@10"] == 0.5


def test_of_twenty_evaluations_no_more_than_two_are_there_at_a_time(tmp_path: Path) -> None:
    replies, seen = Alive(), []

    def tap(message: Message) -> None:
        if message.metadata.reply_to_message_id and message.metadata.message_type == "evaluate":
            seen.append(message.metadata.message_id)
            replies.show(message)

    flat = {"output-dir": str(tmp_path), "num-server-rounds": 1, "data.options": SMALL}
    simulate(flat, 20, taps=[tap])
    assert len(seen) == 40  # validation and test
    assert replies.most <= 2
    assert replies.now == 0


def test_without_a_usable_evaluation_there_are_no_metrics() -> None:
    def change(reply: Reply) -> None:
        if reply.kind == "evaluate":
            raise RuntimeError("no")

    assert judged(change) is None
    assert FederatedEvaluation().aggregate(1, []) is None
