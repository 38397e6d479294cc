"""What a run leaves behind: its folder, the model file, and a report that people read."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from fedrec_app.artifacts import Made, RunFolder
from fedrec_app.config import RunConfig, parse_overrides
from fedrec_app.errors import ConfigError, FedrecError, StateError
from fedrec_app.report import notices, plot_curves, result_rows, write_report
from fedrec_app.simulate import simulate
from tests.small import SMALL

NOW = datetime(2026, 3, 4, 5, 6, 7)
MADE = Made("abc", 3, "line", "mf", "def")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    flat = {
        "output-dir": str(tmp_path_factory.mktemp("runs")), "num-server-rounds": 4, "data.options": SMALL, "seed": 5,
        "evaluate.every": 2,
    }  # fmt: skip
    return simulate(flat, 3).folder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, NOW)


def copy_of(run: RunFolder, target: Path, **changed: Any) -> RunFolder:
    """A copy of the run's texts, with another summary."""
    target.mkdir()
    for name in ("config.toml", "metrics.jsonl"):
        (target / name).write_bytes((run.path / name).read_bytes())
    copy = RunFolder(target)
    copy.write_summary({**run.read_summary(), **changed})
    return copy


# The folder ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_named_by_date_and_time_and_never_used_twice(tmp_path: Path) -> None:
    paths = [RunFolder.create(tmp_path / "new", NOW).path for _ in range(3)]
    assert paths == [tmp_path / "new" / "2026-03-04" / name for name in ("05-06-07", "05-06-07-2", "05-06-07-3")]
    assert all(path.is_dir() for path in paths)


def test_an_output_dir_that_is_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StateError, match=f"cannot write runs to output-dir {file}"):
        RunFolder.create(file, NOW)


def test_the_settings_of_a_run_can_be_given_back_with_c(folder: RunFolder) -> None:
    config = RunConfig.from_flat({"seed": 3, "data.options": '{"num_users": 5}'})
    folder.write_config(config, 17)
    assert folder.read_config() == config.flat()
    assert parse_overrides([str(folder.path / "config.toml")]) == config.flat()
    assert (folder.path / "config.toml").read_text().startswith("# run-id 17\n")


def test_a_folder_with_an_equals_sign_in_its_name_can_be_read(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "lr=0.1 x", NOW)
    folder.write_config(RunConfig(), 0)
    assert folder.read_config() == RunConfig().flat()


def test_json_has_no_nan_and_plain_numbers_alone(folder: RunFolder) -> None:
    value = {
        "nan": float("nan"), "inf": [np.float32("inf"), -np.inf], "int": np.int64(3), "float": np.float32(0.5),
        "array": np.array([1.0, np.nan]), 5: ("a", None, True, np.bool_(False)),
    }  # fmt: skip
    expected = {
        "nan": None, "inf": [None, None], "int": 3, "float": 0.5, "array": [1.0, None], "5": ["a", None, True, False],
    }  # fmt: skip
    folder.write_summary(value)
    folder.append_metrics(value)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (folder.path / "summary.json").read_text()
    assert json.loads(text, parse_constant=refuse) == expected
    assert folder.read_summary() == expected
    assert folder.read_metrics() == [expected]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_of_metrics_that_was_cut_short_is_left_out(folder: RunFolder, cut: int) -> None:
    assert folder.read_metrics() == []
    for number in (1, 2, 3):
        folder.append_metrics({"round": number, "name": "é" * 5})
    path = folder.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: -1 - cut])
    assert [record["round"] for record in folder.read_metrics()] == [1, 2]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]"])
def test_a_damaged_summary_is_named(folder: RunFolder, content: bytes) -> None:
    with pytest.raises(StateError, match=r"no summary\.json in .*: is it the folder of a run"):
        folder.read_summary()
    (folder.path / "summary.json").write_bytes(content)
    with pytest.raises(StateError, match=r"summary\.json is damaged"):
        folder.read_summary()


def test_settings_that_are_not_there_are_named(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file .*config\.toml"):
        folder.read_config()


# The model file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("popularity", [None, np.array([3, 0, 2])])
def test_a_model_comes_back_bit_for_bit(folder: RunFolder, popularity: Any) -> None:
    shared = {
        "item_embedding": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32).T,
        "mlp.0.bias": np.array([1e-30], dtype=np.float32),
    }
    folder.write_model(shared, MADE, popularity)
    arrays, made, counts = folder.read_model()
    assert arrays.keys() == shared.keys()
    for name in shared:
        np.testing.assert_array_equal(arrays[name], shared[name])
        assert arrays[name].dtype == np.float32
    assert made == MADE
    assert (counts is None) == (popularity is None)
    if popularity is not None:
        np.testing.assert_array_equal(counts, popularity)


def test_a_model_file_that_is_missing_damaged_or_foreign_is_refused(folder: RunFolder) -> None:
    path = folder.path / "model.safetensors"
    with pytest.raises(StateError, match=r"no model\.safetensors in .*: is it the folder of a run that completed"):
        folder.read_model()
    folder.write_model({"a": np.zeros(3, dtype=np.float32)}, MADE, None)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], b"\x80" + whole[1:], b"PK" + whole):
        path.write_bytes(damaged)
        with pytest.raises(StateError, match=r"model\.safetensors is damaged"):
            folder.read_model()
    save_file({"a": np.zeros(3, dtype=np.float32)}, path, metadata={"format": "pt"})
    with pytest.raises(StateError, match="has format 'pt', 'fedrec-model/1' is expected"):
        folder.read_model()
    path.write_bytes(save({"a": np.zeros(3, dtype=np.float32)}))
    with pytest.raises(StateError, match="has format None"):
        folder.read_model()
    path.write_bytes(save({"a": np.zeros(3)}, metadata={"format": "fedrec-model/1", "round": "1"}))
    with pytest.raises(StateError, match="does not say its catalog-hash, lineage"):
        folder.read_model()
    path.write_bytes(save({"a": np.zeros(3)}, metadata={"format": "fedrec-model/1", **MADE.written(), "round": "two"}))
    with pytest.raises(StateError, match="is of round 'two': a number is expected"):
        folder.read_model()


# A real run ----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_every_artifact(run: RunFolder) -> None:
    names = {"config.toml", "metrics.jsonl", "summary.json", "model.safetensors", "report.md", "curves.png"}
    assert {path.name for path in run.path.iterdir()} == {*names, "checkpoints", "audit.jsonl", "audit.jsonl.lock"}
    assert [record["round"] for record in run.read_metrics()] == [1, 2, 3, 4]
    assert [record["validation"] is not None for record in run.read_metrics()] == [False, True, False, True]
    assert run.read_config()["train.learning-rate"] == 1.0
    assert run.read_summary()["status"] == "completed"


def test_the_report_says_what_was_measured_on_what_and_with_which_settings(run: RunFolder) -> None:
    text = (run.path / "report.md").read_text()
    summary = run.read_summary()
    assert text.startswith("# mf by fedadam on synthetic\n")
    assert f"Test, 40 users, parameters of round {summary['best_round']} (best on validation)." in text
    low, high = summary["test"]["ci"]["ndcg@10"]
    assert f"| ndcg@10 | {summary['test']['ndcg@10']:.4f} | {low:.4f} to {high:.4f} |\n" in text
    assert f"| hr@10 (99 negatives) | {summary['sampled']['hr@10']:.4f} |" in text
    assert f"| coverage@10 | {summary['test']['coverage@10']:.4f} |  |\n" in text
    assert "protocol leave-one-out; unit of training: user; seed 5\n" in text
    assert "- 3 nodes; 4 rounds, " in text
    assert "updates dropped: none; users with nothing held out: 0" in text
    assert "![validation metrics, loss and traffic by round](curves.png)" in text
    assert "```toml\n# run-id 0\n" in text
    assert "\nnum-server-rounds = 4\n" in text


def test_the_curves_are_a_real_picture(run: RunFolder) -> None:
    picture = (run.path / "curves.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(picture) > 10_000
    from matplotlib.image import imread

    pixels = imread(run.path / "curves.png")
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 1000
    colors = np.ascontiguousarray((pixels * 255).astype(np.uint8)).view(np.uint32)
    assert len(np.unique(colors)) > 50


def test_a_report_can_be_written_anew(run: RunFolder, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path / "copy")
    assert write_report(copy) == copy.path / "report.md"
    assert (copy.path / "report.md").read_text() == (run.path / "report.md").read_text()
    assert (copy.path / "curves.png").stat().st_size > 10_000


def test_dropped_updates_and_warnings_are_in_the_report(run: RunFolder, tmp_path: Path) -> None:
    dropped = {"error-reply": 2, "non-finite": 1}
    text = write_report(copy_of(run, tmp_path / "copy", dropped_updates=dropped, warning="LEAKY: no")).read_text()
    assert "updates dropped: 2 error-reply, 1 non-finite;" in text
    assert "\n**LEAKY: no**\n" in text


def test_a_run_that_stopped_early_says_so_and_why(run: RunFolder, tmp_path: Path) -> None:
    assert "stopped early" not in (run.path / "report.md").read_text()
    copy = copy_of(run, tmp_path / "copy", stopped_early=True, rounds=3, best_round=1, seconds_per_round=2.0)
    settings = copy.path / "config.toml"
    settings.write_text(settings.read_text().replace("early-stopping-rounds = 0", "early-stopping-rounds = 2"))
    assert (
        "- 3 nodes; 3 rounds, 2.00 s a round (median); stopped early, after round 3 of 4: no better ndcg@10 on "
        "validation since round 1 (evaluate.early-stopping-rounds = 2)\n"
    ) in write_report(copy).read_text()
    settings.unlink()
    assert "stopped early, after round 3: no better the metric on" in write_report(copy).read_text()


def test_a_fused_run_says_of_which_runs_with_which_weights(run: RunFolder, tmp_path: Path) -> None:
    parents = [
        {"run": "runs/a", "weight": 0.75, "validation": 0.5, "test": {"ndcg@10": 0.25}},
        {"run": "runs/b", "weight": 0.25, "validation": 0.375, "test": {"ndcg@10": None}},
    ]
    fusion = {"metric": "ndcg@10", "weighting": "by score", "aligned": True, "parents": parents}
    folder = copy_of(
        run, tmp_path / "copy", strategy="fusion", rounds=0, best_round=0, fusion=fusion, validation={"ndcg@10": 0.625}
    )
    text = write_report(folder).read_text()
    assert (
        "A fusion of 2 runs: nothing was trained, parameters are the weighted mean of theirs, rotated onto those of "
        "the best run. Weighting: by score, the best on validation by ndcg@10 (0.6250).\n"
    ) in text
    assert "| runs/a | 0.7500 | 0.5000 | 0.2500 |\n| runs/b | 0.2500 | 0.3750 | - |\n" in text
    assert "Test, 40 users, the fused parameters. Full ranking" in text
    assert "- 3 nodes; no rounds: a fusion\n" in text
    assert "best on validation)" not in text


def test_a_run_that_failed_has_no_report_but_a_reason(run: RunFolder, tmp_path: Path) -> None:
    failed = copy_of(run, tmp_path / "copy", status="failed", error="no data")
    with pytest.raises(FedrecError, match="is failed: no data"):
        write_report(failed)
    assert not (failed.path / "report.md").exists()


def test_metrics_at_other_depths_are_shown_and_drawn(tmp_path: Path) -> None:
    flat = {
        "output-dir": str(tmp_path), "num-server-rounds": 1, "data.options": SMALL, "evaluate.ks": "3,7",
        "evaluate.metric": "ndcg@7", "evaluate.bootstrap": 0, "privacy.min-cohort": 100,
    }  # fmt: skip
    folder = simulate(flat, 2).folder
    rows = result_rows(folder.read_summary())
    assert [name for name, _, _ in rows][:4] == ["hr@3", "hr@7", "ndcg@3", "ndcg@7"]
    assert all(interval == "" for _, _, interval in rows)
    assert (folder.path / "curves.png").stat().st_size > 10_000


def test_a_metric_without_a_value_is_a_dash() -> None:
    summary = {"test": {"ndcg@10": None, "ci": {}}, "sampled": {"hr@10": 0.25}}
    assert result_rows(summary) == [("ndcg@10", "-", ""), ("hr@10 (99 negatives)", "0.2500", "")]


def test_rounds_without_losses_or_validation_can_be_drawn(run: RunFolder, tmp_path: Path) -> None:
    silent = {"round": 1, "train": {"skipped": 1}, "validation": None, "bytes_down": 0, "bytes_up": 0}
    gaps = [silent, {**silent, "round": 2, "train": {"loss": None}, "validation": {"ndcg@10": None, "hr@10": 0.5}}]
    for number, records in enumerate([[silent], gaps]):
        path = tmp_path / f"{number}.png"
        plot_curves(records, run.read_summary(), path)
        assert path.stat().st_size > 5_000


BLOCKED = """
import sys
from pathlib import Path

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from fedrec_app.artifacts import RunFolder
from fedrec_app.report import write_report
print(write_report(RunFolder(Path(sys.argv[1]))))
"""


def test_without_matplotlib_the_report_says_so_and_has_no_pictures(run: RunFolder, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path / "copy")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(copy.path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    text = (copy.path / "report.md").read_text()
    assert "No pictures: matplotlib is not installed (`pip install 'fedrec[report]'`)." in text
    assert "curves.png" not in text
    assert "| ndcg@10 |" in text
    assert not (copy.path / "curves.png").exists()


def test_what_a_run_began_with_is_told() -> None:
    rule = {"value": 5, "users": 3, "items": 1200, "interactions": 40, "share_of_interactions": 0.25, "rounds": 2}
    start = {"file": "a/model.safetensors", "parameters": 1, "missing": ["b", "c", "d", "e"], "new_items": 2}
    adapters = {"nodes_sent_base": 4, "bytes_of_base": 3_477_312}
    assert notices({"cleaning": {"rules": {"k-core": rule}}, "init_from": start, "adapters": adapters}) == [
        "removed by data.k-core = 5: 3 users, 1,200 items, 40 interactions (25.0%)",
        "1 of 5 parameters start from a/model.safetensors; 4 start as the seed says: b, c, d, ...; "
        "2 items are not in it",
        "sent once, before the rounds: 3.5 MB to 4 nodes, what stays fixed beside adapters",
    ]
    assert notices({"adapters": {"nodes_sent_base": 0, "bytes_of_base": 0}, "test": {"num_short_negatives": 0}}) == []
    assert notices({"test": {"num_short_negatives": 3, "num_users": 18}}) == [
        "3 of 18 users have fewer than 99 items to draw negatives from: all of them are taken"
    ]
