"""The virtual clock of the local Grid: who answers when, as if the nodes worked side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedrec_app.errors import ConfigError, FedrecError
from fedrec_app.local_grid import LocalGrid
from fedrec_app.records import CONFIG, METRICS
from fedrec_app.simulate import parse_durations, simulate
from strategies.rounds import MOST_AT_ONCE, Exchange
from strategies.testing.nodes import enter_run
from tests.small import SMALL

enter_run()


class Nodes(LocalGrid):
    """Nodes that do nothing; whoever works is noted."""

    def __init__(self, num_nodes: int, durations: dict[int, float] | None = None) -> None:
        app = ClientApp()
        self.worked: list[tuple[str, int]] = []

        def work(message: Message, context: Context) -> Message:
            self.worked.append((message.metadata.message_type, int(context.node_config["partition-id"])))
            return Message(RecordDict({METRICS: MetricRecord({"n": 1})}), reply_to=message)

        for register in (app.train, app.evaluate, app.query):
            register()(work)
        super().__init__(app, {}, num_nodes, durations=durations)
        self.node = list(self.get_node_ids())

    def to(self, *partitions: int, kind: str = "train") -> list[Message]:
        content = RecordDict({CONFIG: ConfigRecord({"a": 1})})
        return [Message(content, self.node[partition], kind, group_id="1") for partition in partitions]

    def push(self, *partitions: int, kind: str = "train") -> list[str]:
        return list(self.push_messages(self.to(*partitions, kind=kind)))

    def replies(self, message_ids: Iterable[str]) -> list[tuple[int, float]]:
        """Returns (partition, virtual time) of all replies, in the order handed out."""
        found = []
        while came := list(self.pull_messages(message_ids)):
            found += [(self.node.index(reply.metadata.src_node_id), self.now) for reply in came]
        return found


def test_replies_come_in_the_order_of_their_virtual_times() -> None:
    grid = Nodes(4, {0: 10.0, 2: 0.25, 3: 2.0})
    assert grid.replies(grid.push(0, 1, 2, 3)) == [(2, 0.25), (1, 1.0), (3, 2.0), (0, 10.0)]
    assert [partition for _, partition in grid.worked] == [2, 1, 3, 0]


def test_at_the_same_time_the_order_sent_counts_whatever_the_order_asked() -> None:
    grid = Nodes(3)
    sent = grid.push(2, 0, 1)
    assert grid.replies(sent[::-1]) == [(2, 1.0), (0, 1.0), (1, 1.0)]


def test_a_message_starts_when_it_is_sent_and_its_node_is_free() -> None:
    grid = Nodes(2, {0: 3.0})
    first = grid.push(0, 1)
    assert list(grid.pull_messages(first)) != []
    assert grid.now == 1.0
    later = grid.push(1, 0, 1)
    assert grid.replies([*first, *later]) == [(1, 2.0), (0, 3.0), (1, 3.0), (0, 6.0)]


def test_roll_calls_and_evaluations_take_no_time_and_wait_for_no_training() -> None:
    grid = Nodes(2, {0: 5.0})
    training = grid.push(0, 1)
    for kind in ("evaluate", "query"):
        assert grid.replies(grid.push(0, 1, kind=kind)) == [(0, 0.0), (1, 0.0)]
    assert grid.replies(training) == [(1, 1.0), (0, 5.0)]
    assert grid.replies(grid.push(0, kind="train.by_another_name")) == [(0, 10.0)]


def test_who_asks_for_a_late_reply_alone_gets_it_when_he_asks_again() -> None:
    grid = Nodes(3, {0: 5.0, 1: 7.0})
    slow, slower, fast = grid.push(0, 1, 2)
    assert list(grid.pull_messages([slower, slow])) == []
    assert grid.now == 0.0
    assert grid.replies([slower, slow]) == [(0, 5.0)]
    assert grid.replies([fast, slower]) == [(2, 5.0), (1, 7.0)]


def test_an_exchange_of_many_messages_reads_them_in_the_order_of_the_clock() -> None:
    number = 3 * MOST_AT_ONCE
    durations = {partition: 1.0 + (partition * 37 % number) for partition in range(number)}
    grid = Nodes(number, durations)
    times = []
    for reply in Exchange(grid, grid.to(*range(number)), timeout=5):
        assert grid.now == durations[grid.node.index(reply.metadata.src_node_id)]
        times.append(grid.now)
    assert times == [float(second) for second in range(1, number + 1)]


def test_sending_and_receiving_waits_for_ones_own_messages_alone() -> None:
    grid = Nodes(3, {1: 2.0, 2: 0.5})
    other = grid.push(2)
    found = grid.send_and_receive(grid.to(1, 0))
    assert [grid.node.index(reply.metadata.src_node_id) for reply in found] == [0, 1]
    assert grid.now == 2.0
    assert grid.replies(other) == [(2, 2.0)]


@pytest.mark.parametrize(
    ("durations", "reason"),
    [
        ({2: 1.0}, "partition 2 has a duration: there are partitions 0 to 1"),
        ({-1: 1.0}, "partition -1 has a duration"),
        ({0: 0.0}, "the duration of partition 0 is 0.0: a positive number"),
        ({1: -3.0}, "the duration of partition 1 is -3.0"),
        ({1: float("nan")}, "the duration of partition 1 is nan"),
        ({1: float("inf")}, "the duration of partition 1 is inf"),
    ],
)
def test_durations_that_make_no_sense_are_refused(durations: dict[int, float], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Nodes(2, durations)


def test_slow_nodes_are_told_as_partition_and_factor() -> None:
    assert parse_durations(["0=10", "3=2.5"]) == {0: 10.0, 3: 2.5}
    for wrong in ("0", "=3", "0=", "a=1", "0=x"):
        with pytest.raises(ConfigError, match=f"'{wrong}' is not partition=factor"):
            parse_durations([wrong])
    with pytest.raises(ConfigError, match="partition 1 is named twice: 2 and 3"):
        parse_durations(["1=2", "0=1", "1=3"])


def run(output_dir: Path, **more: Any) -> Any:
    return simulate({"output-dir": str(output_dir), "num-server-rounds": 2, "data.options": SMALL}, 3, **more)


def test_a_run_tells_its_virtual_seconds_where_durations_are_given(tmp_path: Path) -> None:
    plain, timed = run(tmp_path), run(tmp_path, durations={2: 4.0})
    assert "virtual_seconds" not in plain.summary
    assert timed.summary["virtual_seconds"] == 8.0
    assert json.loads((timed.folder.path / "summary.json").read_text()) == timed.summary
    assert timed.summary["test"] == plain.summary["test"]
    with pytest.raises(FedrecError, match="partition 3 has a duration"):
        run(tmp_path, durations={3: 4.0})
