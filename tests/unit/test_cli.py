"""The command line: exit codes, one-line errors, help, and what stands on standard output."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from fedrec_app import __version__, cli
from tests.small import SMALL

Fedrec = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fedrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Fedrec]:
    """The command in this process: arguments -> (exit code, standard output, standard error)."""
    level = logging.getLogger("flwr").level
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedrec", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield call
    logging.getLogger("flwr").setLevel(level)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run by the installed command, in a process of its own and with settings from two -c and a file."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "mine.toml").write_text("num-server-rounds = 9\nseed = 3\n")
    command = [
        "fedrec", "simulate", "-c", "mine.toml", "-c", "num-server-rounds=2", "-c", f"data.options='{SMALL}'",
        "--num-nodes", "3", "--json",
    ]  # fmt: skip
    path = Path(sys.executable).parent / command[0]
    done = subprocess.run(
        [str(path), *command[1:]], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    return folder, done


def run_folder(simulated: tuple[Path, Any]) -> Path:
    (found,) = (simulated[0] / "outputs").glob("*-*-*/*")
    return found


def one_line_error(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert code == 1
    assert out == ""
    assert "Traceback" not in err
    *before, last = err.rstrip("\n").split("\n")
    assert last.startswith("error: ")
    assert all("error" not in line for line in before)
    return last.removeprefix("error: ")


# simulate ------------------------------------------------------------------------------------------------------------


def test_simulate_succeeds_and_its_last_line_is_the_summary(simulated: tuple[Path, Any]) -> None:
    done = simulated[1]
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.rstrip("\n").split("\n")[-1])
    assert summary == json.loads((run_folder(simulated) / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["num_nodes"], summary["seed"]) == ("completed", 2, 3, 3)
    assert 0 <= summary["test"]["ndcg@10"] <= 1


def test_simulate_prints_the_settings_that_differ_the_result_and_where_the_report_is(
    simulated: tuple[Path, Any],
) -> None:
    err = simulated[1].stderr
    assert (
        f"settings that differ from the defaults: seed = 3, num-server-rounds = 2, data.options = {SMALL}"
        in " ".join(err.split())
    )
    assert "mf by fedadam on synthetic, test (round " in err
    assert "ndcg@10" in err
    assert f"report: {run_folder(simulated) / 'report.md'}\n" in err


def test_the_run_is_written_where_the_command_was_started(simulated: tuple[Path, Any]) -> None:
    names = {path.name for path in run_folder(simulated).iterdir()}
    assert names >= {"config.toml", "metrics.jsonl", "summary.json", "model.safetensors", "report.md"}


def test_without_json_nothing_stands_on_standard_output(fedrec: Fedrec) -> None:
    code, out, err = fedrec(
        "simulate",
        "-c",
        f"num-server-rounds=1 data.options='{SMALL}'",
        "-c",
        "output-dir='elsewhere'",
        "--num-nodes",
        "1",
    )
    assert (code, out) == (0, "")
    assert "settings that differ" in err
    assert len(list(Path("elsewhere").glob("*/*/summary.json"))) == 1


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["simulate", "run"])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("train.lerning-rate=0.1", "(did you mean 'train.learning-rate'?)"),
        ("seed=-1", "seed is -1: must be greater than or equal to 0"),
        ("seed", "cannot read 'seed' in -c 'seed'"),
        ("data.name=ml-100k", '(did you mean data.name="ml-100k"?)'),
        ("nothing.toml", "no configuration file nothing.toml"),
        ("data.name='ml100k'", "(did you mean 'ml-100k'?)"),
        ("model.name='nuemf'", "(did you mean 'neumf'?)"),
        ("model.options='{\"los\": 1}'", "(did you mean 'loss'?)"),
        ("strategy.name='fedadm'", "(did you mean 'fedadam'?)"),
        ("strategy.options='[1]'", "a JSON object such as"),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_starts(
    fedrec: Fedrec, tmp_path: Path, command: str, settings: str, expected: str
) -> None:
    assert expected in one_line_error(fedrec(command, "-c", settings))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("data.name='csv' data.options='{}' data.path='shop.csv'", "shop.csv"),
        ("data.options='{\"num_usrs\": 1}'", "(did you mean 'num_users'?)"),
        ("strategy.min-nodes=5", "strategy.min-nodes is 5: there are 2 nodes (num-nodes)"),
        ("data.min-interactions=5000", "no user has 5000 interactions: the most is "),
    ],
)
def test_data_that_does_not_do_is_one_line(fedrec: Fedrec, settings: str, expected: str) -> None:
    assert expected in one_line_error(fedrec("simulate", "-c", f"data.options='{SMALL}'", "-c", settings))


@pytest.mark.parametrize("command", ["report", "recommend"])
def test_a_folder_that_is_no_run_is_one_line(fedrec: Fedrec, command: str, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        assert "is it the folder of a run" in one_line_error(fedrec(command, "--run", str(path)))


@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "--num-nodes", "0"),
        ("simulate", "--num-nodes", "two"),
        ("simulate", "--nodes", "3"),
        ("simulat",),
        ("report",),
        ("recommend", "--run", "x", "-k", "0"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_and_shows_how(fedrec: Fedrec, arguments: tuple[str, ...]) -> None:
    code, out, err = fedrec(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: " in err
    assert "Traceback" not in err


# Help ----------------------------------------------------------------------------------------------------------------


def every_command() -> list[tuple[str, ...]]:
    def below(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from below(inner, (*path, name))

    return list(below(typer.main.get_command(cli.commands), ()))


@pytest.mark.parametrize("command", every_command(), ids=lambda path: " ".join(path) or "fedrec")
def test_every_command_explains_itself(fedrec: Fedrec, command: tuple[str, ...]) -> None:
    code, out, _ = fedrec(*command, "--help")
    assert code == 0
    usage, *text = [line.strip() for line in out.splitlines() if line.strip()]
    assert usage.startswith("Usage: ")
    assert " ".join(["fedrec", *command]) in usage
    assert len(text[0]) > 10
    assert not text[0].startswith(("╭", "Options"))


def test_the_documented_commands_are_there() -> None:
    documented = {("run",), ("simulate",), ("report",), ("recommend",), ("data", "list"), ("data", "stats")}
    documented |= {(kind, verb) for kind in ("strategy", "model", "data") for verb in ("list", "check")}
    documented |= {("strategy", "new"), ("data", "clean"), ("fuse",), ("ensemble",), ("compare",), ("tune",)}
    assert documented <= set(every_command())


def test_what_data_clean_prints_runs_on_what_is_left(fedrec: Fedrec, tmp_path: Path) -> None:
    code, printed, _ = fedrec("data", "clean", "synthetic", "--options", SMALL, "--k-core", "5", "--out", "clean")
    command = printed.split()
    assert (code, command[:3]) == (0, ["fedrec", "simulate", "-c"])
    code, said, _ = fedrec(*command[1:], "-c", "num-server-rounds=1 data.k-core=5", "--json")
    summary = json.loads(said.splitlines()[-1])
    assert code == 0
    assert summary["cleaning"]["before"] == summary["cleaning"]["after"]


def test_the_version_is_the_packages(fedrec: Fedrec) -> None:
    assert fedrec("--version")[:2] == (0, f"{__version__}\n")


# After a run ---------------------------------------------------------------------------------------------------------


def test_report_prints_the_path_alone(fedrec: Fedrec, simulated: tuple[Path, Any]) -> None:
    folder = run_folder(simulated)
    before = (folder / "report.md").read_text()
    (folder / "report.md").unlink()
    code, out, _ = fedrec("report", "--run", str(folder))
    assert (code, out) == (0, f"{folder / 'report.md'}\n")
    assert (folder / "report.md").read_text() == before


def test_recommend_prints_json_or_a_table(fedrec: Fedrec, simulated: tuple[Path, Any]) -> None:
    folder = str(run_folder(simulated))
    code, out, _ = fedrec("recommend", "--run", folder, "--user", "u07", "-k", "4", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["method"] == "private rows"
    assert [set(item) for item in found["items"]] == [{"item_id", "score", "title"}] * 4
    code, out, _ = fedrec("recommend", "--run", folder, "--user", "u07", "-k", "4")
    assert code == 0
    assert "private rows for u07" in out
    for item in found["items"]:
        assert item["item_id"] in out
        assert item["title"] in out


@pytest.mark.parametrize(
    ("who", "method"), [(("--history", "i03,i05"), "fold-in"), ((), "popularity"), (("--user", "u00"), "private rows")]
)
def test_recommend_says_how_it_came_by_its_items(
    fedrec: Fedrec, simulated: tuple[Path, Any], who: tuple[str, ...], method: str
) -> None:
    code, out, err = fedrec("recommend", "--run", str(run_folder(simulated)), *who, "-k", "2", "--json")
    if method == "popularity":  # three nodes of 40 users are below privacy.min-cohort
        assert code == 1
        assert "privacy.min-cohort" in err
        return
    assert code == 0, err
    assert json.loads(out)["method"] == method


def test_recommend_names_whom_it_does_not_know(fedrec: Fedrec, simulated: tuple[Path, Any]) -> None:
    result = fedrec("recommend", "--run", str(run_folder(simulated)), "--user", "u077")
    assert "unknown user 'u077'" in one_line_error(result)
