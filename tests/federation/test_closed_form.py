"""Models that are solved: one round, wherever users are placed, whatever some nodes send, for enough users only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fedrec_app import node_data
from fedrec_app.config import RunConfig
from fedrec_app.errors import ConfigError, FedrecError
from fedrec_app.local_only import local_only
from fedrec_app.models.registry import model_class
from fedrec_app.recommend import recommend
from fedrec_app.records import ARRAYS, METRICS, Said, from_record, to_record
from fedrec_app.server_app import RunResult
from fedrec_app.simulate import simulate

SMALL = '{"num_users": 120, "num_items": 60, "mean_interactions": 12, "min_interactions": 5}'
MODELS = ("ease", "itemknn", "popularity")


def run(output_dir: Path, model: str, num_nodes: int = 4, taps: Any = (), **settings: Any) -> RunResult:
    flat = {
        "output-dir": str(output_dir), "model.name": model, "data.options": SMALL, "evaluate.bootstrap": 0, **settings
    }  # fmt: skip
    return simulate(flat, num_nodes, taps=taps)


def parameters(result: RunResult) -> dict[str, np.ndarray]:
    return result.folder.read_model()[0]


@pytest.mark.parametrize("model", MODELS)
def test_one_round_gives_the_same_on_any_number_of_nodes(tmp_path: Path, model: str) -> None:
    one, six = run(tmp_path, model, 1), run(tmp_path, model, 6)
    assert one.summary["rounds"] == six.summary["rounds"] == 1
    assert one.summary["test"] == pytest.approx(six.summary["test"], abs=1e-12)
    for name, array in parameters(one).items():
        np.testing.assert_allclose(parameters(six)[name], array, atol=1e-6)
        assert array.any()


def test_nodes_are_sent_no_parameters_and_send_statistics_alone(tmp_path: Path) -> None:
    asked, sent = [], []

    def look(message: Message) -> None:
        if message.metadata.message_type == "train":
            names = set(from_record(message.content.array_records[ARRAYS]))
            (sent if message.metadata.reply_to_message_id else asked).append(names)

    run(tmp_path, "ease", 3, [look])
    assert asked == [set()] * 3
    assert all(names and all(name.startswith("stat/") for name in names) for names in sent)


def test_what_too_few_users_share_stays_with_them(tmp_path: Path) -> None:
    with pytest.raises(FedrecError, match="dropped 8 error-reply"):
        run(tmp_path, "ease", 8)  # 15 users each
    found = run(tmp_path, "ease", 8, **{"privacy.min-cohort": 15})
    assert found.summary["dropped_updates"] == {}


def test_statistics_that_cannot_be_are_dropped_and_the_rest_is_solved(tmp_path: Path) -> None:
    spoilt: list[int] = []

    def spoil(message: Message) -> None:
        if message.metadata.message_type != "train" or not message.metadata.reply_to_message_id or spoilt:
            return
        spoilt.append(message.metadata.src_node_id)
        arrays = from_record(message.content.array_records[ARRAYS])
        (name,) = arrays
        message.content[ARRAYS] = to_record({name: np.full_like(arrays[name], 200)})

    found = run(tmp_path, "ease", 4, [spoil])
    assert found.summary["dropped_updates"] == {"bad-statistics": 1}
    assert found.summary["status"] == "completed"


@pytest.mark.parametrize("change", ["delta/weights", "no record", "wrong round", "too many users"])
def test_replies_that_are_no_statistics_are_dropped_with_their_reason(tmp_path: Path, change: str) -> None:
    reasons = {
        "delta/weights": "extra-array", "no record": "wrong-records", "wrong round": "wrong-round",
        "too many users": "bad-weight",
    }  # fmt: skip

    def spoil(message: Message) -> None:
        if message.metadata.message_type != "train" or not message.metadata.reply_to_message_id:
            return
        if change == "delta/weights":
            message.content[ARRAYS] = to_record({"delta/weights": np.zeros((60, 60), np.float32)})
        elif change == "no record":
            del message.content[ARRAYS]
        elif change == "wrong round":
            message.content.metric_records[METRICS][Said.ROUND] = 7
        else:
            message.content.metric_records[METRICS][Said.WEIGHT] = 1e6

    with pytest.raises(FedrecError, match=f"dropped 4 {reasons[change]}"):
        run(tmp_path, "ease", 4, [spoil])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy.name": "fedavg"}, r"'ease' is solved in closed form, and strategy 'fedavg' is not for such models"),
        ({"model.name": "mf", "strategy.name": "closed-form"}, r"'mf' is trained by gradients, and strategy 'closed-f"),
        ({"strategy.fraction-train": 0.5}, r"sums over all users.*strategy.fraction-train=1"),
        ({"train.user-fraction": 0.5}, r"sums over all users.*train.user-fraction=1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, "ease", 4, **settings)


def test_items_left_out_are_said_in_the_summary(tmp_path: Path) -> None:
    found = run(tmp_path, "ease", 2, **{"model.options": '{"max_items": 20, "neighbors": 5}'})
    assert found.summary["remarks"] == [
        "the 20 most popular of 60 items that somebody met have weights (max_items)",
        "of each item the 5 largest weights are kept (neighbors)",
    ]
    assert "the 20 most popular of 60 items" in (found.folder.path / "report.md").read_text()


def test_alone_a_user_knows_nothing_that_he_has_not_met(tmp_path: Path) -> None:
    flat = {"model.name": "ease", "data.options": SMALL}
    config = RunConfig.from_flat(flat).resolve(model_class("ease").recipe)
    found = local_only(config, node_data.catalog(config.data), node_data.cohort(config.data, None, 1), "test")
    assert found["hr@10"] == 0.0  # all ties, which count against the target


def test_a_solved_model_recommends(tmp_path: Path) -> None:
    found = run(tmp_path, "ease", 2)
    data = RunConfig.from_flat({"data.options": SMALL}).data
    everybody, names = node_data.cohort(data, None, 1), node_data.catalog(data).item_ids
    answer = recommend(found.folder, everybody.user_ids[3], [], 5)
    assert len(answer["items"]) == 5
    assert not {item["item_id"] for item in answer["items"]} & {names[item] for item in everybody.train[3]}
    assert "warnings" not in answer
