"""What a worker process does once, and that messages share nothing that they write to: counts, and never times."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from numba.core.dispatcher import Dispatcher
from torch import Tensor, nn

from fedrec_app import node_data
from fedrec_app.client import ARRAYS_IN, RecommenderClient
from fedrec_app.config import RunConfig
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.partition import Prepared
from fedrec_app.evaluation.candidates import Candidates
from fedrec_app.models.base import Recommender
from fedrec_app.models.registry import model_class, resolved
from fedrec_app.node_data import Kept, num_bytes
from fedrec_app.node_settings import NodeSettings
from fedrec_app.private_state import PrivateState
from fedrec_app.records import Arrays, Ask
from fedrec_app.simulate import simulate

MODELS: dict[str, dict[str, Any]] = {
    "mf": {},
    "mf bce": {"model.options": '{"loss": "bce"}', "train.num-negatives": 2},
    "neumf": {"model.name": "neumf", "model.embedding-dim": 4},
}


def settings(users: int, **others: Any) -> dict[str, Any]:
    """Settings of a data set that no other test has, so that nothing of it is kept already."""
    options = f'{{"num_users": {users}, "num_items": 90, "mean_interactions": 15, "min_interactions": 5}}'
    return {"data.options": options, "num-server-rounds": 3, **others}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], list[tuple[Any, ...]]]:
    """Returns a function that wraps (owner, name) and returns the list to which each call adds its arguments."""

    def wrap(owner: Any, name: str) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []
        found = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            return found(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)
        return calls

    return wrap


def compiled() -> Counter[str]:
    """Returns how many types of arguments each compiled loop of ours has been compiled for."""
    loops = {
        f"{module.__name__}.{name}": len(value.signatures)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("fedrec_app")
        for name, value in vars(module).items()
        if isinstance(value, Dispatcher)
    }
    return Counter(loops)


# A run in one process ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_three_rounds_of_eight_nodes_load_draw_bind_and_compile_once(
    tmp_path: Path, counted: Callable[[Any, str], list[tuple[Any, ...]]], model: str
) -> None:
    flat = settings(100 + list(MODELS).index(model), **MODELS[model], **{"output-dir": str(tmp_path)})
    loaded, cut = counted(node_data.sources, "load_whole"), counted(Prepared, "cohort")
    rows, draws = counted(node_data, "initial_private"), counted(Candidates, "of")
    bound = counted(model_class(flat.get("model.name", "mf")), "bind")
    dealt = counted(sys.modules[Prepared.__module__], "partition")
    loops: list[Counter[str]] = []
    simulate(flat, 8, watchers=[lambda *_: loops.append(compiled())])
    assert len(loaded) == 1
    assert len(dealt) == 1
    assert sorted(node for _, node, *_ in cut) == list(range(8))
    assert len(rows) == len(draws) == 8
    assert sorted(cohort is None for _, _, cohort in bound) == [False] * 8 + [True]  # the server binds once
    assert loops[0] == loops[1] == loops[2]
    assert sum(loops[0].values()) > 0


def test_a_users_key_is_worked_out_once_a_cohort(counted: Callable[[Any, str], list[tuple[Any, ...]]]) -> None:
    hashed = counted(sys.modules[Cohort.__module__], "user_key")
    cohort = node_data.cohort(resolved(settings(110)).data, 0, 2)
    for _ in range(3):
        assert len(cohort.keys) == 55
    assert len(hashed) == 55


def test_a_model_that_solves_its_private_rows_reads_and_writes_no_state(
    tmp_path: Path, counted: Callable[[Any, str], list[tuple[Any, ...]]]
) -> None:
    touched = counted(PrivateState, "__init__")
    simulate(settings(111, **{"output-dir": str(tmp_path)}), 2)
    assert touched == []


# Two messages of one node --------------------------------------------------------------------------------------------


@dataclass
class Messages:
    """A node and what two messages bring to it."""

    config: RunConfig
    node: NodeSettings
    parameters: list[list[np.ndarray]]
    ask: dict[str, Any]

    def client(self) -> RecommenderClient:
        return RecommenderClient(self.config, self.node)

    def fit(self, which: int) -> list[np.ndarray]:
        return self.client().fit([array.copy() for array in self.parameters[which]], self.ask)[0]


@pytest.fixture(params=MODELS)
def messages(request: pytest.FixtureRequest, tmp_path: Path) -> Messages:
    config = resolved(settings(120, **MODELS[request.param]))
    node = NodeSettings(1, 3, tmp_path, durable=False)
    first = [array.copy() for array in RecommenderClient(config, node).get_parameters({})]
    names = RecommenderClient(config, node).model.shared_names()
    ask = {Ask.ROUND: 1, Ask.UPDATE: "delta", ARRAYS_IN: str(names).replace("'", '"')}
    return Messages(config, node, [first, [array + np.float32(0.5) for array in first]], ask)


def test_a_message_leaves_nothing_for_the_next_one(messages: Messages) -> None:
    kept = node_data.node_data(messages.config, 1, 3)
    before = {name: array.copy() for name, array in kept.initial_rows.items()}
    alone = messages.fit(0)
    messages.fit(1)
    again = messages.fit(0)  # round 1 starts from round 0 each time, so from the initial rows
    for one, other in zip(alone, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for name, array in before.items():
        np.testing.assert_array_equal(kept.initial_rows[name], array)
    assert kept is node_data.node_data(messages.config, 1, 3)
    assert all(parameter.is_meta for parameter in kept.skeleton.parameters())


def test_messages_of_one_node_in_threads_do_not_see_each_other(messages: Messages) -> None:
    alone = [messages.fit(which) for which in (0, 1)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(messages.fit, [0, 1] * 8))
    for place, found in enumerate(together):
        for one, other in zip(alone[place % 2], found, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_models_parameters_are_those_of_its_message(messages: Messages) -> None:
    one, other = messages.client(), messages.client()
    for client, parameters in zip((one, other), messages.parameters, strict=True):
        client.judge(parameters, messages.ask)
    for n, name in enumerate(one.model.shared_names()):
        for client, parameters in zip((one, other), messages.parameters, strict=True):
            np.testing.assert_array_equal(client.model.get_parameter(name).detach().numpy(), parameters[n])


# What is kept, and how much of it ------------------------------------------------------------------------------------


def test_what_weighs_too_much_goes_the_longest_unused_first_and_the_newest_stays() -> None:
    made: list[int] = []

    def make(weight: int) -> int:
        made.append(weight)
        return weight

    kept = Kept(make, 10, float)
    assert [kept(4), kept(5), kept(4), kept(3)] == [4, 5, 4, 3]  # 4 + 5 + 3 is too much: 5 goes
    assert [kept(4), kept(3)] == [4, 3]
    assert made == [4, 5, 3]
    assert [kept(50), kept(50)] == [50, 50]
    assert made == [4, 5, 3, 50]
    kept(4)
    assert made == [4, 5, 3, 50, 4]
    kept.cache_clear()
    assert [kept(4), kept(6), kept(4)] == [4, 6, 4]
    assert made == [4, 5, 3, 50, 4, 4, 6]


def test_a_failure_is_not_kept() -> None:
    answers: Iterator[int] = iter([0, 1])

    def divide() -> float:
        return 1 / next(answers)

    kept = Kept(divide, 1, lambda result: 1)
    with pytest.raises(ZeroDivisionError):
        kept()
    assert kept() == kept() == 1


def test_threads_that_ask_at_once_get_one_result_made_once() -> None:
    made: list[object] = []
    start = Barrier(4)

    def make() -> object:
        time.sleep(0.05)  # the others are here by now
        made.append(object())
        return made[-1]

    kept = Kept(make, 1, lambda result: 1)

    def ask(_: int) -> object:
        start.wait()
        return kept()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4))) == set(made)
    assert len(made) == 1


@pytest.mark.parametrize("model", MODELS)
def test_what_is_kept_of_a_node_does_not_grow_with_the_catalog(model: str) -> None:
    weights = []
    for items in (100, 3000):
        flat = settings(40, **MODELS[model])
        flat["data.options"] = flat["data.options"].replace('"num_items": 90', f'"num_items": {items}')
        config = resolved(flat)
        assert len(node_data.prepared(config.data).dataset.catalog) == items
        kept = node_data.node_data(config, 0, 40)
        weights.append(num_bytes(kept) - num_bytes(kept.cohort))
    assert weights[0] == weights[1] == sum(array.nbytes for array in kept.initial_rows.values())


class Holder(Recommender):
    """A plug-in whose `bind` keeps tensors, arrays and a list of them, beside its parameters."""

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        self.table = nn.Parameter(torch.zeros(10, 10).to("meta"))
        self.register_buffer("features", torch.zeros(3, dtype=torch.float64))
        self.neighbours = [np.zeros(5, dtype=np.int32), np.zeros(7, dtype=np.int32)]
        self.layers = nn.ModuleList([nn.BatchNorm1d(2)])

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.table.sum()[None]


def test_what_a_plug_in_keeps_beside_its_parameters_counts() -> None:
    model = Holder(1, None)
    model.bind(Catalog(("a",)), None)
    batch_norm = 2 * 4 * 4 + 8  # weight, bias, mean and variance of two features; a counter
    assert num_bytes(model) == 3 * 8 + (5 + 7) * 4 + batch_norm
    arrays: Arrays = {"a": np.zeros(3, dtype=np.float32)}
    assert num_bytes((arrays, "text", 5, None)) == 12
