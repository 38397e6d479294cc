"""Whole federations whose strategies change local training, against plain loops over users and nodes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message
from numpy.typing import NDArray
from safetensors.numpy import load

from fedrec_app import node_data, server_app
from fedrec_app.client import ARRAYS_IN, RecommenderClient
from fedrec_app.client_part import ClientPart
from fedrec_app.config import RunConfig
from fedrec_app.errors import ConfigError
from fedrec_app.models.registry import model_class
from fedrec_app.node_settings import NodeSettings as Place
from fedrec_app.records import ARRAYS, CONFIG, METRICS, Arrays, Ask, Said, from_record
from fedrec_app.seeding import stream_key
from fedrec_app.simulate import simulate
from fedrec_app.training import batches, node, sampling
from fedrec_app.training.plan import FitPlan
from strategies.fedavg import FedAvg
from tests.unit.training.oracle import Trained, train_one_user

TABLE, CONTROL_OF_TABLE = "item_embedding", "control/item_embedding"
FEW: dict[str, Any] = {
    "num-server-rounds": 4, "evaluate.every": 4, "evaluate.bootstrap": 0, "train.num-negatives": 2,
    "data.options": '{"num_users": 24, "num_items": 30, "mean_interactions": 9, "min_interactions": 6}',
    "model.options": '{"loss": "bce", "init_std": 0.8}', "model.embedding-dim": 4,
    "train.local-epochs": 2, "train.batch-size": 5, "train.learning-rate": 0.5, "train.private-learning-rate": 0.3,
}  # fmt: skip
SCAFFOLD: dict[str, Any] = {**FEW, "strategy.name": "scaffold", "train.unit": "node"}
NODES = 3


def partition_of(node_id: int) -> int:
    return next(k for k in range(99) if stream_key(0, "local-node", k) % (2**62) == node_id)


@dataclass
class Recorder:
    """What travels in training: (round, partition) -> arrays."""

    asked: dict[tuple[int, int], Arrays] = field(default_factory=dict)
    sent: dict[tuple[int, int], Arrays] = field(default_factory=dict)

    def __call__(self, message: Message) -> None:
        about = message.metadata
        if about.message_type != "train":
            return
        assert message.has_content(), message.error
        arrays = from_record(message.content.array_records[ARRAYS])
        if about.reply_to_message_id:
            server_round = message.content.metric_records[METRICS][Said.ROUND]
            self.sent[int(server_round), partition_of(about.src_node_id)] = arrays  # type: ignore[arg-type]
        else:
            server_round = message.content.config_records[CONFIG][Ask.ROUND]
            self.asked[int(server_round), partition_of(about.dst_node_id)] = arrays  # type: ignore[arg-type]


@dataclass
class Run:
    """A finished run: what travelled, parameters after the last round, where nodes keep things, and its settings."""

    messages: Recorder
    last: Arrays
    nodes: Path
    lineage: str
    config: RunConfig
    summary: dict[str, Any]

    def control_of(self, partition: int, server_round: int) -> NDArray:
        """The node's own control variate, from its disk."""
        path = self.nodes / f"{self.lineage}.strategy" / str(partition) / f"{server_round}.safetensors"
        return load(path.read_bytes())[TABLE][0]

    def versions(self, partition: int) -> list[int]:
        folder = self.nodes / f"{self.lineage}.strategy" / str(partition)
        return sorted(int(path.stem) for path in folder.glob("*.safetensors"))


def run(
    output_dir: Path, settings: dict[str, Any], num_nodes: int = NODES, lost: Collection[tuple[int, int]] = ()
) -> Run:
    """Returns the run; replies of these (round, partition) reach the server spoilt, and it drops them."""
    flat = {**settings, "output-dir": str(output_dir)}
    messages, last = Recorder(), {}

    def spoil(message: Message) -> None:
        about = message.metadata
        if about.message_type == "train" and about.reply_to_message_id:
            said = message.content.metric_records[METRICS]
            if (said[Said.ROUND], partition_of(about.src_node_id)) in lost:
                said[Said.ROUND] = 999

    def watch(record: Any, progress: Any, num_rounds: int) -> None:
        last.update(from_record(progress.arrays))

    result = simulate(flat, num_nodes, watchers=[watch], taps=[messages, spoil])
    config = RunConfig.from_flat(flat).resolve(model_class("mf").recipe)
    return Run(messages, last, output_dir / "nodes", result.summary["lineage"], config, result.summary)


class NaiveNode:
    """A node of Algorithm 1, option II, written down: matrix factorisation with sampled negatives, in float64."""

    def __init__(self, config: RunConfig, partition: int) -> None:
        data = node_data.node_data(config, partition, NODES)
        self.config, self.partition, self.cohort, self.model = config, partition, data.cohort, data.skeleton
        self.users = torch.from_numpy(data.rows()["user_embedding"]).double()
        self.control = np.zeros((self.cohort.num_items, 4))
        self.weight = int(self.cohort.train.lengths.sum())

    def train(self, x: NDArray, c: NDArray, server_round: int) -> tuple[NDArray, NDArray]:
        """Returns what the node's model and its control variate change by."""
        plan = FitPlan.of(self.config.train, self.config.seed, server_round, self.config.num_server_rounds)
        everybody = np.flatnonzero(self.cohort.train.lengths > 0)
        y, correction, steps = torch.from_numpy(x.copy()), torch.from_numpy(c - self.control), 0
        for epoch in range(plan.local_epochs):
            for batch, members in node._mini_batches(self.model, self.cohort, everybody, plan, epoch, self.partition):
                y.requires_grad_(True)
                mine = self.users[members].requires_grad_(True)
                logits = (mine[batch["user"]][:, None] * y[batch["items"]]).sum(-1)
                each = torch.nn.functional.binary_cross_entropy_with_logits(
                    logits, batch["labels"].double(), reduction="none"
                )
                weights = batch["weights"].double()
                losses = (each * weights).sum(-1) / weights.sum(-1)
                slope, own = torch.autograd.grad(losses.mean(), [y, mine])
                shares = torch.bincount(batch["user"], minlength=len(members)) / len(losses)
                y = (y - 0.5 * (slope + correction)).detach()
                self.users[members] = (mine - 0.3 * own / shares[:, None]).detach()
                steps += 1
        before = self.control
        self.control = before - c + (x - y.numpy()) / (steps * 0.5)
        return y.numpy() - x, self.control - before


def follow(
    found: Run, rounds: int, lost: Collection[tuple[int, int]] = ()
) -> tuple[list[NaiveNode], list[NDArray], list[NDArray]]:
    """The algorithm over the nodes that the run asked: its nodes, and x and c after each round.

    Of lost replies (round, partition) the users of the node have learned, and nothing else has happened.
    """
    nodes = [NaiveNode(found.config, k) for k in range(NODES)]
    x = [next(iter(found.messages.asked.values()))[TABLE].astype(np.float64)]
    c = [np.zeros_like(x[0])]
    everybody = sum(each.weight for each in nodes)
    for server_round in range(1, rounds + 1):
        for k in (k for r, k in lost if r == server_round):
            control = nodes[k].control
            nodes[k].train(x[-1], c[-1], server_round)
            nodes[k].control = control
        who = [nodes[k] for r, k in found.messages.asked if r == server_round and (r, k) not in lost]
        if not who:
            x.append(x[-1])
            c.append(c[-1])
            continue
        changes = [(each.weight, *each.train(x[-1], c[-1], server_round)) for each in who]
        x.append(x[-1] + sum(w * d for w, d, _ in changes) / sum(w for w, *_ in changes))
        c.append(c[-1] + sum(w * change for w, _, change in changes) / everybody)
    return nodes, x, c


def assert_close(found: NDArray, expected: NDArray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_scaffold_is_algorithm_1_with_option_2(tmp_path: Path) -> None:
    found = run(tmp_path, SCAFFOLD)
    nodes, x, c = follow(found, 4)
    assert np.abs(c[3]).max() > 0.005  # 500 times the tolerance
    for server_round in (1, 2, 3, 4):
        for k in range(NODES):
            received = found.messages.asked[server_round, k]
            assert_close(received[TABLE], x[server_round - 1])
            assert_close(received[CONTROL_OF_TABLE], c[server_round - 1])
    assert_close(found.last[TABLE], x[4])
    for k, naive in enumerate(nodes):
        assert_close(found.control_of(k, 4), naive.control)
    assert_close(c[4], np.average([each.control for each in nodes], axis=0, weights=[each.weight for each in nodes]))


def test_without_corrections_the_nodes_would_drift_elsewhere(tmp_path: Path) -> None:
    plain = run(tmp_path, {**SCAFFOLD, "strategy.name": "fedavg", "strategy.options": '{"learning_rate": 1.0}'})
    corrected = run(tmp_path, SCAFFOLD)
    assert_close(corrected.messages.asked[2, 0][TABLE], plain.messages.asked[2, 0][TABLE])  # all start at zero
    assert np.abs(corrected.last[TABLE] - plain.last[TABLE]).max() > 1e-3


def test_what_a_node_remembers_stays_there_and_only_its_change_travels(tmp_path: Path) -> None:
    found = run(tmp_path, SCAFFOLD)
    for arrays in found.messages.sent.values():
        assert set(arrays) - {f"rows/{TABLE}"} == {f"delta/{TABLE}", CONTROL_OF_TABLE}
    nodes = [NaiveNode(found.config, k) for k in range(NODES)]
    for k in range(NODES):
        assert found.versions(k) == [3, 4]  # the last and the one before
        own, change = found.control_of(k, 4), found.messages.sent[4, k][CONTROL_OF_TABLE] / nodes[k].weight
        assert_close(change, own - found.control_of(k, 3))
        assert np.abs(change - own).max() > 1e-3
    for arrays in [*found.messages.asked.values(), *found.messages.sent.values()]:
        for array in arrays.values():
            for k in range(NODES):
                for factor in (1, nodes[k].weight):
                    own = factor * found.control_of(k, 4)
                    assert array.shape != own.shape or np.abs(array - own).max() > 1e-3


def test_a_node_that_sits_out_keeps_its_control_variate(tmp_path: Path) -> None:
    found = run(tmp_path, {**SCAFFOLD, "num-server-rounds": 7, "strategy.fraction-train": 0.6})
    asked = {r: {k for s, k in found.messages.asked if s == r} for r in range(1, 8)}
    assert all(len(who) == 2 for who in asked.values())
    trained = {k: [r for r in asked if k in asked[r]] for k in range(NODES)}
    assert any(later - earlier > 1 for rounds in trained.values() for earlier, later in itertools.pairwise(rounds))
    assert any(7 not in rounds for rounds in trained.values())
    nodes, x, c = follow(found, 7)
    for server_round, who in asked.items():
        for k in who:
            assert_close(found.messages.asked[server_round, k][CONTROL_OF_TABLE], c[server_round - 1])
    assert_close(found.last[TABLE], x[7])
    for k, rounds in trained.items():
        assert found.versions(k)[-1] == rounds[-1]
        assert_close(found.control_of(k, rounds[-1]), nodes[k].control)


def test_a_lost_reply_leaves_the_control_variate_where_the_server_believes_it_to_be(tmp_path: Path) -> None:
    lost = [(1, 2), (2, 0), (3, 0), (4, 0), (6, 0), (6, 1), (6, 2)]  # three in a row, and a whole round
    found = run(tmp_path, {**SCAFFOLD, "num-server-rounds": 7}, lost=lost)
    assert found.summary["dropped_updates"] == {"wrong-round": len(lost)}
    nodes, x, c = follow(found, 7, lost)
    for server_round in range(1, 8):
        assert_close(found.messages.asked[server_round, 1][CONTROL_OF_TABLE], c[server_round - 1])
    assert_close(found.last[TABLE], x[7])
    for k, naive in enumerate(nodes):
        assert_close(found.control_of(k, 7), naive.control)
    assert_close(c[7], np.average([each.control for each in nodes], axis=0, weights=[each.weight for each in nodes]))


def test_nodes_without_users_change_nothing_and_are_not_dropped(tmp_path: Path) -> None:
    found = run(tmp_path, {**SCAFFOLD, "num-server-rounds": 2, "data.options": FEW["data.options"]}, num_nodes=27)
    assert found.summary["dropped_updates"] == {}
    idle = [arrays for arrays in found.messages.sent.values() if not arrays[CONTROL_OF_TABLE].any()]
    assert len(idle) == 2 * 3
    for arrays in idle:
        assert not arrays[f"delta/{TABLE}"].any()


def fit(client: RecommenderClient, arrays: Arrays, server_round: int, used: int) -> Arrays:
    """The arrays that a client answers with, whose last reply that was used is that of a round."""
    config = {
        Ask.ROUND: server_round, Ask.UPDATE: "delta", Ask.LINEAGE: "line", Ask.MEMORY_ROUND: used,
        ARRAYS_IN: f'["{TABLE}", "{CONTROL_OF_TABLE}"]',
    }  # fmt: skip
    found, _, metrics = client.fit([arrays[TABLE], arrays[CONTROL_OF_TABLE]], config)
    return dict(zip(json.loads(metrics["arrays-out"]), found, strict=True))


def test_the_memory_is_on_disk_by_round_and_not_in_a_client(tmp_path: Path) -> None:
    config = RunConfig.from_flat(SCAFFOLD).resolve(model_class("mf").recipe)

    def client(partition: int = 0) -> RecommenderClient:
        return RecommenderClient(config, Place(partition, NODES, tmp_path))

    (table,) = client().get_parameters({})
    start = {TABLE: table, CONTROL_OF_TABLE: np.full_like(table, 0.01)}
    kept = client()
    same = [fit(kept, start, 1, 0), fit(kept, start, 2, 1)]
    again = [fit(client(), start, 1, 0), fit(client(), start, 2, 1), fit(client(), start, 2, 1)]
    for found, expected in zip(again, [*same, same[1]], strict=True):  # round 2 once more starts from round 1
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
    folder = tmp_path / "line.strategy" / "0"
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["1.safetensors", "2.safetensors"]
    one, two = (load((folder / f"{r}.safetensors").read_bytes())[TABLE][0] for r in (1, 2))
    weight = int(kept.cohort.train.lengths.sum())
    assert_close(same[0][CONTROL_OF_TABLE] / weight, one)
    assert_close(same[1][CONTROL_OF_TABLE] / weight, two - one)
    first_of_another = fit(client(1), start, 2, 1)[CONTROL_OF_TABLE]
    assert np.abs(first_of_another - same[1][CONTROL_OF_TABLE]).max() > 1e-3
    assert not (tmp_path / "line.strategy" / "1" / "1.safetensors").exists()


USERS: dict[str, Any] = {**FEW, "train.unit": "user", "num-server-rounds": 1}


def every_user(found: Run, **changed: Any) -> tuple[NDArray, list[Trained], NDArray, NDArray, NDArray]:
    """The start, and of all users of all nodes: deltas, examples, steps and losses at the start, by the oracle."""
    config = found.config
    plan = replace(FitPlan.of(config.train, config.seed, 1, 1), **changed)
    start = next(iter(found.messages.asked.values()))[TABLE]
    trained, examples, steps, losses = [], [], [], []
    for k in range(NODES):
        data = node_data.node_data(config, k, NODES)
        lengths = data.cohort.train.lengths
        for user in np.flatnonzero(lengths > 0):
            model = data.model({TABLE: start.copy()}, data.rows())
            losses.append(first_loss(model, data.cohort, int(user), plan))
            trained.append(train_one_user(model, data.cohort, int(user), plan))
            examples.append(lengths[user])
            steps.append(plan.local_epochs * -(-lengths[user] // plan.batch_size))
    return start, trained, np.array(examples), np.array(steps), np.array(losses)


def first_loss(model: Any, cohort: Any, user: int, plan: FitPlan) -> float:
    base = sampling.sampling_base(plan.seed, plan.server_round, "fit")
    samples, full = sampling.draw_epoch(
        base, 0, cohort.keys, cohort.train, cohort.never_negative, cohort.num_items, plan.num_negatives
    )
    rows = samples[None, cohort.train.indptr[user] : cohort.train.indptr[user + 1]]
    ones = np.ones(rows.shape[:2], dtype=np.float32)
    return model.loss(batches.make(np.array([user]), rows, ones, full[[user]], np.ones(1))).sum().item()


def fedprox(deltas: NDArray, examples: NDArray, steps: NDArray, losses: NDArray) -> NDArray:
    return np.tensordot(examples, deltas, 1) / examples.sum()


def fednova(deltas: NDArray, examples: NDArray, steps: NDArray, losses: NDArray) -> NDArray:
    p = examples / examples.sum()
    return (p * steps).sum() * np.tensordot(p / steps, deltas, 1)


def qfedavg(deltas: NDArray, examples: NDArray, steps: NDArray, losses: NDArray) -> NDArray:
    rate, q = 0.5, 2.0
    weights = -deltas / rate  # the paper's Delta w_k
    h = q * losses ** (q - 1) * (weights**2).sum(axis=(1, 2)) + losses**q / rate
    return -np.tensordot(losses**q, weights, 1) / h.sum()


@pytest.mark.parametrize(
    ("name", "options", "changed", "by_hand"),
    [
        ("fedprox", '{"mu": 3.0}', {"proximal_mu": 3.0}, fedprox),
        ("fednova", "{}", {}, fednova),
        ("qfedavg", '{"q": 2.0}', {}, qfedavg),
    ],
)
def test_a_round_of_users_is_what_the_paper_says(
    tmp_path: Path, name: str, options: str, changed: dict[str, Any], by_hand: Callable[..., NDArray]
) -> None:
    found = run(tmp_path, {**USERS, "strategy.name": name, "strategy.options": options})
    start, trained, examples, steps, losses = every_user(found, **changed)
    assert len(set(steps)) > 1
    deltas = np.stack([user.delta[TABLE] for user in trained])
    assert_close(found.last[TABLE] - start, by_hand(deltas, examples, steps, losses))


def test_the_stronger_the_pull_of_fedprox_the_smaller_the_step(tmp_path: Path) -> None:
    moved = []
    for mu in (0.001, 1.5):
        found = run(tmp_path, {**USERS, "strategy.name": "fedprox", "strategy.options": f'{{"mu": {mu}}}'})
        moved.append(np.linalg.norm(found.last[TABLE] - found.messages.asked[1, 0][TABLE]))
    assert moved[1] < 0.7 * moved[0]


def test_config_records_of_training_hold_no_more_than_is_asked(tmp_path: Path) -> None:
    keys: set[str] = set()

    def tap(message: Message) -> None:
        config = message.content.config_records.get(CONFIG, ConfigRecord()) if message.has_content() else {}
        if message.metadata.message_type == "train":
            keys.update(config)

    simulate({**USERS, "output-dir": str(tmp_path), "strategy.name": "fednova"}, NODES, taps=[tap])
    assert keys == {Ask.ROUND, Ask.UPDATE, Ask.WEIGHTING, Ask.LINEAGE, Ask.CATALOG, Ask.KEEP_ROUND}


class Diary(ClientPart):
    """Remembers how often it was told to go on, and sends nothing of it."""

    def finish(self, delta: Arrays, steps: int, learning_rate: float) -> tuple[Arrays, Arrays]:
        return {}, {"entries": self.memory.get("entries", np.zeros(1)) + 1}


class WithDiary(FedAvg):
    name = "with-diary"
    client_part = Diary


def test_a_part_that_sends_nothing_may_remember_too(tmp_path: Path) -> None:
    settings = {**SCAFFOLD, "strategy.name": f"{__name__}:WithDiary", "num-server-rounds": 3}
    found = run(tmp_path, settings, lost=[(2, 0)])
    folder = found.nodes / f"{found.lineage}.strategy"
    entries = [load((folder / str(k) / "3.safetensors").read_bytes())["entries"] for k in range(NODES)]
    np.testing.assert_array_equal(np.ravel(entries), [2, 3, 3])


def test_users_have_no_memory_so_such_a_part_is_refused_for_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no memory.*train.unit=\"node\""):
        simulate({**USERS, "strategy.name": f"{__name__}:WithDiary", "output-dir": str(tmp_path)}, NODES)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_local_step_is_too_few_for_fedprox_whatever_takes_it(tmp_path: Path, optimizer: str) -> None:
    settings = {**USERS, "strategy.name": "fedprox", "train.local-epochs": 1, "train.batch-size": 0}
    with pytest.raises(ConfigError, match=r"one local step"):
        simulate({**settings, "train.optimizer": optimizer, "output-dir": str(tmp_path)}, NODES)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"train.unit": "node", "train.batch-size": 0}, True),  # about 72 positives a node, one mini-batch
        ({"train.unit": "node", "train.batch-size": 20}, False),
        ({"train.unit": "user", "train.batch-size": 1000}, True),
        ({"train.unit": "user", "train.batch-size": 5}, False),
    ],
)
def test_a_mini_batch_that_holds_everything_is_one_step_too(
    tmp_path: Path, settings: dict[str, Any], refused: bool
) -> None:
    flat = {**FEW, **settings, "num-server-rounds": 1, "strategy.name": "fedprox", "train.local-epochs": 1}
    if refused:
        with pytest.raises(ConfigError, match=r"one local step"):
            simulate({**flat, "output-dir": str(tmp_path)}, NODES)
    else:
        assert run(tmp_path, flat).summary["status"] == "completed"


def test_our_strategies_know_the_roster_and_stock_ones_see_members_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a grid of members only")

    monkeypatch.setattr(server_app, "MembersOnly", refuse)
    assert run(tmp_path, USERS).summary["status"] == "completed"
    with pytest.raises(AssertionError, match="a grid of members only"):
        run(tmp_path, {**USERS, "strategy.name": "flwr.serverapp.strategy:FedAvg"})


def test_scaffold_is_refused_for_some_of_the_users(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.user-fraction=1"):
        simulate({**SCAFFOLD, "train.user-fraction": 0.5, "output-dir": str(tmp_path)}, NODES)
