"""Replies that Flower cannot read, and the nodes that they come from."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import httpx
import pytest
from flwr.app import Message, MessageType, RecordDict

from strategies import deployed_grid
from strategies.deployed_grid import UNREADABLE, DeployedGrid
from strategies.rounds import Exchange
from strategies.testing.nodes import Nodes, drawn, honest


class Garbled(Nodes):
    """A grid that raises over the reply of one node, as Flower does, and is asked for one message at a time."""

    bad = 102
    error: Exception = KeyError("no such object")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        pushed = list(super().push_messages(messages))
        self.spoilt = {message.metadata.message_id for message in messages if message.metadata.dst_node_id == self.bad}
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        (message_id,) = message_ids
        if message_id in self.spoilt:
            raise self.error
        return super().pull_messages([message_id])


def queries() -> list[Message]:
    return [Message(RecordDict(), node, MessageType.QUERY) for node in (101, 102, 103)]


def nodes() -> Garbled:
    return Garbled([honest(drawn(label)) for label in range(3)])


def test_an_error_stands_for_a_reply_that_cannot_be_read_and_the_others_come() -> None:
    found = {reply.metadata.src_node_id: reply for reply in Exchange(DeployedGrid(nodes()), queries(), 5.0)}
    assert sorted(found) == [101, 102, 103]
    assert found[102].error.code == UNREADABLE
    assert found[101].has_content()
    assert found[103].has_content()


def test_send_and_receive_gives_the_same() -> None:
    replies = DeployedGrid(nodes()).send_and_receive(queries(), timeout=5.0)
    assert sorted((reply.metadata.src_node_id, reply.has_error()) for reply in replies) == [
        (101, False), (102, True), (103, False),
    ]  # fmt: skip


def test_a_superlink_that_does_not_answer_is_no_fault_of_a_node() -> None:
    grid = nodes()
    grid.error = httpx.ConnectError("refused")
    with pytest.raises(httpx.ConnectError):
        list(Exchange(DeployedGrid(grid), queries(), 5.0))


def test_messages_of_a_round_expire_with_it() -> None:
    asked = queries()
    list(Exchange(nodes_that_answer(), asked, 7.5))
    assert {message.metadata.ttl for message in asked} == {3607.5}


def nodes_that_answer() -> Nodes:
    return Nodes([honest(drawn(label)) for label in range(3)])


class Sly(Nodes):
    """A grid on which the replies of one node come changed, or after the test says so."""

    bad = 102

    def __init__(self) -> None:
        super().__init__([honest(drawn(label)) for label in range(3)])
        self.holds = threading.Event()
        self.holds.set()
        self.change: Callable[[Message], None] = lambda reply: None

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        if [reply.metadata.src_node_id for reply in replies] == [self.bad]:
            self.holds.wait(10)
            self.change(replies[0])
        return replies


def test_a_reply_in_the_name_of_another_node_is_an_error_of_its_sender() -> None:
    grid = Sly()
    grid.change = lambda reply: reply.metadata.__dict__.update(_src_node_id=101)
    replies = DeployedGrid(grid).send_and_receive(queries(), timeout=5.0)
    assert sorted((reply.metadata.src_node_id, reply.has_error()) for reply in replies) == [
        (101, False), (102, True), (103, False),
    ]  # fmt: skip


def test_what_answers_another_message_is_no_reply() -> None:
    grid = Sly()
    grid.change = lambda reply: reply.metadata.__dict__.update(_reply_to_message_id="another")
    replies = DeployedGrid(grid).send_and_receive(queries(), timeout=0.3)
    assert sorted(reply.metadata.src_node_id for reply in replies) == [101, 103]


def test_a_reply_that_is_announced_and_does_not_come_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed_grid, "PATIENCE", 0.05)
    inner = Sly()
    inner.holds.clear()
    grid = DeployedGrid(inner)
    began = time.monotonic()
    assert sorted(r.metadata.src_node_id for r in grid.send_and_receive(queries(), timeout=0.5)) == [101, 103]
    second = {r.metadata.src_node_id: r for r in grid.send_and_receive(queries(), timeout=5.0)}
    assert time.monotonic() - began < 3
    assert second[102].error.reason == "its reply before is still on its way"
    assert second[101].has_content()
    inner.holds.set()
    wait_until_idle(grid)
    third = grid.send_and_receive(queries(), timeout=5.0)
    assert sorted((r.metadata.src_node_id, r.has_error()) for r in third) == [(101, False), (102, False), (103, False)]


def test_a_reply_that_is_late_counts_where_it_comes_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed_grid, "PATIENCE", 0.05)
    inner = Sly()
    inner.holds.clear()
    threading.Timer(0.4, inner.holds.set).start()
    replies = DeployedGrid(inner).send_and_receive(queries(), timeout=5.0)
    assert [r.metadata.src_node_id for r in replies] == [101, 103, 102]
    assert not any(r.has_error() for r in replies)


def wait_until_idle(grid: DeployedGrid) -> None:
    for pull in grid._late.values():
        pull.join(5)


class Busy(Nodes):
    """A grid whose SuperLink answers each kind of call with errors first."""

    def __init__(self, status: int, times: int) -> None:
        super().__init__([honest(drawn(label)) for label in range(3)])
        self.status, self.left = status, {"nodes": times, "push": times, "pull": times}

    def get_node_ids(self) -> Iterable[int]:
        self.trouble("nodes")
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.trouble("push")
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.trouble("pull")
        return super().pull_messages(message_ids)

    def trouble(self, kind: str) -> None:
        self.left[kind] -= 1
        if self.left[kind] >= 0:
            request = httpx.Request("POST", "https://superlink")
            raise httpx.HTTPStatusError("no", request=request, response=httpx.Response(self.status, request=request))


def test_a_superlink_that_is_busy_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed_grid.time, "sleep", lambda seconds: None)
    grid = DeployedGrid(Busy(500, 3))
    assert len(list(grid.get_node_ids())) == 3
    assert not any(reply.has_error() for reply in grid.send_and_receive(queries(), timeout=5.0))


def test_a_superlink_that_refuses_or_stays_broken_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed_grid, "TROUBLE", 0.0)
    for status in (401, 500):
        with pytest.raises(httpx.HTTPStatusError):
            DeployedGrid(Busy(status, 1)).get_node_ids()
        with pytest.raises(httpx.HTTPStatusError):
            DeployedGrid(Busy(status, 1)).push_messages(queries())


def test_a_reply_that_a_superlink_cannot_hand_out_is_an_error_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed_grid, "TROUBLE", 0.0)
    busy = Busy(500, 0)
    busy.left["pull"] = 1
    replies = DeployedGrid(busy).send_and_receive(queries(), timeout=5.0)
    assert sorted(reply.has_error() for reply in replies) == [False, False, True]
