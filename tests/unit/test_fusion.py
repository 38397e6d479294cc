"""Fused parameters: planted rotations are undone, choices are made on validation, and the result is a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from fedrec_app import cli, fusion
from fedrec_app.artifacts import RunFolder
from fedrec_app.cli_fusion import best_alone
from fedrec_app.errors import FedrecError
from fedrec_app.finished import FinishedRun
from fedrec_app.fusion import fuse, interpolate, procrustes
from fedrec_app.recommend import recommend
from fedrec_app.report import write_report
from fedrec_app.run_weights import Choice
from tests.small import run_folder

RUNNER = CliRunner()


def simulated(output_dir: Path, num_nodes: int = 3, **settings: Any) -> FinishedRun:
    own = {"num_server_rounds": 4, "evaluate__bootstrap": 10}
    return FinishedRun.read(run_folder(output_dir, num_nodes, **{**own, **settings}))


@pytest.fixture(scope="module")
def mf(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return simulated(tmp_path_factory.mktemp("mf"))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The same start, other users in each round, other nodes."""
    return simulated(tmp_path_factory.mktemp("half"), 2, train__user_fraction=0.5)


def neumf(output_dir: Path, **settings: Any) -> FinishedRun:
    return simulated(output_dir, model__name="neumf", model__embedding_dim=4, num_server_rounds=2, **settings)


def changed(run: FinishedRun, tmp_path: Path, change: Callable[[NDArray], NDArray]) -> FinishedRun:
    """The run in another folder, its item table changed."""
    path = tmp_path / "date" / "changed"
    shutil.copytree(run.folder.path, path)
    folder = RunFolder(path)
    folder.write_model({"item_embedding": change(run.shared["item_embedding"])}, run.made, run.popularity)
    return FinishedRun.read(folder)


def rotation(d: int) -> NDArray[np.float64]:
    return np.linalg.qr(np.random.default_rng(7).normal(size=(d, d)))[0]


def test_procrustes_recovers_a_planted_rotation_and_a_planted_reflection() -> None:
    table = np.random.default_rng(3).normal(size=(40, 5))
    turn = rotation(5)
    mirror = turn @ np.diag([1.0, 1, 1, 1, -1])
    for planted in (turn, mirror):
        found = procrustes(table, table @ planted)
        np.testing.assert_allclose(found, planted, atol=1e-12)
        np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-12)


def test_procrustes_beats_every_other_rotation_of_two_dimensions() -> None:
    generator = np.random.default_rng(5)
    table, onto = generator.normal(size=(2, 30, 2))
    best = np.linalg.norm(table @ procrustes(table, onto) - onto)
    angles = np.linspace(0, 2 * np.pi, 1000)
    for flip in (1.0, -1.0):
        turns = np.array([[[np.cos(a), -np.sin(a)], [flip * np.sin(a), flip * np.cos(a)]] for a in angles])
        assert best <= min(np.linalg.norm(table @ turn - onto) for turn in turns) + 1e-9


def test_interpolation_is_the_weighted_mean_of_every_array() -> None:
    one = {"a": np.array([1.0, 2.0], dtype=np.float32), "b": np.array([[4.0]], dtype=np.float32)}
    other = {"a": np.array([3.0, -2.0], dtype=np.float32), "b": np.array([[0.0]], dtype=np.float32)}
    found = interpolate([one, other], np.array([0.25, 0.75]))
    assert {name: array.tolist() for name, array in found.items()} == {"a": [2.5, -1.0], "b": [[1.0]]}
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}


def test_a_rotated_copy_fuses_to_the_run_itself(mf: FinishedRun, tmp_path: Path) -> None:
    d = mf.shared["item_embedding"].shape[1]
    copy = changed(mf, tmp_path, lambda table: (table @ rotation(d)).astype(np.float32))
    result = fuse([mf, copy], tmp_path)
    judged = {each["weighting"]: each["validation"] for each in result.summary["fusion"]["candidates"]}
    alone = mf.validation("ndcg@10")
    assert judged == pytest.approx({"by score": alone, "uniform": alone, "greedy": alone}, abs=1e-3)
    parents, rotated = fusion._in_one_space([mf, copy], mf, "auto")
    assert rotated
    np.testing.assert_allclose(parents[1]["item_embedding"], mf.shared["item_embedding"], atol=1e-6)
    parents, rotated = fusion._in_one_space([mf, copy], mf, "none")
    assert not rotated
    assert np.abs(parents[1]["item_embedding"] - mf.shared["item_embedding"]).max() > 0.01


def test_a_run_and_its_mirror_image_are_nothing_unless_they_are_aligned(mf: FinishedRun, tmp_path: Path) -> None:
    copy = changed(mf, tmp_path, lambda table: -table)
    alone = mf.validation("ndcg@10")
    for align, expected in (("auto", alone), ("none", 0.0)):
        found = fuse([mf, copy], tmp_path, align=align).summary["fusion"]
        judged = {each["weighting"]: each["validation"] for each in found["candidates"]}
        assert judged["uniform"] == pytest.approx(expected, abs=1e-3)
        assert judged["greedy"] == pytest.approx(alone, abs=1e-3)
        assert found["aligned"] is (align == "auto")


def test_a_fused_run_is_a_run(mf: FinishedRun, half: FinishedRun, tmp_path: Path) -> None:
    result = fuse([half, mf], tmp_path)
    folder, summary = result.folder, result.summary
    assert folder.path.parent.parent == tmp_path
    assert json.loads((folder.path / "summary.json").read_text())["fusion"]["weights"] == summary["fusion"]["weights"]
    assert (summary["status"], summary["strategy"], summary["rounds"]) == ("completed", "fusion", 0)
    chosen = summary["fusion"]
    assert summary["validation"]["ndcg@10"] == max(each["validation"] for each in chosen["candidates"])
    assert [each["run"] for each in chosen["parents"]] == [half.name, mf.name]
    assert [each["test"] for each in chosen["parents"]] == [run.summary()["test"] for run in (half, mf)]
    assert [each["weight"] for each in chosen["parents"]] == chosen["weights"]
    assert set(summary["test"]["ci"]) >= {"hr@10", "ndcg@10"}
    assert summary["test"]["num_users"] == 40
    fused = FinishedRun.read(folder)
    best, other = (mf, half) if mf.validation("ndcg@10") >= half.validation("ndcg@10") else (half, mf)
    turn = procrustes(other.shared["item_embedding"], best.shared["item_embedding"])
    weight = dict(zip((half.name, mf.name), chosen["weights"], strict=True))
    expected = weight[best.name] * best.shared["item_embedding"] + weight[other.name] * (
        other.shared["item_embedding"] @ turn
    )
    np.testing.assert_allclose(fused.shared["item_embedding"], expected, atol=1e-6)
    np.testing.assert_array_equal(fused.popularity, mf.popularity)
    assert "mf by fusion on synthetic" in write_report(folder).read_text()
    assert recommend(folder, "u07", [], 3)["method"] == "private rows"
    assert fuse([FinishedRun.read(folder), mf], tmp_path).summary["status"] == "completed"


def test_the_best_run_alone_keeps_its_figures_to_the_last_bit(
    mf: FinishedRun, half: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fused model is judged as a run is: by the same nodes, with the same draws."""
    best, other = sorted((mf, half), key=lambda run: -run.validation("ndcg@10"))
    monkeypatch.setattr(fusion, "choices", lambda *given: [Choice("greedy", np.array([1.0, 0.0]), 0.0)])
    summary = fuse([best, other], tmp_path).summary
    for part in ("validation", "validation_sampled", "test", "sampled"):
        assert summary[part] == best.summary()[part]


def test_test_is_read_once_and_last(
    mf: FinishedRun, half: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []
    metrics = fusion._Nodes.metrics

    def spy(self: Any, shared: Any, part: str) -> Any:
        parts.append(part)
        return metrics(self, shared, part)

    monkeypatch.setattr(fusion._Nodes, "metrics", spy)
    fuse([mf, half], tmp_path)
    assert parts.count("test") == 1
    assert parts[-1] == "test"


def test_private_rows_that_are_stored_are_folded_in_anew(tmp_path: Path) -> None:
    runs = [neumf(tmp_path), neumf(tmp_path, train__user_fraction=0.5)]
    result = fuse(runs, tmp_path)
    fused = FinishedRun.read(result.folder)
    assert fused.config.evaluate.fold_in_epochs == 50
    assert runs[0].config.evaluate.fold_in_epochs == 5
    assert not result.summary["fusion"]["aligned"]
    assert set(fused.shared) == set(runs[0].shared), "shared parameters alone"
    found = recommend(result.folder, "u07", [], 3)
    assert found["method"] == "fold-in"


def test_other_models_from_other_starts_are_refused_with_what_to_do(tmp_path: Path) -> None:
    runs = [neumf(tmp_path), neumf(tmp_path, seed=1)]
    with pytest.raises(FedrecError, match=r"different seeds \(0, 1\), and parameters of 'neumf' .* `fedrec ensemble`"):
        fuse(runs, tmp_path)
    assert fuse(runs, tmp_path, align="none").summary["status"] == "completed"


def test_runs_that_do_not_fit_together_are_refused(mf: FinishedRun, tmp_path: Path) -> None:
    def short(**settings: Any) -> FinishedRun:
        return simulated(tmp_path, num_server_rounds=1, **settings)

    with pytest.raises(FedrecError, match="1 run: a fusion needs at least two"):
        fuse([mf], tmp_path)
    with pytest.raises(FedrecError, match="unknown align 'non': one of auto, none"):
        fuse([mf, mf], tmp_path, align="non")
    with pytest.raises(FedrecError, match="temperature is 0: a number above 0"):
        fuse([mf, mf], tmp_path, temperature=0)
    with pytest.raises(FedrecError, match=r"differ in model\.embedding-dim \(32 and 8\), model-hash"):
        fuse([mf, short(model__embedding_dim=8)], tmp_path)
    with pytest.raises(FedrecError, match=r"differ in model\.options .*'regularization': 0.5"):
        fuse([mf, short(model__options='{"regularization": 0.5}')], tmp_path)
    with pytest.raises(FedrecError, match=r"differ in data\.min-interactions \(5 and 7\)"):
        fuse([mf, short(data__min_interactions=7)], tmp_path)
    with pytest.raises(FedrecError, match=r"differ in evaluate\.metric \('ndcg@10' and 'hr@5'\)"):
        fuse([mf, short(evaluate__metric="hr@5")], tmp_path)
    with pytest.raises(FedrecError, match=r"differ in model\.name \('mf' and 'neumf'\)"):
        fuse([mf, neumf(tmp_path)], tmp_path)


def test_a_run_of_a_leaky_protocol_says_so_after_fusion(tmp_path: Path) -> None:
    runs = [simulated(tmp_path, num_server_rounds=1, data__protocol="leaky-pfedrec", seed=seed) for seed in (0, 1)]
    assert "leaky protocol" in fuse(runs, tmp_path).summary["warning"]


def test_the_commands_print_a_comparison_and_json(mf: FinishedRun, half: FinishedRun, tmp_path: Path) -> None:
    both = ["--run", mf.name, "--run", half.name, "--json"]
    done = RUNNER.invoke(cli.commands, ["fuse", *both, "--out-dir", str(tmp_path), "--temperature", "0.01"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["run"]).is_relative_to(tmp_path)
    assert (Path(found["run"]) / "report.md").is_file()
    done = RUNNER.invoke(cli.commands, ["ensemble", *both, "--fusion", "rank", "--weights", "0.6,0.4"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["weights"] == [0.6, 0.4]
    done = RUNNER.invoke(cli.commands, ["recommend", *both, "--user", "u07", "-k", "3", "--fusion", "score"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["method"] == "score fusion"
    with pytest.raises(FedrecError, match=r"weights are '0.6;0.4': numbers such as 0.6,0.4"):
        RUNNER.invoke(cli.commands, ["ensemble", *both, "--weights", "0.6;0.4"], catch_exceptions=False)


def test_a_run_that_is_given_twice_is_refused(mf: FinishedRun, half: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(mf.folder.path)
    for again in (mf.name, f"{mf.name}/../{mf.folder.path.name}", str(tmp_path / "link")):
        for command in ("fuse", "ensemble"):
            with pytest.raises(FedrecError, match="is given twice: each run once"):
                RUNNER.invoke(
                    cli.commands, [command, "--run", mf.name, "--run", half.name, "--run", again],
                    catch_exceptions=False,
                )  # fmt: skip


def test_the_commands_say_when_one_run_alone_is_best(mf: FinishedRun, tmp_path: Path) -> None:
    noise = changed(mf, tmp_path, lambda table: np.random.default_rng(0).normal(size=table.shape).astype(table.dtype))
    runs = ["--run", noise.name, "--run", mf.name]
    sentence = f"one run alone is best: {mf.name}; no weighting with others does better by ndcg@10 on validation\n"
    scores = tmp_path / "date" / "changed" / "summary.json"
    told = json.loads(scores.read_text())
    scores.write_text(json.dumps({**told, "validation": {**told["validation"], "ndcg@10": 0.0}}))
    for command in (["fuse", "--align", "none", "--out-dir", str(tmp_path)], ["ensemble", "--fusion", "rank"]):
        done = RUNNER.invoke(cli.commands, [*command, *runs])
        assert done.exit_code == 0, done.output
        assert sentence in done.stderr
    done = RUNNER.invoke(cli.commands, ["ensemble", *runs, "--fusion", "rank", "--weights", "0,1"])
    assert "one run alone is at least as good" in done.stderr, "nothing was chosen"
    lines = [{"run": "a", "weight": 0.5, "validation": 0.4}, {"run": "b", "weight": 0.5, "validation": 0.3}]
    assert best_alone("hr@5", lines, 0.39, True) == (
        "one run alone is at least as good: a has hr@5 0.4000 on validation, together they have 0.3900"
    )
    assert best_alone("hr@5", lines, 0.41, True) == ""
