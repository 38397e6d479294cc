"""Example-level privacy in a federation: what leaves a node, what is charged, and who is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fedrec_app.client import ARRAYS_IN, ARRAYS_OUT, RecommenderClient
from fedrec_app.errors import ConfigError, StateError
from fedrec_app.models.registry import resolved
from fedrec_app.node_settings import NodeSettings
from fedrec_app.privacy.accounting import epsilon
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.node_accountant import NodeAccountant
from fedrec_app.records import Ask, Said
from fedrec_app.server_app import RunResult
from fedrec_app.simulate import simulate
from fedrec_app.training import example_level
from tests.small import SMALL

pytestmark = pytest.mark.usefixtures("without_pictures")

PRIVATE: dict[str, Any] = {
    "data.options": SMALL, "num-server-rounds": 2, "evaluate.bootstrap": 0, "train.private-epochs": 0,
    "train.num-negatives": 2, "privacy.unit": "example", "privacy.noise-multiplier": 1.0,
    "privacy.sampling-rate": 0.5, "privacy.delta": 1e-4,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "mf": {"model.options": '{"loss": "bce"}', "model.embedding-dim": 4},
    "neumf": {"model.embedding-dim": 4},
    "pfedrec": {"model.embedding-dim": 4},
    "sasrec": {"model.options": '{"layers": 1, "max_length": 8}', "model.embedding-dim": 8, "train.local-epochs": 1},
}
ROUND = Gaussian(1.0, 0.5, 2)


def run(output_dir: Path, model: str, **settings: Any) -> tuple[RunResult, list[Message]]:
    messages: list[Message] = []
    flat = {**PRIVATE, "output-dir": str(output_dir), "model.name": model, **MODELS[model], **settings}
    return simulate(flat, 3, taps=[messages.append]), messages


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_and_each_node_keeps_a_ledger_that_says_what_the_run_says(
    model: str, tmp_path: Path
) -> None:
    result, messages = run(tmp_path, model, **{"privacy.metrics": "withheld"})
    assert result.summary["dropped_updates"] == {}
    for partition in range(3):
        accountant = NodeAccountant(tmp_path / "nodes", result.summary["lineage"], partition)
        assert accountant.releases() == [ROUND, ROUND]
    assert result.summary["privacy"]["epsilon"] == pytest.approx(epsilon([ROUND, ROUND], 1e-4), rel=1e-6)
    replies = [m for m in messages if m.metadata.message_type == "train" and m.metadata.reply_to_message_id]
    assert len(replies) == 6
    for reply in replies:
        said = reply.content.metric_records["metrics"]
        assert [said[key] for key in (Said.NUM_EXAMPLES, Said.NUM_USERS, Said.LOSS)] == [0, 0, 0.0]
        assert {name.partition("/")[0] for name in reply.content.array_records["arrays"]} <= {"delta", "rows"}


def test_training_learns_where_there_is_next_to_no_noise(tmp_path: Path) -> None:
    larger = '{"num_users": 200, "num_items": 100, "mean_interactions": 25, "min_interactions": 5, "num_topics": 5}'
    learns = {
        "privacy.noise-multiplier": 1e-3, "privacy.metrics": "exact", "privacy.sampling-rate": 0.1,
        "data.options": larger, "train.optimizer": "adam", "train.private-learning-rate": 0.03,
        "strategy.name": "fedavg", "strategy.options": '{"weighting": "users"}', "num-server-rounds": 10,
        "evaluate.fold-in-epochs": 0, "model.embedding-dim": 8, "evaluate.every": 10,
    }  # fmt: skip
    trained, still = (run(tmp_path, "mf", **learns, **{"train.learning-rate": rate})[0] for rate in (0.03, 1e-9))
    assert trained.summary["test"]["ndcg@10"] > 1.3 * still.summary["test"]["ndcg@10"]


def client(folder: Path, **settings: Any) -> RecommenderClient:
    flat = {**PRIVATE, "model.name": "mf", **MODELS["mf"], **settings}
    return RecommenderClient(resolved(flat), NodeSettings(0, 3, folder))


def fit(node: RecommenderClient, server_round: int, **asked: Any) -> np.ndarray:
    """Returns the delta that a node answers with."""
    arrays = node.get_parameters({})
    config = {
        Ask.ROUND: server_round, Ask.UPDATE: "delta", Ask.WEIGHTING: "users", Ask.LINEAGE: "line",
        ARRAYS_IN: '["item_embedding"]', **asked,
    }  # fmt: skip
    found, _, metrics = node.fit(arrays, config)
    return dict(zip(json.loads(metrics[ARRAYS_OUT]), found, strict=True))["delta/item_embedding"]


def test_a_restarted_node_goes_on_with_its_ledger_and_draws_anew(tmp_path: Path) -> None:
    deltas = [fit(client(tmp_path), server_round) for server_round in (1, 1, 2)]
    assert NodeAccountant(tmp_path, "line", 0).releases() == [ROUND] * 3
    assert not np.isclose(deltas[0], deltas[1]).any()


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_a_node_without_a_whole_ledger_trains_no_more(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(client(tmp_path), 1)
    ledger = tmp_path / "line.privacy" / "0.jsonl"
    if damage == "lost":
        for path in ledger.parent.iterdir():
            path.unlink()
    else:
        ledger.write_bytes(ledger.read_bytes().replace(b'"count":2', b'"count":1'))
    trained: list[Any] = []
    monkeypatch.setattr(example_level, "clipped_sum", trained.append)
    with pytest.raises(StateError, match=r"0\.jsonl"):
        fit(client(tmp_path), 2)
    assert trained == []


@pytest.mark.parametrize("weighting", ["examples", "rows", ""])
def test_a_message_cannot_ask_for_weights_that_tell(weighting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"weighting '{weighting}'"):
        fit(client(tmp_path), 1, **{Ask.WEIGHTING: weighting})
    assert NodeAccountant(tmp_path, "line", 0).releases() == []


def test_parameters_that_are_asked_for_in_place_of_a_delta_are_charged_and_noised_too(tmp_path: Path) -> None:
    node = client(tmp_path)
    config = {Ask.WEIGHTING: "users", Ask.LINEAGE: "line", ARRAYS_IN: '["item_embedding"]'}
    tables = [node.fit(node.get_parameters({}), config)[0][0] for _ in range(2)]
    assert not np.isclose(*tables).any()
    assert NodeAccountant(tmp_path, "line", 0).releases() == [ROUND] * 2


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "closed form": ("mf", {"model.options": "{}"}, r'model.options=.*"bce"'),
    "reconstruction": ("pfedrec", {"train.private-epochs": 1}, "train.private-epochs=0"),
    "solved": ("ease", {}, "ease"),
    "bounded mini-batches": ("neumf", {"train.max-grad-norm": 1.0}, "train.max-grad-norm.*privacy"),
    "examples": ("neumf", {"strategy.options": '{"weighting": "examples"}'}, "weighting 'examples'"),
    "client part": ("neumf", {"strategy.name": "scaffold"}, "scaffold"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_that_cannot_be_private_does_not_start(case: str, tmp_path: Path) -> None:
    model, settings, message = REFUSED[case]
    flat = {**PRIVATE, "output-dir": str(tmp_path), "model.name": model, **settings}
    with pytest.raises(ConfigError, match=message):
        simulate(flat, 2)
