"""Lies on the wire: replies made of objects, as a SuperLink hands them on, of one node among honest ones."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedrec_app import client_app
from fedrec_app.client import RecommenderClient
from fedrec_app.local_grid import LocalGrid
from fedrec_app.models.registry import resolved
from fedrec_app.node_settings import NodeSettings
from fedrec_app.passed_grid import PassedGrid
from fedrec_app.records import Said
from fedrec_app.server_app import RunResult, run_server
from strategies.deployed_grid import DeployedGrid
from tests.e2e.helpers import assert_same_arrays
from tests.e2e.hostile_supernode import Sent
from tests.e2e.lies import EVALUATE, EXAMPLES, TRAIN, USERS, Liar
from tests.small import SMALL

SLOW = ("parts that never come", "an oversized array", "two hundred tiny arrays")
LIES = [name for name in TRAIN if name not in SLOW]
SETTINGS: dict[str, Any] = {
    "data.options": SMALL, "checkpoint.every": 0, "strategy.options": '{"tau": 1e-4}', "evaluate.bootstrap": 0,
    "num-server-rounds": len(LIES), "evaluate.every": 4, "strategy.round-timeout": 0.2,
}  # fmt: skip


class WithLiar(PassedGrid):
    """Honest nodes and one that lies; what it sends is taken apart and put together as Flower's grid does it.

    Args:
        grid: of the honest nodes.
        liar: what the other one says.
    """

    node = 4711

    def __init__(self, grid: LocalGrid, liar: Liar) -> None:
        super().__init__(grid)
        self._liar = liar
        self._ids = itertools.count()
        self._sent: dict[str, list[Sent]] = {}

    def get_node_ids(self) -> Iterable[int]:
        return [*super().get_node_ids(), self.node]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = []
        for message in messages:
            if message.metadata.dst_node_id != self.node:
                pushed += super().push_messages([message])
                continue
            message_id = f"{next(self._ids):064x}"
            message.metadata.__dict__["_message_id"] = message_id
            self._sent[message_id] = self._liar.answers(message)[1][:1]  # a SuperLink keeps no second one
            pushed.append(message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        (message_id,) = message_ids
        if message_id not in self._sent:
            return super().pull_messages([message_id])
        # A SuperLink compares the envelope of a reply with what it answers.
        fitting = [s for s in self._sent.pop(message_id) if s.message.metadata.reply_to_message_id == message_id]
        return [self._put_together(sent) for sent in fitting]

    def _put_together(self, sent: Sent) -> Message:
        if sent.withheld:
            threading.Event().wait(3600)
        contents = {tree.object_id: sent.objects[tree.object_id] for tree in iterate_object_tree(sent.tree)}
        message = inflate_object_from_contents(sent.tree.object_id, contents)
        return message  # type: ignore[return-value]


def with_liar(out: Path, **plan: Any) -> RunResult:
    settings = {**SETTINGS, "output-dir": str(out)}
    told = NodeSettings.of({"partition-id": 0, "num-partitions": 2}, out / "state")
    said = RecommenderClient(resolved(settings), told).get_properties({})
    mine = {Said.PARTITION: 2, Said.NUM_USERS: USERS, Said.NUM_EXAMPLES: EXAMPLES, Said.COHORT_SIZE: USERS}
    liar = Liar({"properties": {**said, **mine}, **plan})
    grid = WithLiar(LocalGrid(client_app.app, settings, 2), liar)
    return run_server(DeployedGrid(grid), settings)


@pytest.fixture(scope="module")
def lied_to(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return with_liar(tmp_path_factory.mktemp("lied"), train=LIES, evaluate=list(EVALUATE))


def test_every_lie_is_dropped_for_its_reason_and_only_it(lied_to: RunResult) -> None:
    found = [
        {key.removeprefix("dropped/"): n for key, n in record["train"].items() if key.startswith("dropped/")}
        for record in lied_to.folder.read_metrics()
    ]
    for name, dropped in zip(LIES, found, strict=True):
        reason = TRAIN[name].reason
        assert list(dropped.values()) == [1], name
        assert next(iter(dropped)) in ((reason,) if isinstance(reason, str) else reason), name


def test_lies_of_a_node_leave_no_trace_in_the_model_and_the_metrics(lied_to: RunResult, tmp_path: Path) -> None:
    settings = {**SETTINGS, "output-dir": str(tmp_path)}
    alone = run_server(LocalGrid(client_app.app, settings, 2), settings)
    assert_same_arrays(lied_to.folder.read_model()[0], alone.folder.read_model()[0], tolerance=0)
    ours, theirs = lied_to.folder.read_metrics(), alone.folder.read_metrics()
    for record, undisturbed in zip(ours, theirs, strict=True):
        if (judged := record["validation"]) is not None:
            assert judged.pop("dropped-evaluations") == 1
            assert {n: v for n, v in undisturbed["validation"].items() if n in judged} == judged
