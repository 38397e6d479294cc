"""FedBuff by hand: who is asked, what a step aggregates, how stale updates count, and what becomes of late replies."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from fedrec_app.errors import ConfigError
from fedrec_app.records import CONFIG, Ask, from_record, to_record
from strategies import rounds
from strategies.base import RecStrategy
from strategies.fedbuff import FedBuff
from strategies.registry import make_strategy
from strategies.rollcall import Roster
from strategies.rounds import run_rounds
from strategies.settings import Settings
from strategies.testing import CHECKS, applicable, run_all
from strategies.testing.nodes import error_to, reply_to
from tests.conformance import faults
from tests.unit.strategies.replies import NODES, PARAMS, metrics, roster
from tests.unit.strategies.test_exchange import Clock

Answer = Callable[[Message], Message]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "time", Clock())


@dataclass
class Scripted:
    """Nodes that answer when a test says so; one pull brings all that is there.

    Attributes:
        at_work: node -> messages that it has not answered, the oldest first.
    """

    nodes: list[int] = field(default_factory=lambda: list(NODES))
    at_work: dict[int, list[Message]] = field(default_factory=dict)
    there: deque[Message] = field(default_factory=deque)
    unsent: set[int] = field(default_factory=set)
    ids: Any = field(default_factory=itertools.count)

    def get_node_ids(self) -> list[int]:
        return self.nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self.unsent:
                pushed.append("")
                continue
            message.metadata.__dict__["_message_id"] = f"m{next(self.ids)}"
            self.at_work.setdefault(node, []).append(message)
            pushed.append(message.metadata.message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = set(message_ids)
        found = [reply for reply in self.there if reply.metadata.reply_to_message_id in asked]
        self.there = deque(reply for reply in self.there if reply.metadata.reply_to_message_id not in asked)
        return found

    def say(self, node: int, answer: Answer) -> None:
        """Has a node answer the oldest message that it works on."""
        self.there.append(answer(self.at_work[node].pop(0)))

    def asked(self) -> dict[int, list[int]]:
        """Returns the rounds that nodes are at work on."""
        return {
            node: [int(message.content.config_records[CONFIG][Ask.ROUND]) for message in messages]  # type: ignore[arg-type]
            for node, messages in sorted(self.at_work.items())
            if messages
        }


def update(table: float, weight: float = 1.0, server_round: int | None = None) -> Answer:
    """How a node answers whose weighted sum of deltas is a constant for the table, and zero for the rest."""

    def answer(message: Message) -> Message:
        said = int(message.content.config_records[CONFIG][Ask.ROUND]) if server_round is None else server_round  # type: ignore[arg-type]
        arrays = {"delta/table": np.full((3, 2), table, np.float32), "delta/bias": np.zeros(1, np.float32)}
        return reply_to(message, arrays, metrics(weight, said))

    return answer


class Steps:
    """A strategy and its nodes, step by step, as the loop over rounds takes them."""

    def __init__(self, nodes: dict[int, int] | None = None, timeout: float = 0.0, **options: Any) -> None:
        self.found = roster(nodes=nodes)
        self.grid = Scripted(list(nodes or NODES))
        self.found.refresh = self._refresh  # type: ignore[method-assign]
        self.everybody = dict(self.found.members)
        settings = {key: options.pop(key) for key in ("min_nodes", "fraction_train", "seed") if key in options}
        self.strategy = FedBuff({"buffer_size": 2, **options}, Settings(**settings), self.found)
        self.params, self.step, self.timeout = dict(PARAMS), 0, timeout
        self.metrics: dict[str, Any] = {}

    def _refresh(self, grid: Any) -> None:
        self.found.members = {node: self.everybody[node] for node in grid.get_node_ids()}

    def send(self) -> None:
        """The first half of a step: who is idle gets work."""
        self.step += 1
        messages = self.strategy.configure_train(self.step, to_record(self.params), ConfigRecord({}), self.grid)  # type: ignore[arg-type]
        self.replies = self.strategy.exchange(self.grid, messages, self.timeout)  # type: ignore[arg-type]

    def take(self) -> float:
        """The second half: returns an element of the table afterwards, all of which are equal."""
        arrays, said = self.strategy.aggregate_train(self.step, self.replies)
        self.metrics = dict(said or {})
        if arrays is not None:
            self.params = from_record(arrays)
        assert np.ptp(self.params["table"]) == 0
        assert self.params["bias"].tolist() == [1.0]
        return float(self.params["table"][0, 0])


def test_steps_with_known_arrivals_give_the_numbers_of_the_paper() -> None:
    run = Steps()
    run.send()
    assert run.grid.asked() == {10: [1], 11: [1], 12: [1]}
    run.grid.say(12, update(6.0, weight=2.0))
    run.grid.say(10, update(1.0, weight=1.0))
    first = (6 + 1) / 3
    assert run.take() == pytest.approx(first, rel=1e-6)
    assert (run.metrics["num-updates"], run.metrics["staleness"], run.metrics["num-outstanding"]) == (2, 0.0, 1)

    run.send()
    assert run.grid.asked() == {10: [2], 11: [1], 12: [2]}
    run.grid.say(11, update(4.0, weight=1.0))  # of round 1: one step old
    run.grid.say(12, update(6.0, weight=3.0))
    second = first + (4 / 2**0.5 + 6) / (1 + 3)
    assert run.take() == pytest.approx(second, rel=1e-6)
    assert run.metrics["staleness"] == 0.5

    for values in ((11, 12), (12, 11)):  # node 10 is at work on round 2 all the time
        run.send()
        for node in values:
            run.grid.say(node, update(0.0))
        assert run.take() == pytest.approx(second, rel=1e-6)
    run.send()
    assert run.grid.asked() == {10: [2], 11: [5], 12: [5]}
    run.grid.say(10, update(8.0, weight=1.0))  # three steps old
    run.grid.say(11, update(2.0, weight=1.0))
    assert run.take() == pytest.approx(second + (8 / (1 + 3) ** 0.5 + 2) / 2, rel=1e-6)
    assert run.metrics["staleness"] == 1.5
    assert "dropped" not in "".join(run.metrics)


@pytest.mark.parametrize(("exponent", "factor"), [(0.0, 1.0), (0.5, 2**-0.5), (1.0, 0.5), (2.0, 0.25)])
def test_the_exponent_says_how_little_a_stale_update_counts(exponent: float, factor: float) -> None:
    run = Steps(buffer_size=1, staleness_exponent=exponent)
    run.send()
    run.grid.say(10, update(0.0))
    assert run.take() == 0.0
    run.send()
    run.grid.say(11, update(3.0))
    assert run.take() == pytest.approx(3 * factor, rel=1e-6)


def test_the_server_optimizer_takes_the_step() -> None:
    run = Steps(buffer_size=1, server_optimizer={"name": "momentum", "learning_rate": 0.5, "momentum": 0.5})
    for expected in (1.0, 1.0 + 0.5 * (2 + 1)):
        run.send()
        run.grid.say(10, update(2.0))
        assert run.take() == expected
    assert sorted(run.strategy.state()) == ["bias", "table"]


def test_replies_that_came_with_others_wait_for_the_next_step_and_their_nodes_are_not_asked_again() -> None:
    run = Steps()
    run.send()
    for node, value in ((10, 1.0), (11, 3.0), (12, 16.0)):
        run.grid.say(node, update(value))
    assert run.take() == 2.0
    assert run.metrics["num-outstanding"] == 1
    run.send()
    assert run.grid.asked() == {10: [2], 11: [2]}
    run.grid.say(10, update(2.0))
    assert run.take() == pytest.approx(2 + (16 / 2**0.5 + 2) / 2, rel=1e-6)
    run.send()
    assert run.grid.asked() == {10: [3], 11: [2], 12: [3]}


def test_after_the_timeout_what_has_come_is_aggregated_and_nobody_who_is_at_work_counts_as_dropped() -> None:
    run = Steps(buffer_size=3, timeout=5.0)
    run.send()
    run.grid.say(11, update(2.0))
    assert run.take() == 2.0
    assert run.metrics["num-outstanding"] == 2
    assert not [key for key in run.metrics if key.startswith("dropped/")]
    run.send()
    assert run.grid.asked() == {10: [1], 11: [2], 12: [1]}


def test_after_the_timeout_a_step_below_the_quorum_is_skipped_and_nodes_stay_at_work() -> None:
    run = Steps(min_nodes=2)
    run.send()
    run.grid.say(11, update(2.0))
    assert run.take() == 0.0
    assert run.metrics["skipped"] == 1
    run.send()
    assert run.grid.asked() == {10: [1], 11: [2], 12: [1]}
    run.grid.say(10, update(4.0))
    run.grid.say(12, update(4.0))
    assert run.take() == 4.0  # no server step was taken since they began, so they are not stale


def test_a_round_that_was_skipped_is_no_server_step_and_makes_nobody_stale() -> None:
    run = Steps(min_nodes=2)
    run.send()
    assert run.take() == 0.0  # round 1: nobody answers in time
    run.send()
    run.grid.say(11, update(1.0))
    run.grid.say(12, update(1.0))
    assert run.take() == 1.0  # round 2: the first step
    run.send()
    run.grid.say(10, update(6.0))  # asked in round 1, one step ago
    run.grid.say(11, update(2.0, server_round=3))
    assert run.take() == pytest.approx(1 + (6 / 2**0.5 + 2) / 2, rel=1e-6)
    assert run.metrics["staleness"] == 0.5


def test_it_takes_its_options_by_name_like_every_strategy() -> None:
    assert FedBuff(options={"buffer_size": 3}).options.buffer_size == 3


def test_bad_replies_do_not_fill_the_buffer_and_their_nodes_are_idle_again() -> None:
    run = Steps(buffer_size=1)
    run.send()
    run.grid.say(10, error_to)
    run.grid.say(11, update(9.0, server_round=7))
    run.grid.say(12, update(5.0))
    assert run.take() == 5.0
    assert {key: run.metrics[key] for key in run.metrics if key.startswith("dropped/")} == {
        "dropped/error-reply": 1,
        "dropped/wrong-round": 1,
    }
    run.send()
    assert run.grid.asked() == {10: [2], 11: [2], 12: [2]}


def test_an_update_must_name_the_round_that_its_node_was_asked_for() -> None:
    run = Steps(buffer_size=1)
    run.send()
    run.grid.say(10, update(0.0))
    run.take()
    run.send()
    run.grid.say(11, update(9.0, server_round=2))  # it would like to be fresh
    run.grid.say(12, update(3.0, server_round=1))
    assert run.take() == pytest.approx(3 / 2**0.5, rel=1e-6)
    assert run.metrics["dropped/wrong-round"] == 1


def test_a_node_that_has_answered_is_not_heard_again_before_it_is_asked_again() -> None:
    run = Steps(buffer_size=1, fraction_train=0.34)
    run.send()
    (first,) = run.grid.asked()
    message = run.grid.at_work[first][0]
    run.grid.say(first, update(1.0))
    while first in (asked := run.grid.asked()) or not asked:
        run.take()
        run.send()
        if first in run.grid.asked():
            run.grid.say(first, update(0.0))
    arrays, said = run.strategy.aggregate_train(run.step, [update(9.0)(message)])
    assert arrays is None
    assert said is not None
    assert said["dropped/unknown-node"] == 1


def test_a_node_that_left_is_forgotten_and_asked_anew_when_it_is_back() -> None:
    run = Steps(buffer_size=1)
    run.send()
    run.grid.say(10, update(1.0))
    run.take()
    run.grid.nodes = [10, 12]
    run.send()
    run.grid.say(10, update(1.0))
    run.take()
    assert run.metrics["num-outstanding"] == 1
    run.grid.nodes = [10, 11, 12]
    run.send()
    assert run.grid.asked() == {10: [3], 11: [1, 3], 12: [1]}
    run.grid.say(11, update(64.0))  # of before it left
    run.grid.say(11, update(5.0))
    before = float(run.params["table"][0, 0])
    assert run.take() == before + 5.0


def test_a_node_that_could_not_be_sent_to_is_asked_again() -> None:
    run = Steps(buffer_size=1)
    run.grid.unsent = {11}
    run.send()
    assert run.grid.asked() == {10: [1], 12: [1]}
    run.grid.say(10, update(1.0))
    run.take()
    run.grid.unsent = set()
    run.send()
    assert run.grid.asked() == {10: [2], 11: [2], 12: [1]}


def test_no_more_nodes_are_at_work_than_the_fraction_says_and_who_is_drawn_does_not_depend_on_node_ids() -> None:
    def drawn(nodes: dict[int, int], seed: int = 0) -> list[list[int]]:
        run = Steps(nodes, fraction_train=0.5, seed=seed)
        found = []
        for _ in range(6):
            run.send()
            at_work = sorted(run.grid.asked(), key=nodes.__getitem__)
            assert len(at_work) == 4
            for node in at_work[:2]:
                run.grid.say(node, update(1.0))
            run.take()
            found.append([nodes[node] for node in at_work])
        return found

    some, others = {100 + p: p for p in range(8)}, {900 - 7 * p: p for p in range(8)}
    assert drawn(some) == drawn(others) != drawn(some, seed=1)
    assert len({tuple(step) for step in drawn(some)}) > 3


def test_a_second_run_of_the_same_strategy_starts_with_idle_nodes() -> None:
    run = Steps(buffer_size=1)
    run.send()
    run.grid.say(10, update(1.0))
    run.take()
    run.step, run.grid.at_work = 0, {}
    run.send()
    assert run.grid.asked() == {10: [1], 11: [1], 12: [1]}


def test_the_loop_over_rounds_does_not_wait_for_who_is_at_work() -> None:
    class Quick(Scripted):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            pushed = list(super().push_messages(messages))
            for node in (10, 11):  # node 12 never answers
                if self.at_work.get(node):
                    self.say(node, update(1.0))
            return pushed

    found = roster()
    found.refresh = lambda grid: None  # type: ignore[method-assign]
    progress = run_rounds(
        FedBuff({"buffer_size": 2}, Settings(), found), Quick(), to_record(PARAMS),  # type: ignore[arg-type]
        num_rounds=5, timeout=100.0, evaluate=lambda server_round, arrays, config: (None, 0, 0),
    )  # fmt: skip
    assert from_record(progress.arrays)["table"].tolist() == [[5.0, 5.0]] * 3
    assert [record.train["num-outstanding"] for record in progress.rounds] == [1] * 5
    assert rounds.time.monotonic() == 0.0
    assert [record.bytes_up > 0 for record in progress.rounds] == [True] * 5


@pytest.mark.parametrize(
    ("options", "settings", "reason"),
    [
        ({"buffer_size": 4}, {}, r"a buffer of 4 updates never fills while 3 nodes work at a time"),
        ({"buffer_size": 3}, {"fraction_train": 0.67}, r"a buffer of 3 updates never fills while 2 nodes"),
        ({"buffer_size": 2}, {"min_nodes": 3}, r"buffer_size = 2 updates, fewer than strategy.min-nodes = 3"),
    ],
)
def test_what_can_never_be_is_refused_before_the_run(options: Any, settings: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_strategy("fedbuff", options, Settings(**settings), roster())


def test_while_nobody_knows_the_nodes_the_default_buffer_is_fine() -> None:
    assert isinstance(make_strategy("fedbuff", {}, Settings(), None), FedBuff)
    ten = Roster("", "", members=roster(nodes={node: node for node in range(10)}).members)
    assert isinstance(make_strategy("fedbuff", {}, Settings(), ten), FedBuff)


@pytest.mark.parametrize("check", ["order", "grouping", "weights"])
def test_a_buffer_that_holds_all_replies_passes_the_checks_of_synchronous_strategies(check: str) -> None:
    assert check not in applicable(FedBuff)
    CHECKS[check](FedBuff)


def test_a_synchronous_strategy_does_not_get_away_with_depending_on_arrival() -> None:
    class Excused(faults.RunningAverage):
        depends_on_arrival = True

    assert set(run_all(Excused).failed) == {"order"}
    assert RecStrategy.depends_on_arrival is False
