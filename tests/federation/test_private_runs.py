"""Whole runs with user-level differential privacy: what they charge, release, withhold and refuse."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedrec_app import client_app
from fedrec_app.checkpoint import Checkpoint
from fedrec_app.errors import ConfigError, FedrecError, StateError
from fedrec_app.models.mf import MatrixFactorization
from fedrec_app.models.registry import resolved
from fedrec_app.privacy.ledger import Ledger
from fedrec_app.records import Ask, Said, num_bytes, to_record
from fedrec_app.server_app import RunResult
from fedrec_app.simulate import simulate
from strategies import release
from strategies.dp_fedavg import DPFedAvg
from tests.small import SMALL

PRIVATE: dict[str, Any] = {
    "data.options": SMALL, "num-server-rounds": 3, "privacy.unit": "user", "privacy.target-epsilon": 8.0,
}  # fmt: skip


def run(output_dir: Path, num_nodes: int = 3, taps: Any = (), **settings: Any) -> RunResult:
    return simulate({"output-dir": str(output_dir), **PRIVATE, **settings}, num_nodes, taps=taps)


def lines(result: RunResult) -> list[dict[str, Any]]:
    path = result.folder.path / "privacy-ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_private_run_spends_its_budget_and_says_on_what(tmp_path: Path) -> None:
    result = run(tmp_path)
    privacy = result.summary["privacy"]
    assert privacy["adversary"] == "released models"
    assert privacy["server"].startswith("none")
    assert privacy["delta"] == pytest.approx(40**-1.1)
    assert 7.9 < privacy["epsilon"] <= 8.0 <= privacy["epsilon_rdp"]
    told = [record["train"]["epsilon"] for record in result.folder.read_metrics()]
    assert told == sorted(told)
    assert told[-1] < privacy["epsilon"]  # the figures of the test part cost something too
    header, *charges = lines(result)
    assert header["header"]["users"] == 40
    assert [charge["what"]["for"] for charge in charges] == ["round", "round", "round", "test metrics"]
    assert [charge["what"].get("round") for charge in charges] == [1, 2, 3, None]
    assert Ledger.open(result.folder.path / "privacy-ledger.jsonl").events


def test_a_line_of_progress_says_what_was_spent_and_not_how_long_it_took(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "flwr"):
        result = run(tmp_path)
    lines_of_rounds = [m for m in caplog.messages if m.startswith("round ")]
    told = [record["train"]["epsilon"] for record in result.folder.read_metrics()]
    assert lines_of_rounds == [f"round {n}/3 | epsilon {epsilon:.3f}" for n, epsilon in enumerate(told, 1)]


def test_what_would_leak_is_withheld_or_noised_and_the_report_says_which(tmp_path: Path) -> None:
    result = run(tmp_path)
    test = result.summary["test"]
    assert set(test) == {"ndcg@10", "hr@10", "ci"}
    low, high = test["ci"]["hr@10"]
    assert low <= test["hr@10"] <= high  # 1.96 * 5 * sqrt(3) / 40 is .42 either way, of the noise alone
    assert high - low > 0.4
    assert result.summary["sampled"] == result.summary["validation"] == {}
    assert result.summary["best_round"] == 3
    for record in result.folder.read_metrics():
        assert record["validation"] is None
        assert set(record["train"]) == {"num-updates", "epsilon", "clip-norm"}
    _, _, popularity = result.folder.read_model()
    assert popularity is None
    assert "quarantined_rows" not in result.summary
    assert "cold_items" not in result.summary
    report = (result.folder.path / "report.md").read_text()
    for text in (
        "| the server itself | not protected |",
        "Withheld: who took part",
        "noise of standard deviation",
        "all other",
    ):
        assert text in report, text


def test_no_time_that_a_run_took_is_in_its_files(tmp_path: Path) -> None:
    """A heavy user who takes part is seen in the seconds of a round."""
    result = run(tmp_path)
    assert not any("seconds" in record for record in result.folder.read_metrics())
    assert "seconds_per_round" not in result.summary
    (newest,) = tmp_path.glob("*-*-*/*/checkpoints/3.safetensors")
    assert {record["seconds"] for record in Checkpoint.from_bytes(newest.read_bytes()).facts["rounds"]} == {0.0}


@pytest.mark.parametrize("protocol", ["leave-one-out", "leaky-pfedrec"])
def test_one_user_in_the_file_moves_what_is_noised_by_no_more_than_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """From the data on: splits, negatives, cohorts and all."""
    catalog = tmp_path / "items.csv"
    catalog.write_text("item_id\n" + "".join(f"i{n}\n" for n in range(60)))
    rows = [f"u{u},i{(7 * u + 3 * n) % 60},{1000 * n + u}\n" for u in range(20) for n in range(6 + u)]
    one_more = [f"zz,i{n},{n}\n" for n in range(50)]
    sums: list[dict[str, Any]] = []

    def keep(given: Any, noise: float, bound: float) -> Any:
        sums.append(given)
        return given

    monkeypatch.setattr(release, "add_noise", keep)
    for name, lines_of_file in (("without", rows), ("with", [*one_more, *rows])):
        file = tmp_path / f"{name}.csv"
        file.write_text("user_id,item_id,timestamp\n" + "".join(lines_of_file))
        settings = {"data.name": "csv", "data.path": str(file), "data.protocol": protocol, "num-server-rounds": 1}
        options = json.dumps({"catalog": str(catalog)})
        bce = {"model.options": '{"loss": "bce"}', "train.num-negatives": 2, "privacy.clip-norm": 0.01}
        run(tmp_path, 1, **settings, **bce, **{"data.options": options, "privacy.metrics": "withheld"})
    moved = np.sqrt(sum(np.square(sums[1][name] - sums[0][name]).sum() for name in sums[0]))
    assert 0.005 < moved <= 0.01 * (1 + 1e-5)


def test_items_that_only_users_know_are_not_released_unless_they_are_said_to_be_public(tmp_path: Path) -> None:
    file = tmp_path / "clicks.csv"
    file.write_text("user_id,item_id\n" + "".join(f"u{u},i{(u + n) % 9}\n" for u in range(5) for n in range(6)))
    settings = {"data.name": "csv", "data.path": str(file), "data.options": "{}"}
    with pytest.raises(ConfigError, match=r"set privacy\.public-catalog=true"):
        run(tmp_path, **settings)
    assert run(tmp_path, **settings, **{"privacy.public-catalog": True}).summary["status"] == "completed"


class Forgetful(DPFedAvg):
    """Says that it adds noise, and does neither that nor charge."""

    name = "forgetful"

    def server_step(self, params: Any, delta: Any, server_round: int) -> Any:
        return self.server_optimizer.step(params, delta)


def test_a_strategy_that_steps_without_a_charge_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="round 1 changed the parameters and charged nothing"):
        run(tmp_path, **{"strategy.name": f"{__name__}:Forgetful"})


def test_a_start_from_a_file_is_not_covered_and_the_report_says_so(tmp_path: Path) -> None:
    before = simulate({"output-dir": str(tmp_path), "data.options": SMALL, "num-server-rounds": 1}, 2).folder.path
    result = run(tmp_path, **{"model.init-from": str(before), "model.embedding-dim": 32})
    assert "no epsilon here covers" in result.summary["privacy"]["start"]
    assert "no epsilon here covers" in (result.folder.path / "report.md").read_text()


@pytest.mark.parametrize("model", ["{}", '{"loss": "bce"}'])
def test_a_node_says_nothing_of_who_took_part(tmp_path: Path, model: str) -> None:
    replies: list[Message] = []
    settings = {"model.options": model, "train.num-negatives": 1, "privacy.sampling-rate": 0.5}
    run(tmp_path, taps=[lambda m: replies.append(m) if m.metadata.reply_to_message_id else None], **settings)
    for message in replies:
        for record in (*message.content.metric_records.values(), *message.content.config_records.values()):
            assert record.get(Said.NUM_EXAMPLES, 0) == 0
            assert record.get(Said.LOSS, 0.0) == 0.0
            assert record.get(Said.WEIGHT, 0.0) == 0.0
        names = {name for record in message.content.array_records.values() for name in record}
        assert not {name for name in names if name.startswith(("stat/", "count/"))}
    trained = [m for m in replies if m.metadata.message_type == "train"]
    assert len({num_bytes(m.content) for m in trained}) == 1  # no size says who met how many items
    assert len(trained) == 9
    assert {m.content.metric_records["metrics"][Said.NUM_USERS] for m in trained} == {0}
    judged = [m.content.array_records["arrays"]["eval/sums"].numpy() for m in replies if "evaluate" in kind(m)]
    assert [array.shape for array in judged] == [(1, 3)] * 3  # two metrics and the number of users, no bootstrap


def kind(message: Message) -> str:
    return message.metadata.message_type


@pytest.mark.parametrize(("model", "clip"), [("mf", 0.01), ("mf", 10.0), ("neumf", 0.05)])
def test_where_users_are_placed_does_not_matter(tmp_path: Path, model: str, clip: float) -> None:
    """At a rate of 1, and with noise that cannot be seen."""
    settings = {
        "privacy.target-epsilon": 0.0, "privacy.noise-multiplier": 1e-9, "privacy.clip-norm": clip, "model.name": model,
        "model.embedding-dim": 4, "privacy.metrics": "withheld",
    }  # fmt: skip
    models = [run(tmp_path, nodes, **settings).folder.read_model()[0] for nodes in (1, 3, 40)]
    for other in models[1:]:
        for name, array in models[0].items():
            np.testing.assert_allclose(other[name], array, rtol=0, atol=1e-5, err_msg=name)


def test_exact_metrics_are_for_public_data_and_the_run_says_so(tmp_path: Path) -> None:
    result = run(tmp_path, **{"privacy.metrics": "exact"})
    assert result.summary["sampled"]
    assert all(record["validation"] for record in result.folder.read_metrics())
    assert result.summary["best_round"] == 3  # the last round is released, whatever validation says
    assert [line["what"]["for"] for line in lines(result)[1:]] == ["round"] * 3
    assert "no epsilon covers them" in (result.folder.path / "report.md").read_text()


def test_withheld_metrics_are_not_even_asked_for(tmp_path: Path) -> None:
    kinds: set[str] = set()
    result = run(tmp_path, taps=[lambda m: kinds.add(kind(m))], **{"privacy.metrics": "withheld"})
    assert kinds == {"query", "train"}
    assert result.summary["test"] == {}
    assert (result.folder.path / "report.md").is_file()


def test_a_run_stops_before_it_exceeds_its_target(tmp_path: Path) -> None:
    result = run(tmp_path, **{"num-server-rounds": 9, "privacy.noise-multiplier": 1.0})
    assert 1 <= result.summary["rounds"] < 9
    assert result.summary["privacy"]["epsilon"] <= 8.0
    with pytest.raises(ConfigError, match=r"one round costs more than privacy\.target-epsilon = 0\.1"):
        run(tmp_path, **{"privacy.noise-multiplier": 1.0, "privacy.target-epsilon": 0.1})


def test_adaptive_clipping_moves_the_bound_that_nodes_are_told(tmp_path: Path) -> None:
    bounds: list[float] = []

    def tap(message: Message) -> None:
        if kind(message) == "train" and not message.metadata.reply_to_message_id:
            bounds.append(float(message.content.config_records["config"][Ask.CLIP_NORM]))  # type: ignore[arg-type]

    options = json.dumps({"clipping": "adaptive", "count_std": 4.0, "clip_learning_rate": 1.0})
    result = run(tmp_path, 1, [tap], **{"strategy.options": options, "privacy.clip-norm": 100.0})
    assert len(bounds) == 3
    assert bounds[0] == 100.0 > bounds[1] > bounds[2] > result.summary["privacy"]["clip_norm"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"strategy.name": "fedavg"}, "dp-fedavg"),
        ({"strategy.name": "krum"}, "dp-fedavg"),
        ({"strategy.name": "flwr.serverapp.strategy:FedAvg"}, "dp-fedavg"),
        ({"privacy.unit": "none", "privacy.target-epsilon": 0.0, "strategy.name": "dp-fedavg"}, "privacy.unit"),
        ({"model.name": "ease"}, "solved from exact sums"),
        ({"train.unit": "node"}, 'needs train.unit="user"'),
        ({"train.user-fraction": 0.5}, "privacy.sampling-rate"),
        ({"strategy.fraction-train": 0.5}, "fraction-train"),
        ({"evaluate.early-stopping-rounds": 2}, "early-stopping-rounds"),
        ({"privacy.target-epsilon": 0.0}, "target-epsilon or privacy.noise-multiplier"),
        ({"privacy.unit": "none"}, "no effect"),
        ({"data.k-core": 2}, "k-core"),
        ({"data.protocol": "temporal"}, "each user moves what others train on"),
        ({"privacy.delta": 0.025}, "it must be below 1 / 40"),
    ],
)
def test_what_cannot_be_private_is_refused(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        run(tmp_path, **settings)
    assert expected in str(error.value)


class Coupled(MatrixFactorization):
    """A model whose users' losses depend on each other."""

    name = "coupled"
    couples_users = True


def test_a_model_that_couples_users_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="couples users"):
        run(tmp_path, **{"model.name": f"{__name__}:Coupled"})


@pytest.mark.parametrize(
    "ask",
    [
        {},
        {"update": "delta"},
        {"clip-norm": 1.0},
        {"update": "delta", "clip-norm": 0.0},
        {"update": "delta", "clip-norm": float("inf")},
    ],
)
def test_a_node_sends_nothing_that_is_not_clipped_whoever_asks(
    tmp_path: Path, ask: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    flat = {"output-dir": str(tmp_path), **PRIVATE}
    context = Context(1, 1, {"partition-id": 0, "num-partitions": 1}, RecordDict(), flat)  # type: ignore[arg-type]
    client = client_app.client_for(Message(RecordDict(), 1, "train"), context)
    arrays = to_record(dict(zip(client.model.shared_names(), client.get_parameters({}), strict=True)))
    content = RecordDict({"arrays": arrays, "config": ConfigRecord(ask)})
    caplog.set_level(logging.CRITICAL, "flwr")
    with pytest.raises(FedrecError, match="sums of clipped deltas alone"):
        client_app.train(Message(content, 1, "train"), context)


def test_the_recipe_of_a_private_run_is_a_private_one() -> None:
    config = resolved({**PRIVATE, "model.name": "sasrec"})
    assert (config.strategy.name, config.train.unit) == ("dp-fedavg", "user")
    assert resolved({"model.name": "sasrec"}).train.unit == "node"
