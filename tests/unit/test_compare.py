"""`fedrec compare`: what each row is, that differences are paired, what is refused, and what is written."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrec_app import cli, compare_rows, node_data
from fedrec_app.artifacts import RunFolder
from fedrec_app.compare import COMPARISON, Comparison, _dropped, compare, paired_differences, summary_over_seeds
from fedrec_app.compare_report import remarks, write_comparison
from fedrec_app.compare_rows import DRAWS, ROWS, Judged, plan_rows, run_row
from fedrec_app.config import RunConfig
from fedrec_app.errors import ConfigError, DataError, FedrecError
from fedrec_app.evaluation.candidates import bootstrap_weights
from fedrec_app.evaluation.evaluate import evaluate_cohort
from fedrec_app.evaluation.metrics import finalise
from fedrec_app.evaluation.sums import MetricSums
from fedrec_app.local_only import local_only_sums
from fedrec_app.models.base import initialise
from fedrec_app.models.registry import make_model
from fedrec_app.records import ARRAYS
from fedrec_app.replicates import Replicates, difference
from fedrec_app.training.node import fit_node
from fedrec_app.training.plan import FitPlan

DATA = '{"num_users": 40, "num_items": 60, "mean_interactions": 15, "min_interactions": 5}'
PRIVATE: dict[str, Any] = {"privacy.unit": "user", "privacy.target-epsilon": 8.0}
SMALL: dict[str, Any] = {"data.options": DATA, "num-server-rounds": 2, "evaluate.bootstrap": 100}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(level)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, list[tuple[Any, ...]]]:
    """All rows of a model that is trained, with two seeds, and what was watched."""
    watched: list[tuple[Any, ...]] = []
    rows = plan_rows(SMALL, 2, local_rounds=1)
    return compare(rows, tmp_path_factory.mktemp("made"), 2, lambda *seen: watched.append(seen)), watched


def replicates(draws: list[float], value: float, weights: list[float] | None = None) -> Replicates:
    weights = [3.0] * len(draws) if weights is None else weights
    return Replicates(("ndcg@10",), np.array([[value], *([draw] for draw in draws)]), np.array(weights), 3)


# The paired test -----------------------------------------------------------------------------------------------------


def test_a_difference_has_an_interval_over_draws_and_a_p_value_that_knows_its_resolution() -> None:
    ours, theirs = replicates([0.5, 0.25, 0.75, 0.5], 0.5), replicates([0.25, 0.5, 0.25, 0.25], 0.25)
    found = difference(ours, theirs, "ndcg@10")  # draws: .25, -.25, .5, .25
    assert found.value == 0.25
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile([0.25, -0.25, 0.5, 0.25], [2.5, 97.5])))
    assert found.p == 2 * (1 + 1) / 5
    assert found.resolution == 2 / 5
    assert difference(replicates([0.5] * 4, 0.5), theirs, "ndcg@10").p == 2 * (1 + 1) / 5  # a draw without difference
    assert difference(replicates([0.75] * 4, 0.5), theirs, "ndcg@10").p == found.resolution
    assert difference(theirs, ours, "ndcg@10").p == found.p


def test_a_row_does_not_differ_from_itself() -> None:
    one = replicates([0.5, 0.25], 0.25)
    found = difference(one, one, "ndcg@10")
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_rows_over_other_users_are_not_compared() -> None:
    with pytest.raises(DataError, match="not judged on the same users"):
        difference(replicates([0.5, 0.5], 0.5), replicates([0.5, 0.5], 0.5, [3.0, 2.0]), "ndcg@10")


def test_draws_of_sums_are_means_over_the_users_that_were_drawn() -> None:
    everybody = node_data.cohort(RunConfig.from_flat(SMALL).data, None, 1)
    scores = np.random.default_rng(0).random((2, len(everybody), everybody.num_items))

    def sums(mine: np.ndarray, users: np.ndarray | None = None) -> MetricSums:
        return evaluate_cohort(lambda chosen: mine[chosen], everybody, "test", num_bootstrap=50, users=users, ks=(10,))

    alone = [[sums(s, np.array([u])).sums[0, 0] for u in range(len(everybody))] for s in scores]  # "hr@10"
    weights = bootstrap_weights(everybody.keys, 0, 50).astype(float)
    gaps = (np.subtract(*alone) @ weights) / weights.sum(axis=0)
    found = difference(*(Replicates.of(sums(s)) for s in scores), "hr@10")
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(gaps, [2.5, 97.5])), abs=1e-12)
    assert found.value == pytest.approx(np.mean(np.subtract(*alone)), abs=1e-12)


def test_sums_over_nobody_have_no_draws() -> None:
    with pytest.raises(DataError, match="nothing to draw"):
        Replicates.of(MetricSums.zero(["hr@10"], 3, 10))


# What each row is ----------------------------------------------------------------------------------------------------


def test_every_row_has_a_summary_and_any_two_a_difference(made: tuple[Comparison, Any]) -> None:
    found = made[0].to_json()
    assert list(found) == [*ROWS, "differences"]
    for name in ROWS:
        assert found[name]["status"] == "completed"
        assert found[name]["seeds"] == [0, 1]
        for part in ("test", "sampled"):
            low, high = found[name][part]["ci"]["ndcg@10"]
            assert 0 <= low <= found[name][part]["ndcg@10"] <= high <= 1
    pairs = [(pair["row"], pair["minus"]) for pair in found["differences"]]
    assert pairs == [(a, b) for i, a in enumerate(ROWS) for b in ROWS[i + 1 :]]
    for pair in found["differences"]:
        a, b = found[pair["row"]], found[pair["minus"]]
        assert list(pair["metrics"]) == ["ndcg@10", "hr@10", "sampled/hr@10", "sampled/ndcg@10"]
        assert pair["metrics"]["hr@10"]["difference"] == pytest.approx(a["test"]["hr@10"] - b["test"]["hr@10"])
        gap = a["sampled"]["ndcg@10"] - b["sampled"]["ndcg@10"]
        assert pair["metrics"]["sampled/ndcg@10"]["difference"] == pytest.approx(gap)
        assert np.mean(pair["metrics"]["hr@10"]["seeds"]) == pytest.approx(pair["metrics"]["hr@10"]["difference"])


def test_settings_that_are_not_the_federated_rows_are_told(made: tuple[Comparison, Any]) -> None:
    told = {name: set(row["settings"]) for name, row in made[0].rows.items()}
    assert told == {
        "federated": set(),
        "centralised": {"num-nodes", "train.unit", "strategy.name", "strategy.options"},
        "local-only": {"num-nodes", "num-server-rounds"},
        "popularity": {"num-nodes", "model.name"},
    }
    assert made[0].rows["centralised"]["settings"]["train.unit"] == ["user", "node"]


def test_a_centralised_round_is_one_pass_over_everybody_taken_whole(tmp_path: Path) -> None:
    (row,) = plan_rows({**SMALL, "num-server-rounds": 1}, 2, ["centralised"], {"train.learning-rate": 0.25})
    found = run_row(row, 3, tmp_path, lambda done, total, text: None)
    config = row.config.model_copy(update={"seed": 3})
    assert row.config.train.learning_rate == 0.25
    everybody, catalog = node_data.cohort(config.data, 0, 1), node_data.catalog(config.data)
    model = initialise(make_model(config.model), catalog, everybody, 3)
    shared = {name: model.get_parameter(name).detach().numpy().copy() for name in model.shared_names()}
    rows = {name: model.get_parameter(name).detach().numpy().copy() for name in model.private_names()}
    sums = fit_node(model, everybody, shared, rows, FitPlan.of(config.train, 3, 1, 1), 0)
    trained = RunFolder(Path(found.summary["run"])).read_model()[0]
    assert set(trained) == set(shared)
    for name, array in trained.items():
        assert not np.array_equal(array, shared[name])
        np.testing.assert_allclose(array, shared[name] + sums.delta[name] / sums.weight, atol=1e-6)


def test_a_solved_model_is_the_same_centralised_and_local_only_knows_nothing(tmp_path: Path) -> None:
    rows = plan_rows({**SMALL, "model.name": "ease"}, 2, local_rounds=3)
    found = compare(rows, tmp_path).to_json()
    assert {name: found[name]["rounds"] for name in ROWS} == dict.fromkeys(ROWS, 1)
    same = found["differences"][0]
    assert (same["row"], same["minus"]) == ("federated", "centralised")
    for gap in same["metrics"].values():
        assert gap["difference"] == pytest.approx(0, abs=1e-9)
        assert gap["p"] == 1
    assert found["local-only"]["test"]["hr@10"] == 0  # all ties, which count against the target
    assert found["centralised"]["settings"] == {"num-nodes": [2, 1]}


def test_the_local_only_row_is_every_user_alone(made: tuple[Comparison, Any]) -> None:
    row = plan_rows(SMALL, 2, ["local-only"], local_rounds=1)[0]
    everybody, catalog = node_data.cohort(row.config.data, None, 1), node_data.catalog(row.config.data)
    config = row.config.model_copy(update={"seed": 1})
    alone = finalise(local_only_sums(config, catalog, everybody, "test", 100))
    summary = made[0].rows["local-only"]["by_seed"][1]
    assert summary["rounds"] == summary["best_round"] == 1
    assert summary["num_nodes"] == 40
    assert {k: v for k, v in summary["test"].items() if "@10" in k} == {
        k: v for k, v in {**alone, "popularity@10": summary["test"]["popularity@10"]}.items()
        if "@10" in k and not k.startswith("sampled/")
    }  # fmt: skip
    assert summary["test"]["ci"]["ndcg@10"] == alone["ci"]["ndcg@10"]
    users = [seen[2:] for seen in made[1] if seen[:2] == ("local-only", 1)]
    assert users[-1] == (40, 40, "users")
    assert len(users) == 40


def test_alone_a_user_takes_the_scheduled_step_of_any_strategy_of_ours() -> None:
    def sums(**settings: Any) -> list[float]:
        row = plan_rows({**SMALL, "strategy.name": "fedavg", **settings}, 3, ["local-only"], local_rounds=1)[0]
        catalog, everybody = node_data.catalog(row.config.data), node_data.cohort(row.config.data, None, 1)
        return local_only_sums(row.config, catalog, everybody, "test").sums[0].tolist()

    plain = sums()
    assert sums(**{"strategy.name": "krum"}) == plain  # one user has nobody to choose from
    assert sums(**{"strategy.schedule": '{"name": "constant", "warmup_rounds": 1000}'}) != plain


# Several seeds -------------------------------------------------------------------------------------------------------


def test_what_one_seed_alone_dropped_is_told(made: tuple[Comparison, Any]) -> None:
    one, other = ({"dropped_updates": dropped} for dropped in ({"late": 2, "odd": 1}, {"odd": 3}))
    assert _dropped([one, other]) == {"late": 1.0, "odd": 2.0}
    rows = {"federated": {**made[0].rows["federated"], "by_seed": [{"remarks": ["a"]}, {"remarks": ["b", "a"]}]}}
    found = remarks(Comparison(made[0].folder, made[0].about, rows))
    assert found == ["federated: a", "federated: b"]


def test_a_summary_over_seeds_is_a_mean_with_the_range(made: tuple[Comparison, Any]) -> None:
    row = made[0].rows["federated"]
    values = [one["test"]["ndcg@10"] for one in row["by_seed"]]
    assert values[0] != values[1]
    assert row["test"]["ndcg@10"] == pytest.approx(sum(values) / 2)
    assert row["range"]["test"]["ndcg@10"] == pytest.approx([min(values), max(values)])
    assert row["bytes_up"] == sum(one["bytes_up"] for one in row["by_seed"]) / 2
    assert row["rounds"] == 2
    assert not {"seed", "lineage", "run"} & set(row)
    assert {Path(one["run"]).parents[1].name for one in row["by_seed"]} == {"federated"}


def test_draws_are_averaged_over_seeds_before_an_interval_is_taken() -> None:
    draws = ([0.0, 0.5, 1.0, 0.5], [1.0, 0.5, 0.0, 0.5])  # what one seed gains in a draw, the other loses
    judged = [
        Judged({"seed": n, "test": {"ndcg@10": 0.5}, "sampled": {}, "stopped_early": bool(n)}, replicates(mine, 0.5))
        for n, mine in enumerate(draws)
    ]
    found = summary_over_seeds(judged)
    assert found["test"] == {"ndcg@10": 0.5, "ci": {"ndcg@10": [0.5, 0.5]}}
    assert "stopped_early" not in found  # a truth has no mean
    other = [Judged({}, replicates([0.25] * 4, 0.25)), Judged({}, replicates([0.25] * 4, 0.125))]
    (pair,) = paired_differences({"a": judged, "b": other}, "ndcg@10")
    assert pair["metrics"]["ndcg@10"]["ci"] == [0.25, 0.25]
    assert pair["metrics"]["ndcg@10"]["seeds"] == [0.25, 0.375]


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flat", "asked", "message"),
    [
        ({}, {"names": ["local"]}, r"unknown row 'local'.*did you mean 'local-only'"),
        ({}, {"names": []}, "at least one of them"),
        ({}, {"names": ["popularity", "popularity"]}, "once"),
        ({"evaluate.bootstrap": 0}, {}, r"evaluate.bootstrap is 0.*2000 when it is left out"),
        ({"train.unit": "node"}, {"num_nodes": 1}, "nothing is federated"),
        ({"model.name": "ease"}, {"num_nodes": 1}, "nothing is federated"),
        ({"strategy.min-nodes": 3}, {}, "strategy.min-nodes is 3: there are 2 nodes"),
        ({}, {"centralised": {"data.seed": 1}}, r"--centralised sets data.seed.*comparable"),
        ({}, {"centralised": {"strategy.name": "fedadam"}}, "--centralised sets strategy.name"),
        ({}, {"centralised": {"train.unit": "user"}}, "--centralised sets train.unit"),
        ({}, {"centralised": {"train.learning_rate": 1.0}}, r"unknown setting.*did you mean 'train.learning-rate'"),
        ({"model.name": "ease"}, {"centralised": {"train.learning-rate": 1.0}}, "is solved, not trained"),
        ({}, {"names": ["federated"], "centralised": {"train.learning-rate": 1.0}}, "add centralised to --rows"),
        ({}, {"names": ["federated"], "local_rounds": 1}, "add local-only to --rows"),
        ({"strategy.name": "flwr.serverapp.strategy:FedAvg"}, {}, "local-only training needs a strategy of ours"),
        ({"model.init-from": "a.safetensors"}, {}, "model.init-from is set: a user alone starts from nothing"),
        (PRIVATE, {}, r'rows are compared user by user.*set privacy.metrics="exact"'),
    ],
)
def test_what_makes_no_sense_is_refused(flat: dict[str, Any], asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_rows(flat, **{"num_nodes": 2, **asked})


def test_what_privacy_costs_shows_beside_rows_that_have_none() -> None:
    rows = plan_rows({**PRIVATE, "privacy.metrics": "exact"}, 2)
    assert [row.config.privacy.unit for row in rows] == ["user", "none", "none", "none"]
    federated, centralised = rows[0].config, rows[1].config
    assert (federated.strategy.name, federated.model.embedding_dim) == ("dp-fedavg", 24)
    assert centralised.model.embedding_dim == 32
    assert rows[1].differs["privacy.unit"] == ["user", "none"]


def test_there_are_enough_draws_for_a_p_value_unless_the_settings_say_otherwise() -> None:
    assert {row.config.evaluate.bootstrap for row in plan_rows({}, 2)} == {DRAWS} == {2000}
    assert {row.config.evaluate.bootstrap for row in plan_rows({"evaluate.bootstrap": 300}, 2)} == {300}


def test_users_alone_take_ten_rounds_at_most_unless_told(made: tuple[Comparison, Any]) -> None:
    def rounds(of_run: int, asked: int | None = None) -> int:
        row = plan_rows({"num-server-rounds": of_run}, 2, ["local-only"], local_rounds=asked)[0]
        return row.config.num_server_rounds

    assert (rounds(4), rounds(100), rounds(100, 12)) == (4, 10, 12)


def test_a_row_that_some_node_did_not_judge_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedrec_app import client

    judge = client.RecommenderClient.judge

    def fail_once(self: Any, parameters: Any, config: Any) -> MetricSums:
        if config.get("part") == "test" and self.node.partition_id == 1:
            raise FedrecError("out of order")
        return judge(self, parameters, config)

    monkeypatch.setattr(client.RecommenderClient, "judge", fail_once)
    (row,) = plan_rows({**SMALL, "num-server-rounds": 1}, 2, ["federated"])
    with pytest.raises(FedrecError, match="federated: 1 of 2 nodes could not judge"):
        run_row(row, 0, tmp_path, lambda done, total, text: None)


# What is written -----------------------------------------------------------------------------------------------------


def test_a_comparison_that_breaks_off_keeps_the_rows_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_rows, "local_only_sums", stop)
    with pytest.raises(KeyboardInterrupt):
        compare(plan_rows({**SMALL, "model.name": "ease"}, 2), tmp_path)
    found = json.loads((tmp_path / COMPARISON).read_text())
    assert found["about"]["status"] == "failed"
    assert found["about"]["error"] == "KeyboardInterrupt"
    assert list(found) == ["about", "federated", "centralised", "differences"]


def test_the_page_shows_rows_differences_and_settings(made: tuple[Comparison, Any]) -> None:
    comparison = made[0]
    text = write_comparison(comparison).read_text()
    row, pair = comparison.rows["federated"], comparison.differences[0]["metrics"]["ndcg@10"]
    assert f"| ndcg@10 | {row['test']['ndcg@10']:.4f} ({row['test']['ci']['ndcg@10'][0]:.3f}" in text
    assert f"| federated minus centralised | ndcg@10 | {pair['difference']:+.4f} | {pair['ci'][0]:+.4f} to" in text
    assert "| best round | " + ", ".join(str(one["best_round"]) for one in row["by_seed"]) in text
    assert "- centralised: num-nodes = 1 (not 2), train.unit = node (not user)" in text
    assert "mean of seeds 0, 1" in text
    assert (comparison.folder / "compare.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((comparison.folder / COMPARISON).read_text())["about"]["status"] == "completed"


def test_without_matplotlib_the_page_says_so(made: tuple[Comparison, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = write_comparison(made[0]).read_text()
    assert "No picture: matplotlib is not installed (`pip install 'fedrec[report]'`)." in text
    assert "compare.png" not in text


def test_the_last_line_of_the_command_is_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = f"data.options='{DATA}' num-server-rounds=1 evaluate.bootstrap=50"
    arguments = ["fedrec", "compare", "-c", settings, "--rows", "popularity,federated", "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    found = json.loads(line)
    assert list(found) == ["federated", "popularity", "differences"]
    (folder,) = (tmp_path / "outputs").glob("*-*-*/*")
    assert {path.name for path in folder.iterdir()} == {"compare.json", "compare.md", "compare.png", "runs"}
    assert {k: v for k, v in json.loads((folder / COMPARISON).read_text()).items() if k != "about"} == found
    for shown in (
        "popularity differs from the federated row in: num-nodes = 1",
        "paired differences",
        str(folder.name),
    ):
        assert shown in captured.err
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(folder)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert "holds a comparison already" in capsys.readouterr().err.replace("\n", " ")


def test_nothing_of_a_single_user_leaves_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[set[tuple[int, ...]]] = []
    simulate = compare_rows.simulate

    def tapped(*arguments: Any, taps: list[Any], **named: Any) -> Any:
        def look(message: Any) -> None:
            record = message.content.array_records.get(ARRAYS) if message.has_content() else None
            if record is not None and "eval/sums" in record:
                shapes.append({tuple(array.shape) for array in record.values()})

        return simulate(*arguments, taps=[*taps, look], **named)

    monkeypatch.setattr(compare_rows, "simulate", tapped)
    (row,) = plan_rows({**SMALL, "num-server-rounds": 1}, 2, ["federated"])
    run_row(row, 0, tmp_path, lambda done, total, text: None)
    assert len(shapes) == 4  # two nodes: validation, test
    assert not any(20 in shape for of_message in shapes for shape in of_message)  # users of a node
