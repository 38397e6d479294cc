"""`fedrec model check` and `fedrec data check`: what stands on standard output, exit codes, one-line errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedrec_app import cli
from fedrec_app.models.neumf import NeuMF
from fedrec_app.testing import datasets, models

SMALL = '{"num_users": 40, "num_items": 60, "mean_interactions": 15, "min_interactions": 5}'
BROKEN = """
from tests.conformance.plain_model import Plain

class Mine(Plain):
    def score(self, state, items):
        return -super().score(state, items)

class _Helper(Plain):
    pass
"""
Fedrec = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def fedrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedrec:
    """The command in this process: arguments -> (exit code, lines of standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["fedrec", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return call


def test_a_model_that_conforms_is_a_line_a_check_and_exit_code_0(fedrec: Fedrec) -> None:
    code, lines, err = fedrec("model", "check", "neumf", "--options", '{"layers": [4]}', "--embedding-dim", "3")
    applying = models.applicable(models.ModelCase(NeuMF))
    assert (code, err) == (0, "")
    assert lines == [
        *(f"passed  {name}" for name in applying),
        f"NeuMF: {len(applying)} of {len(applying)} checks passed",
    ]


def test_a_model_in_a_file_that_fails_says_how_and_exits_with_1(fedrec: Fedrec, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(BROKEN)
    code, lines, _ = fedrec("model", "check", str(file), "-c", "num-server-rounds=8")
    assert code == 1
    assert lines[-1] == "Mine: 17 of 18 checks passed"
    (failed,) = [line for line in lines if line.startswith("FAILED")]
    assert failed.startswith("FAILED  learns_tastes: given 8 rounds of 40 users, 60 items: HR@10 is 0.")


def test_a_basic_fault_ends_the_checks(fedrec: Fedrec) -> None:
    code, lines, _ = fedrec("model", "check", "tests.conformance.model_faults:ForgetsAParameter")
    assert code == 1
    assert lines[2].startswith("FAILED  names: given five users, the parameters: 'bias'")
    assert lines[3] == "not run shapes"
    assert lines[-1] == "ForgetsAParameter: 2 of 18 checks passed"


def test_a_data_set_that_conforms_exits_with_0(fedrec: Fedrec) -> None:
    code, lines, err = fedrec("data", "check", "synthetic", "--options", SMALL)
    assert (code, err, lines[-1]) == (0, "", "Synthetic: 7 of 7 checks passed")
    assert lines[:-1] == [f"passed  {name}" for name in datasets.CHECKS if name not in ("unreadable_path", "columns")]


def test_a_data_set_that_fails_says_how_and_exits_with_1(fedrec: Fedrec, tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    rows = [f"{user},{item},{1_600_000_000_000 + item}" for user in "ab" for item in (1, 2, 3)]
    file.write_text("\n".join(["who,item_id,timestamp", *rows]) + "\n")
    code, lines, _ = fedrec("data", "check", "csv", "--path", str(file), "--columns", "user_id=who")
    assert (code, lines[-1]) == (1, "CsvFile: 8 of 9 checks passed")
    assert any("interactions: given column 'timestamp': the latest is 1600000000003" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("model", "check", "nuemf"), "(did you mean 'neumf'?)"),
        (("model", "check", "mf", "--options", '{"los": 1}'), "(did you mean 'loss'?)"),
        (("model", "check", "mf", "-c", "train.lerning-rate=1.0"), "(did you mean 'train.learning-rate'?)"),
        (("model", "check", "gone.py"), "there is no file gone.py"),
        (("data", "check", "synthetc"), "(did you mean 'synthetic'?)"),
        (("data", "check", "csv"), "dataset 'csv' needs a path"),
        (("data", "check", "synthetic", "--path", "x"), "is generated: a path ('x') does not apply"),
        (("data", "check", "ml-100k", "--columns", "user_id=x"), "has a fixed layout"),
    ],
)
def test_what_the_reader_got_wrong_is_one_line(fedrec: Fedrec, arguments: tuple[str, ...], expected: str) -> None:
    code, lines, err = fedrec(*arguments)
    assert (code, lines) == (1, [])
    assert err.startswith("error: ")
    assert expected in err
    assert len(err.splitlines()) == 1


def test_a_file_must_hold_one_model_or_say_which(fedrec: Fedrec, tmp_path: Path) -> None:
    file = tmp_path / "two.py"
    file.write_text(BROKEN + "\nclass Other(Plain):\n    pass\n")
    assert f"say which model, {file}:Mine or {file}:Other" in fedrec("model", "check", str(file))[2]
    assert "(did you mean 'Other'?)" in fedrec("model", "check", f"{file}:Othr")[2]
    assert "holds no dataset" in fedrec("data", "check", str(file))[2]
    file.write_text("1 / 0\n")
    assert "cannot be imported: ZeroDivisionError" in fedrec("model", "check", str(file))[2]
