"""Replies are read one by one as they come, nothing that would have come is lost, and nothing that was read is kept."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as StockFedAvg

from fedrec_app.errors import FedrecError
from fedrec_app.local_grid import LocalGrid
from fedrec_app.records import CONFIG, METRICS, num_bytes, to_record
from strategies import rounds
from strategies.base import RecStrategy
from strategies.fedavg import FedAvg
from strategies.rollcall import MembersOnly
from strategies.rounds import MOST_AT_ONCE, USUAL_PAUSE, Exchange, run_rounds
from strategies.settings import Settings
from strategies.testing.nodes import Nodes, enter_run
from strategies.update import Update
from tests.unit.strategies.replies import NODES, PARAMS, SilentGrid, delta_reply, metrics, reply_to, roster

enter_run()


class Clock:
    """Stands in for the module `time`: time passes when somebody sleeps, and only then."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds


time = Clock()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    time.now = 0.0
    monkeypatch.setattr(rounds, "time", time)


@dataclass
class SlowGrid(Nodes):
    """A grid like Flower's: a reply is there some seconds after its message was pushed, and can be pulled once.

    Args:
        delays: node id -> seconds; a node that is not named never answers.
    """

    delays: dict[int, float]
    pulled: list[list[str]] = field(default_factory=list)
    pushed: dict[str, tuple[Message, float]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for number, message in enumerate(messages):
            message_id = message.metadata.__dict__["_message_id"] = f"m{number}"
            due = time.monotonic() + self.delays.get(message.metadata.dst_node_id, float("inf"))
            self.pushed[message_id] = (message, due)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = list(message_ids)
        assert not self.gone & set(asked), "Flower answers with an error where a reply was pulled before"
        self.pulled.append(asked)
        found = []
        for message_id in asked:
            message, due = self.pushed[message_id]
            if time.monotonic() >= due:
                self.gone.add(message_id)
                found.append(self.answer(message))
        return found

    def answer(self, message: Message) -> Message:
        return Message(RecordDict({METRICS: MetricRecord({"n": 1})}), reply_to=message)


def asked(nodes: Iterable[int]) -> list[Message]:
    content = RecordDict({CONFIG: ConfigRecord({"a": 1})})
    return [Message(content, node, "train", group_id="1") for node in nodes]


def sources(replies: Iterable[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]


def test_a_reply_is_read_before_the_next_one_has_come() -> None:
    grid = SlowGrid({1: 0.3, 2: 0.0, 3: 0.15})
    found, times = [], []
    for reply in Exchange(grid, asked([1, 2, 3]), timeout=5):
        found.append(reply.metadata.src_node_id)
        times.append(time.monotonic())
    assert found == [2, 3, 1]
    assert times[0] == 0
    assert 0.15 <= times[1] <= 0.15 + USUAL_PAUSE
    assert 0.3 <= times[2] <= 0.3 + USUAL_PAUSE


def test_nobody_is_waited_for_longer_than_the_timeout_and_the_grid_is_not_asked_all_the_time() -> None:
    grid = SlowGrid({1: 0.0, 2: 60.0})
    assert sources(Exchange(grid, asked([1, 2, 3]), timeout=1.0)) == [1]
    assert time.monotonic() == pytest.approx(1.0)
    assert len(grid.pulled) < 20


def test_a_grid_that_is_far_away_is_asked_less_often() -> None:
    class Far(SlowGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            time.sleep(0.05)
            return super().pull_messages(message_ids)

    grid = Far({1: 0.0})
    assert sources(Exchange(grid, asked([1, 2]), timeout=1.2)) == [1]
    assert len(grid.pulled) <= 6
    assert 1.2 <= time.monotonic() <= 1.25 + 1e-9  # asking takes 0.05


def test_a_reply_that_comes_just_before_the_timeout_is_not_lost() -> None:
    assert sources(Exchange(SlowGrid({1: 0.49}), asked([1, 2]), timeout=0.5)) == [1]


def test_replies_that_are_there_are_read_however_long_the_reader_takes() -> None:
    replies = Exchange(SlowGrid(dict.fromkeys(range(100), 0.0)), asked(range(100)), timeout=0.05)
    found = []
    for reply in replies:
        time.sleep(0.002)
        found.append(reply.metadata.src_node_id)
    assert sorted(found) == list(range(100))


def test_a_node_that_is_asked_about_late_is_heard_though_others_stay_silent() -> None:
    silent_ones = range(3 * MOST_AT_ONCE)
    grid = SlowGrid({999: 0.05})
    assert sources(Exchange(grid, asked([*silent_ones, 999]), timeout=0.3)) == [999]
    assert max(len(ids) for ids in grid.pulled) == MOST_AT_ONCE


def test_bytes_are_those_of_all_messages_and_replies() -> None:
    messages = asked([1, 2, 3])
    found = Exchange(SlowGrid({1: 0.0, 2: 0.02}), messages, timeout=0.1)
    replies = list(found)
    assert found.bytes_down == sum(num_bytes(message.content) for message in messages) > 0
    assert found.bytes_up == sum(num_bytes(reply.content) for reply in replies) > 0
    assert len(replies) == 2


def test_without_messages_the_grid_is_left_alone() -> None:
    found = Exchange(SilentGrid(), [], timeout=5)  # type: ignore[arg-type]
    assert (list(found), found.bytes_down, found.bytes_up) == ([], 0, 0)
    assert time.monotonic() == 0


@pytest.mark.parametrize("nothing", ["", None])
def test_a_message_that_could_not_be_pushed_is_not_asked_about(nothing: Any) -> None:
    class Refusing(SlowGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            return [nothing, *list(super().push_messages(messages))[1:]]

    grid = Refusing({1: 0.0, 2: 0.0})
    assert sources(Exchange(grid, asked([1, 2]), timeout=0.2)) == [2]
    assert grid.pulled == [["m1"]]


def test_an_error_in_the_place_of_a_node_that_is_gone_is_that_nodes() -> None:
    class Losing(SlowGrid):
        def answer(self, message: Message) -> Message:
            reply = Message(Error(3, "Node Unavailable"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = 1  # as the SuperLink sends it
            return reply

    found = roster()
    strategy = FedAvg({}, Settings(), found)
    messages = strategy.configure_train(1, to_record(PARAMS), ConfigRecord({}), SilentGrid())  # type: ignore[arg-type]
    arrays, said = strategy.aggregate_train(1, Exchange(Losing(dict.fromkeys(NODES, 0.0)), messages, timeout=1))
    assert arrays is None
    assert dict(said or {}) == {"dropped/error-reply": 3, "skipped": 1}


def test_a_grid_that_fails_ends_the_run_and_is_not_taken_for_a_fault_of_the_strategy() -> None:
    class Failing(Trains):
        failed = False

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            self.failed = not self.failed
            if self.failed:
                raise ConnectionError("the SuperLink is gone")
            return super().pull_messages(message_ids)

    for strategy in (FedAvg({}, Settings(), _settled()), StockFedAvg(min_available_nodes=3)):
        grid = MembersOnly(Failing(dict.fromkeys(NODES, 0.0)), _settled(), patience=5)
        with pytest.raises(ConnectionError, match="SuperLink is gone"):
            run_rounds(strategy, grid, to_record(PARAMS), num_rounds=2, timeout=1)


def _settled() -> Any:
    found = roster()
    found.refresh = lambda grid: None  # type: ignore[method-assign]
    return found


class Trains(SlowGrid):
    """Nodes that send deltas of one and a half."""

    def answer(self, message: Message) -> Message:
        arrays = {"delta/table": np.full((3, 2), 1.5, np.float32), "delta/bias": np.zeros(1, np.float32)}
        return reply_to(message, arrays, metrics(server_round=int(message.metadata.group_id)))


def test_a_strategy_that_fails_half_way_leaves_no_reply_for_the_next_round() -> None:
    class Fails(RecStrategy):
        def aggregate(self, updates: Iterable[Update], params: Any) -> Any:
            next(iter(updates))
            raise ZeroDivisionError("no")

    grid = Trains({10: 0.0, 11: 0.05, 12: 0.1})
    with pytest.raises(FedrecError, match="none of the 1 rounds"):
        run_rounds(
            Fails(None, Settings(), _settled()), grid, to_record(PARAMS), num_rounds=1, timeout=5, **NO_EVALUATION
        )
    assert grid.gone == {"m0", "m1", "m2"}


def test_replies_that_a_rule_does_not_look_at_are_validated_and_counted() -> None:
    class First(RecStrategy):
        def aggregate(self, updates: Iterable[Update], params: Any) -> Any:
            return super().aggregate([next(iter(updates))], params)

    strategy = First(None, Settings(min_nodes=2), roster())
    strategy.configure_train(1, to_record(PARAMS), ConfigRecord({}), SilentGrid())  # type: ignore[arg-type]
    replies = [delta_reply(10, 1.0), delta_reply(11, float("nan")), delta_reply(12, 1.0)]
    arrays, said = strategy.aggregate_train(1, iter(replies))
    assert arrays is not None
    assert said is not None
    assert (said["num-updates"], said["dropped/non-finite"]) == (2, 1)


NO_EVALUATION: dict[str, Any] = {"evaluate": lambda server_round, arrays, config: (None, 0, 0)}


def test_stock_strategies_get_a_list_and_ours_what_can_be_read_once() -> None:
    given: list[Any] = []

    class Stock(StockFedAvg):
        def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
            return asked(NODES)

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            given.append((type(replies), len(list(replies)), len(list(replies))))
            return ArrayRecord(), MetricRecord()

    class Ours(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            given.append((type(replies), len(list(replies)), len(list(replies))))
            return ArrayRecord(), MetricRecord()

    for strategy in (Stock(), Ours({}, Settings(), _settled())):
        grid = Trains(dict.fromkeys(NODES, 0.0))
        run_rounds(strategy, grid, to_record(PARAMS), num_rounds=1, timeout=1, **NO_EVALUATION)
    assert given == [(list, 3, 3), (Exchange, 3, 0)]


# In this process -----------------------------------------------------------------------------------------------------

ROWS, WIDTH = 20_000, 8


def local_nodes(num_nodes: int, answer: Callable[[Message, int], Message], **more: Any) -> LocalGrid:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, int(context.node_config["partition-id"]))

    return LocalGrid(app, {}, num_nodes, **more)


def dense_answer(message: Message, partition: int) -> Message:
    return reply_to(message, {"delta/table": np.full((ROWS, WIDTH), 0.5, np.float32)}, metrics())


def local_strategy(grid: LocalGrid, strategy: type[RecStrategy] = FedAvg, **settings: Any) -> RecStrategy:
    nodes = {node: number for number, node in enumerate(grid.get_node_ids())}
    found = roster(nodes=nodes)
    found.refresh = lambda grid: None  # type: ignore[method-assign]
    return strategy({}, Settings(row_names=("table",), **settings), found)


class Alive:
    """How many of the objects that it was shown are still there, and how many were at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def show(self, thing: object) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(thing, self._gone)

    def _gone(self) -> None:
        self.now -= 1


@pytest.mark.parametrize(("needs", "most_updates"), [("sums", 2), ("individual", 50)])
def test_of_fifty_replies_no_more_than_two_are_there_at_a_time(needs: Any, most_updates: int) -> None:
    messages, given = Alive(), Alive()

    def tap(message: Message) -> None:
        if message.metadata.reply_to_message_id:
            messages.show(message)

    class Watched(FedAvg):
        def aggregate(self, updates: Iterable[Update], params: Any) -> Any:
            def watched() -> Iterator[Update]:
                for update in updates:
                    given.show(update)
                    yield update
                    del update

            return super().aggregate(watched(), params)

    Watched.needs = needs
    grid = local_nodes(50, dense_answer, taps=[tap])
    strategy = local_strategy(grid, Watched)
    params = to_record({"table": np.zeros((ROWS, WIDTH), np.float32)})
    gc.disable()
    try:
        progress = run_rounds(strategy, grid, params, num_rounds=1, **NO_EVALUATION)
    finally:
        gc.enable()
    assert progress.rounds[0].train["num-updates"] == 50
    assert messages.most <= 2
    assert given.most <= most_updates
    assert (messages.now, given.now) == (0, 0)


def test_of_replies_that_came_at_once_those_that_were_read_are_not_kept() -> None:
    alive, left = Alive(), []

    class Watched(SlowGrid):
        def answer(self, message: Message) -> Message:
            reply = super().answer(message)
            alive.show(reply)
            return reply

    grid = Watched(dict.fromkeys(range(20), 0.0))
    for reply in Exchange(grid, asked(range(20)), timeout=5):
        del reply
        left.append(alive.now)
    assert left == list(range(19, -1, -1))


def test_the_sum_alone_has_the_size_of_a_table_however_many_reply() -> None:
    def peak(num_nodes: int) -> int:
        grid = local_nodes(num_nodes, dense_answer)
        strategy = local_strategy(grid)
        params = to_record({"table": np.zeros((ROWS, WIDTH), np.float32)})
        tracemalloc.start()
        run_rounds(strategy, grid, params, num_rounds=1, **NO_EVALUATION)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)  # what is compiled and cached
    table = 4 * ROWS * WIDTH
    assert abs(peak(50) - peak(5)) < 0.5 * table
    assert peak(50) < 20 * table


def test_progress_counts_the_replies_of_the_exchange() -> None:
    told: list[tuple[int, int]] = []
    grid = local_nodes(3, dense_answer, on_reply=lambda done, total: told.append((done, total)))
    for _ in range(2):
        assert len(list(Exchange(grid, asked(grid.get_node_ids()), timeout=5))) == 3
    list(grid.send_and_receive(asked(grid.get_node_ids())))
    assert told == [(1, 3), (2, 3), (3, 3)] * 3


def test_nodes_of_a_local_grid_answer_in_the_order_of_messages_whatever_the_timeout() -> None:
    def slow(message: Message, partition: int) -> Message:
        time.sleep(0.01)
        return reply_to(message, {}, {"n": 1})

    grid = local_nodes(3 * MOST_AT_ONCE, slow)
    nodes = list(grid.get_node_ids())
    assert sources(Exchange(grid, asked(nodes), timeout=0.05)) == nodes
    assert sources(grid.send_and_receive(asked(nodes), timeout=0.05)) == nodes
