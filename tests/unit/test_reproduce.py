"""The script behind docs/results.md: it knows every strategy, writes its own section alone, and its table is right."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from strategies.registry import BUILT_IN
from tests.conftest import REPO

TINY = {"data.name": "synthetic", "data.options": '{"num_users": 40}'}
PAGE = "# Results\n\nabove\n\n<!-- a -->\nold\n<!-- /a -->\n\nbetween\n\n<!-- b -->\nkept\n<!-- /b -->\n"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of the experiments."""
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    import reproduce
    from experiments import attacks, large, page, privacy, runs, sequences, strategies

    return SimpleNamespace(
        reproduce=reproduce, page=page, runs=runs, table=strategies, sequences=sequences, large=large,
        privacy=privacy, attacks=attacks,
    )  # fmt: skip


def finished(scripts: SimpleNamespace, values: Mapping[int, float], **summary: Any) -> Any:
    return scripts.runs.Finished(summary, list(values.items()), [])


# Sections ----------------------------------------------------------------------------------------------------------


def test_a_section_is_replaced_and_nothing_else(scripts: SimpleNamespace) -> None:
    assert scripts.page.with_section(PAGE, "a", "new\n") == PAGE.replace("old", "new")
    assert scripts.page.with_section(PAGE, "b", "new") == PAGE.replace("kept", "new")


def test_a_section_that_is_not_there_is_added_at_the_end(scripts: SimpleNamespace) -> None:
    assert scripts.page.with_section(PAGE, "c", "new") == PAGE + "\n<!-- c -->\nnew\n<!-- /c -->\n"
    assert scripts.page.with_section("", "c", "new").startswith("# Results\n")


@pytest.mark.parametrize(
    "broken",
    [
        PAGE.replace("<!-- /a -->", ""),
        PAGE.replace("<!-- a -->", ""),
        PAGE + "<!-- a -->\n<!-- /a -->\n",
        "<!-- /a --> turned <!-- a -->",
    ],
)
def test_a_page_with_broken_markers_is_refused(scripts: SimpleNamespace, broken: str) -> None:
    with pytest.raises(ValueError, match="section 'a'"):
        scripts.page.with_section(broken, "a", "new")


# Rows --------------------------------------------------------------------------------------------------------------


def test_the_table_has_every_built_in_strategy(scripts: SimpleNamespace) -> None:
    # dp-fedavg has a page of its own.
    assert {row.strategy for row in scripts.table.STRATEGIES.values()} == set(BUILT_IN) - {"dp-fedavg"}


def test_the_options_of_every_row_are_a_point_of_its_grid(scripts: SimpleNamespace) -> None:
    for name, row in scripts.table.STRATEGIES.items():
        points = [_read(point.flat()) for _, point in row.points()]
        assert len(points) > 1, name
        assert _read(row.flat()) in points, name


def test_the_page_shows_the_rows_as_they_are(scripts: SimpleNamespace) -> None:
    page = (REPO / "docs" / "results.md").read_text(encoding="utf-8")
    for name, row in scripts.table.STRATEGIES.items():
        assert f"| {name} | {scripts.table.options_in_short(row)} |" in page, name


def test_rows_differ_in_their_strategy_alone_but_for_pooled_nodes(scripts: SimpleNamespace) -> None:
    for name, row in scripts.table.STRATEGIES.items():
        allowed = {"train.learning-rate"} | (set(scripts.table.POOLED) if "pooled nodes" in name else set())
        assert set(row.settings) <= allowed, name


def _read(flat: dict[str, Any]) -> dict[str, Any]:
    return {**flat, "strategy.options": json.loads(flat["strategy.options"])}


# Runs --------------------------------------------------------------------------------------------------------------


def test_rounds_are_counted_to_the_first_that_reaches_a_value(scripts: SimpleNamespace) -> None:
    run = finished(scripts, {5: 0.1, 10: 0.3, 15: 0.2, 20: 0.3})
    assert run.best == 0.3
    assert [run.first_round(value) for value in (0.05, 0.2, 0.3, 0.31)] == [5, 10, 10, None]


def test_tuning_looks_at_validation_alone(scripts: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[dict[str, Any]] = []

    def run(flat: dict[str, Any]) -> Any:
        asked.append(flat)
        return finished(scripts, {5: 0.125, 10: 0.25})  # whose summary, the test in it, is empty

    scripts.table.tune(SimpleNamespace(run=run), "qfedavg")
    assert capsys.readouterr().out.splitlines() == [
        f"qfedavg {label}: 0.2500 in round 10" for label, _ in scripts.table.STRATEGIES["qfedavg"].points()
    ]
    assert asked == [point.flat() for _, point in scripts.table.STRATEGIES["qfedavg"].points()]


def test_a_small_table_says_what_its_runs_say(scripts: SimpleNamespace, tmp_path: Path) -> None:
    runs = scripts.runs.Runs(TINY, num_rounds=2, num_nodes=2, keep=tmp_path)
    rows = {name: scripts.table.STRATEGIES[name] for name in ("fedavg", "fedadam")}
    text = scripts.table.strategies(runs, rows=rows)
    base, adam = (runs.run(row.flat()) for row in rows.values())
    head, line = (
        next(line for line in text.splitlines() if line.startswith(f"| {name} |")).strip("| ").split(" | ")
        for name in ("strategy", "fedadam")
    )
    shown = dict(zip(head, line, strict=True))
    gain = adam.summary["test"]["ndcg@10"] - base.summary["test"]["ndcg@10"]
    spread = statistics.stdev(np.subtract(adam.replicates, base.replicates))
    assert shown["validation NDCG@10"] == f"{max(v for _, v in adam.validation):.4f}".lstrip("0")
    assert shown["test NDCG@10"] == f"{adam.summary['test']['ndcg@10']:.4f}".lstrip("0")
    assert shown["test minus `fedavg`"] == f"{gain:+.4f} ± " + f"{spread:.4f}".lstrip("0")
    assert shown["test HR@10"] == f"{adam.summary['test']['hr@10']:.3f}".lstrip("0")
    assert shown["best round"] == str(adam.summary["best_round"])
    reached = [at for at, value in adam.validation if value >= base.best]
    assert shown["rounds to `fedavg`'s best"] == (str(reached[0]) if reached else "never")
    assert [at for at, _ in adam.validation] == [1, 2]


def test_over_seeds_the_fastest_is_counted_to_the_best_of_the_baseline_and_so_is_the_mean(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts.table, "SEEDS", (0, 1))
    curves = {
        ("fedavg", 0): [0.25, 0.125, 0.5], ("fedavg", 1): [0.25, 0.625, 0.25],
        ("fednova", 0): [0.125, 0.5, 0.25], ("fednova", 1): [0.375, 0.5, 0.0],
    }  # fmt: skip

    def run(flat: dict[str, Any]) -> Any:
        return finished(scripts, dict(enumerate(curves[flat["strategy.name"], flat["seed"]], 1)))

    lines = scripts.table._over_seeds(SimpleNamespace(run=run), scripts.table.STRATEGIES)
    assert [line for line in lines if line.startswith(("| 0", "| 1", "| mean"))] == [
        "| 0 | .5000 | 3 | 2 |",
        "| 1 | .6250 | 2 | never |",
        "| mean | .3750 | 2 | 2 |",
    ]


def test_bootstrap_draws_are_those_behind_the_interval(scripts: SimpleNamespace) -> None:
    run = scripts.runs.Runs(TINY, num_rounds=1, num_nodes=2).run({"evaluate.bootstrap": 50})
    assert len(run.replicates) == 50
    assert run.summary["test"]["ci"]["ndcg@10"] == pytest.approx(np.percentile(run.replicates, [2.5, 97.5]).tolist())


def test_a_run_that_is_kept_is_not_made_again(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = scripts.runs.Runs(TINY, num_rounds=1, num_nodes=2, keep=tmp_path / "kept")
    first = runs.run({"seed": 1})

    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(scripts.runs, "simulate", refuse)
    assert runs.run({"seed": 1}) == first
    for other in (runs, scripts.runs.Runs(TINY, num_rounds=2, num_nodes=2, keep=tmp_path / "kept")):
        with pytest.raises(AssertionError, match="made again"):
            other.run({"seed": 2 if other is runs else 1})


def test_eight_nodes_are_compared_with_one_seed_by_seed_and_draw_by_draw(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: Any, settings: Mapping[str, Any]) -> Any:
        value = 0.1 * (1 + settings["seed"]) + (0.1 if self.num_nodes == 1 else 0.0)
        parts = {part: {"hr@10": value, "ndcg@10": value / 2} for part in ("test", "sampled")}
        summary = {**parts, "best_round": 4, "rounds": 10, "bytes_up": 25_000_000}
        return scripts.runs.Finished(summary, [(2, 0.25), (4, 0.5)], [value + draw / 100 for draw in range(40)])

    monkeypatch.setattr(scripts.runs.Runs, "run", run)
    text = scripts.sequences.sequences(scripts.runs.Runs(TINY))
    cells = "| .500 (.500 to .500) | .200 (.100 to .300) | .100 (.050 to .150) | .200 (.100 to .300) "
    assert f"| `sasrec`, 8 nodes {cells}| .100 (.050 to .150) | 4, 4, 4 | 2.5 |" in text
    assert "Federated has 66.7% of hr@10, full; 66.7% of ndcg@10, full; 66.7% of hr@10, 99 negatives; 66.7%" in text
    assert "Paired difference of NDCG@10, full ranking: -0.0500 (-0.1000 to -0.1000)" in text


def test_adapters_are_compared_with_the_plain_bytes(scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**scripts.large.SETTINGS, "model.embedding-dim": 32, "model.options": '{"layers": 1}'}
    monkeypatch.setattr(scripts.large, "SETTINGS", settings)
    monkeypatch.setattr(scripts.large, "RANKS", (0, 4))
    lines = scripts.large.large(scripts.runs.Runs(TINY, num_nodes=2)).splitlines()
    plain, adapted = (line.split(" | ") for line in lines if line.startswith(("| none", "| 4")))
    assert plain[-1] == "100.0% |"
    assert 5 < float(adapted[-1].removesuffix("% |")) < 50


def test_what_privacy_costs_is_a_share_of_the_best_row_without_it(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = {None: 0.08, 1e-9: 0.1, 8.0: 0.09, 2.0: 0.05}  # by target or noise

    def run(self: Any, settings: Mapping[str, Any]) -> Any:
        key = settings.get("privacy.target-epsilon", settings.get("privacy.noise-multiplier"))
        private = {"privacy": {"noise_multiplier": 1.5}} if "privacy.unit" in settings else {}
        value = 0.02 if settings.get("model.name") == "popularity" else values[key] + 0.001 * settings.get("seed", 0)
        test = {"ndcg@10": value, "hr@10": 2 * value}
        return finished(scripts, {1: value}, test=test, sampled={"ndcg@10": 3 * value}, **private)

    monkeypatch.setattr(scripts.runs.Runs, "run", run)
    monkeypatch.setattr(scripts.privacy, "EPSILONS", (2.0, 8.0))
    text = scripts.privacy.privacy(scripts.runs.Runs(TINY), "ML-100K", tmp_path / "curves.png")
    assert "| ML-100K, 943 users | 8 | 1.5 | .091 (.090-.092) | 90.1% | .182 | .273 |" in text
    assert "the private design, next to no noise (none) | 1.5 | .101 (.100-.102) | 100.0% |" in text
    assert "| popularity, not private |  | .020 | 19.8% |" in text
    assert "| synthetic, 6,040 users |" not in text
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_attacks_are_a_row_a_model_and_claims_a_row_a_run(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts.attacks, "RELEASES", 40)
    monkeypatch.setattr(scripts.attacks, "USERS", 5)
    monkeypatch.setattr(scripts.attacks, "ROWS", {"`mf`": {}})
    claims = {"one round": {**scripts.attacks.PRIVATE, "num-server-rounds": 1, "privacy.target-epsilon": 4.0}}
    monkeypatch.setattr(scripts.attacks, "CLAIMS", claims)
    data = {
        **TINY,
        "data.options": '{"num_users": 120, "num_items": 80, "mean_interactions": 20, "min_interactions": 8}',
    }
    lines = scripts.attacks.attacks(scripts.runs.Runs(data)).splitlines()
    (row,) = [line.split(" | ") for line in lines if line.startswith("| `mf`")]
    assert row[1] == "1.000"  # one user's update gives him away
    assert len(row) == 1 + 4 + 2
    (claim,) = [line.split(" | ") for line in lines if line.startswith("| one round")]
    assert claim[1] == "4.00"
    assert float(claim[2]) <= 4.0


def test_the_command_replaces_its_section(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def section(runs: Any, only: str) -> str:
        seen.append((runs.data["data.path"], runs.num_rounds, runs.keep, only))
        return "made"

    monkeypatch.setitem(scripts.reproduce.SECTIONS, "strategies", section)
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    scripts.reproduce.main(
        ["strategies", "--data-dir", str(tmp_path), "--rounds", "3", "--only", "fed", "--out", str(page)]
    )
    assert seen == [(str(tmp_path / "ml-100k"), 3, None, "fed")]
    assert page.read_text() == PAGE + "\n<!-- strategies -->\nmade\n<!-- /strategies -->\n"
    assert capsys.readouterr().out == "made\n"
