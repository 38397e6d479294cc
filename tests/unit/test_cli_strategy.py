"""`fedrec strategy list / check / new` and `fedrec model list`."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from fedrec_app import cli
from fedrec_app.api import API_VERSION
from fedrec_app.errors import ConfigError
from fedrec_app.models.registry import BUILT_IN as MODELS
from fedrec_app.strategy_template import module_name, write_package
from strategies.registry import BUILT_IN
from tests.conftest import REPO

Fedrec = Callable[..., tuple[int, str, str]]
GOOD = """
from fedrec_app.api import RecStrategy

class Halve(RecStrategy):
    name = "halve"
    api_version = 1

    def aggregate(self, updates, params):
        return {name: delta / 2 for name, delta in super().aggregate(updates, params).items()}
"""
BAD = GOOD.replace("delta / 2", "delta + 1")


@pytest.fixture
def fedrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Fedrec:
    """The command in this process and an empty folder: arguments -> (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedrec", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def install(site: Path, package: str, code: str, monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Installs a package as pip leaves it: a module beside a dist-info folder."""
    info = site / f"{package}-1.2.dist-info"
    info.mkdir(parents=True)
    (site / f"{package}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = "".join(f"{name} = {package}:{attribute}\n" for name, attribute in points.items())
    (info / "entry_points.txt").write_text("[fedrec.strategies]\n" + lines)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, package, raising=False)


def error_of(result: tuple[int, str, str]) -> str:
    code, _, err = result
    assert code == 1
    assert "Traceback" not in err
    return " ".join(err.split()).removeprefix("error: ")


# list ----------------------------------------------------------------------------------------------------------------


def test_list_shows_every_strategy_with_its_options(fedrec: Fedrec) -> None:
    code, out, _ = fedrec("strategy", "list", "--json")
    assert code == 0
    listed = {entry["name"]: entry for entry in json.loads(out)}
    assert set(listed) >= set(BUILT_IN)
    for name in BUILT_IN:
        assert (listed[name]["source"], listed[name]["problem"]) == ("built-in", "")
        assert len(listed[name]["what"]) > 10
    options = {option["name"]: option for option in listed["fedadam"]["options"]}
    assert options["weighting"]["type"] == "one of examples, users, uniform, rows"
    assert options["weighting"]["default"] == '"examples"'
    beta = options["beta_1"]
    assert (beta["type"], beta["default"], beta["allowed"]) == ("number", "0.9", ">= 0, < 1")
    assert options["bias_correction"]["type"] == "true or false"


def test_list_is_a_table_and_a_name_shows_one_in_full(fedrec: Fedrec) -> None:
    code, out, _ = fedrec("strategy", "list")
    assert code == 0
    assert "built-in" in out
    assert "beta_1: number >= 0, < 1; default 0.9" in out
    for name in BUILT_IN:
        assert f" {name} " in out
    code, out, _ = fedrec("strategy", "list", "fedadam")
    assert code == 0
    assert "fedadam (built-in): Adam on the mean delta" in out
    assert "fedavg" not in out
    assert "  beta_1: number >= 0, < 1; default 0.9\n      decay of the first moment m" in out


def test_list_of_an_unknown_name_gives_the_nearest(fedrec: Fedrec) -> None:
    assert "unknown strategy 'fedadm'" in (error := error_of(fedrec("strategy", "list", "fedadm")))
    assert "(did you mean 'fedadam'?)" in error


def test_list_shows_plug_ins_with_their_package_and_says_what_is_wrong_with_some(
    fedrec: Fedrec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "a", "halves", GOOD, monkeypatch, halve="Halve", fedavg="Halve")
    install(tmp_path / "b", "broken_one", "import no_such_module_at_all", monkeypatch, broken="Gone")
    strange = GOOD.replace("class Halve(RecStrategy):", "class Halve(RecStrategy):\n    Options = 3")
    install(tmp_path / "c", "strange_options", strange, monkeypatch, strange="Halve")
    code, out, _ = fedrec("strategy", "list", "--json")
    assert code == 0
    entries = {(entry["name"], entry["source"]): entry for entry in json.loads(out)}
    assert entries["halve", "halves 1.2"]["problem"] == ""
    assert entries["fedavg", "built-in"]["problem"] == ""
    assert entries["fedavg", "halves 1.2"]["problem"].startswith("ignored: 'fedavg' is the name of a built-in")
    assert "No module named 'no_such_module_at_all'" in entries["broken", "broken_one 1.2"]["problem"]
    assert "its Options is 3, which is no pydantic model" in entries["strange", "strange_options 1.2"]["problem"]
    code, out, _ = fedrec("strategy", "list")
    assert code == 0
    assert "ignored: " in out
    assert "broken: " in out
    code, out, _ = fedrec("strategy", "list", "broken")
    assert code == 0
    assert out.endswith("install it, or uninstall broken_one\n"), "nothing on the options of what cannot be loaded"


def test_one_plug_in_that_ends_the_program_does_not_end_the_list(
    fedrec: Fedrec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "a", "ends_it", "import sys\nsys.exit('bye')", monkeypatch, ends="Gone")
    code, out, _ = fedrec("strategy", "list", "--json")
    assert code == 0
    problems = {entry["name"]: entry["problem"] for entry in json.loads(out)}
    assert "SystemExit: bye" in problems["ends"]
    assert problems["fedavg"] == ""


def test_list_takes_a_file_and_a_class_path_as_check_does(
    fedrec: Fedrec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.py").write_text(GOOD + "\nclass Third(Halve):\n    'A third.'\n    name = 'third'\n")
    code, out, _ = fedrec("strategy", "list", "mine.py:Third")
    assert (code, out.splitlines()[0]) == (0, "third (by path): A third.")
    assert "  weighting: one of examples" in out
    code, out, _ = fedrec("strategy", "list", "strategies.median:Median", "--json")
    assert [(entry["name"], entry["path"]) for entry in json.loads(out)] == [("median", "strategies.median:Median")]
    assert "say which strategy, mine.py:Halve or mine.py:Third" in error_of(fedrec("strategy", "list", "mine.py"))
    assert "has no 'Medain'" in error_of(fedrec("strategy", "list", "strategies.median:Medain"))


def test_model_list_does_the_same_for_models(fedrec: Fedrec) -> None:
    code, out, _ = fedrec("model", "list", "--json")
    assert code == 0
    listed = {entry["name"]: entry for entry in json.loads(out)}
    assert set(listed) >= set(MODELS)
    assert listed["mf"]["what"].startswith("matrix factorisation")
    code, out, _ = fedrec("model", "list", "mf")
    assert code == 0
    assert "unobserved_weight" in out


# check ---------------------------------------------------------------------------------------------------------------


def test_check_of_a_file_that_conforms(fedrec: Fedrec) -> None:
    Path("mine.py").write_text(GOOD)
    code, out, err = fedrec("strategy", "check", "mine.py")
    assert code == 0, out
    assert "passed  weights" in out
    assert "FAILED" not in out
    assert "Halve: " in out.splitlines()[-1]
    assert "warning" not in err
    assert fedrec("strategy", "check", "mine.py:Halve")[0] == 0


def test_check_says_which_check_failed_on_what_and_why(fedrec: Fedrec) -> None:
    Path("mine.py").write_text(BAD)
    code, out, _ = fedrec("strategy", "check", "mine.py")
    assert code == 1
    (line,) = [line for line in out.splitlines() if line.startswith("FAILED  zero_updates_change_nothing")]
    assert "given six updates of zeros to " in line
    assert "passed  sampling" in out
    assert "checks passed" in out.splitlines()[-1]


def test_check_takes_names_and_class_paths_and_options(
    fedrec: Fedrec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "a", "halves_too", GOOD, monkeypatch, halve="Halve")
    for path in ("fedavg", "halve", "halves_too:Halve"):
        code, out, err = fedrec("strategy", "check", path, "--options", '{"weighting": "users"}')
        assert code == 0, out
        assert "warning" not in err
    assert "(did you mean 'weighting'?)" in error_of(
        fedrec("strategy", "check", "halve", "--options", '{"weightin": 1}')
    )
    assert "a JSON object such as" in error_of(fedrec("strategy", "check", "halve", "--options", "[1]"))


def test_check_runs_the_kit_with_the_options(fedrec: Fedrec) -> None:
    options = "\n    class Options(MeanOptions):\n        shift: float = 0.0\n"
    code = BAD.replace("import RecStrategy", "import MeanOptions, RecStrategy").replace("+ 1", "+ self.options.shift")
    Path("mine.py").write_text(code.replace("    api_version = 1\n", f"    api_version = 1\n{options}"))
    assert fedrec("strategy", "check", "mine.py")[0] == 0
    assert fedrec("strategy", "check", "mine.py", "--options", '{"shift": 0.5}')[0] == 1


def test_check_advises_to_declare_a_name_and_an_api_version(fedrec: Fedrec) -> None:
    Path("mine.py").write_text(GOOD.replace('name = "halve"', "").replace("api_version = 1", "pass"))
    code, _, err = fedrec("strategy", "check", "mine.py")
    assert code == 0
    text = " ".join(err.split())
    assert "warning: Halve declares no name of its own" in text
    assert f"warning: Halve declares no api_version: with api_version = {API_VERSION}" in text
    Path("mine.py").write_text(GOOD.replace('name = "halve"', 'name = "fedavg"'))
    assert "warning: 'fedavg' is the name of a built-in strategy" in " ".join(
        fedrec("strategy", "check", "mine.py")[2].split()
    )


@pytest.mark.parametrize(
    ("path", "code", "expected"),
    [
        ("gone.py", None, "there is no file gone.py"),
        ("mine.py", "x = 1", "mine.py holds no strategy: no class in it derives from fedrec_app.api.RecStrategy (or "),
        ("mine.py:Halve", "x = 1", "mine.py holds no strategy"),
        ("mine.py", "from fedrec_app.api import RecStrategy", "mine.py holds no strategy"),
        (
            "mine.py",
            f"{GOOD}\nclass Other(Halve): pass",
            "mine.py holds 2 of them: say which strategy, mine.py:Halve or mine.py:Other",
        ),
        ("mine.py:Halv", GOOD, "unknown strategy in mine.py 'Halv': one of Halve (did you mean 'Halve'?)"),
        ("mine.py", "def (", "mine.py cannot be imported: SyntaxError"),
        ("mine.py", "import sys\nsys.exit('bye')", "mine.py cannot be imported: SystemExit: bye ("),
        ("mine.py", "import no_such_module_at_all", "mine.py:1): install it"),
        ("mine.py", "from .other import x", "mine.py cannot be imported: ImportError: attempted relative import"),
        ("mine.py", GOOD.replace("api_version = 1", "api_version = 7"), "was written for fedrec's plug-in API 7"),
        (
            "mine.py",
            GOOD.replace("    api_version = 1", "    def __init__(self, *given): raise OSError('no disk')"),
            "strategy 'mine.py' cannot be made: OSError: no disk (",
        ),
        (
            "mine.py",
            GOOD.replace("    api_version = 1", "    def __init__(self, options): raise OSError('no disk')"),
            "its __init__ is (self, options), and is called with (self, options, settings, roster), by position",
        ),
        (
            "mine.py",
            GOOD.replace("api_version = 1", "class Options:\n        x = 1"),
            "strategy 'Halve': its Options is the class Halve.Options, which is no pydantic model",
        ),
        ("fedadm", None, "(did you mean 'fedadam'?)"),
        ("no_such_package.module:Class", None, "there is no module 'no_such_package' here: is the package that holds"),
        ("flwr.serverapp.strategy.FedAvg", None, "(did you mean 'flwr.serverapp.strategy:FedAvg'?)"),
        ("_mine.py", "class _Halve: pass", "there is no file _mine.py"),
        (
            "mine.py",
            GOOD.replace("class Halve", "class _Halve"),
            "holds no strategy whose name has no leading underscore",
        ),
        ("flwr.serverapp.strategy:FedAvg", None, "no fedrec_app.api.RecStrategy: the kit cannot check it"),
    ],
)
def test_check_says_what_is_wrong_with_a_path(fedrec: Fedrec, path: str, code: str | None, expected: str) -> None:
    if code is not None:
        Path("mine.py").write_text(code)
    assert expected in error_of(fedrec("strategy", "check", path))


PARTS = """
import numpy as np
from fedrec_app.api import Aggregator, ServerOptimizer, StrategyOptions
from pydantic import Field

class First(Aggregator):
    name = "first"
    def __call__(self, updates, params, tables=()):
        (first, *_) = [update for update in updates if update.weight > 0] or [None]
        return {n: p * 0.0 if first is None else first.delta(n) / first.weight for n, p in params.items()}

class Signs(ServerOptimizer):
    name = "signs"
    class Options(StrategyOptions):
        rate: float = Field(default=0.01, gt=0)
    def step(self, params, delta, factor=1.0):
        return {n: (p + self.options.rate * factor * np.sign(delta[n])).astype(p.dtype) for n, p in params.items()}
"""


def test_check_takes_an_aggregator_or_a_server_optimizer_by_itself(fedrec: Fedrec) -> None:
    Path("parts.py").write_text(PARTS)
    code, out, err = fedrec("strategy", "check", "parts.py:Signs", "--options", '{"rate": 0.5}')
    assert code == 0, out
    assert "Signs is of the kind 'server optimizer': the kit gets a strategy that is plain but for it" in err
    assert "checks passed" in out.splitlines()[-1]
    code, out, err = fedrec("strategy", "check", "parts.py:First")
    assert "First is of the kind 'aggregator'" in err
    assert "FAILED  order" in out, "the kit looks at the part, not at a mean"
    Path("parts.py").write_text(PARTS.replace("self.options.rate * factor * np.sign(delta[n])", "1.0"))
    code, out, _ = fedrec("strategy", "check", "parts.py:Signs")
    assert code == 1
    assert "FAILED  zero_updates_change_nothing" in out
    assert "(did you mean 'rate'?)" in error_of(
        fedrec("strategy", "check", "parts.py:Signs", "--options", '{"rat": 1}')
    )


def test_check_of_a_file_takes_its_strategy_before_its_parts(fedrec: Fedrec) -> None:
    Path("mine.py").write_text(PARTS + GOOD)
    assert fedrec("strategy", "check", "mine.py")[1].splitlines()[-1].startswith("Halve: ")
    Path("mine.py").write_text(PARTS.partition("class Signs")[0])
    assert fedrec("strategy", "check", "mine.py")[1].splitlines()[-1].startswith("First: ")


def test_check_of_a_folder_says_which_file_is_meant(fedrec: Fedrec, package: Path) -> None:
    error = error_of(fedrec("strategy", "check", str(package)))
    assert (
        f"is a folder: a file.py, or the name of a strategy, is expected (did you mean {package}/gentle_mean" in error
    )
    assert "test_" not in error
    Path("empty").mkdir()
    assert error_of(fedrec("strategy", "check", "empty")).endswith("is expected")
    Path("fedavg").mkdir()
    assert fedrec("strategy", "check", "fedavg")[0] == 0, "a name counts more than a folder of that name"


# new -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "gentle-mean"
    write_package("gentle-mean", folder, BUILT_IN)
    return folder


def test_new_writes_a_complete_package(package: Path) -> None:
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert files == {
        "pyproject.toml", "README.md", "gentle_mean/__init__.py", "gentle_mean/strategy.py",
        "tests/test_conformance.py", "tests/test_numbers.py",
    }  # fmt: skip
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["name"] == "gentle-mean"
    assert project["dependencies"] == ["fedrec"]
    assert project["requires-python"] == ">=3.11"
    assert project["entry-points"]["fedrec.strategies"] == {"gentle-mean": "gentle_mean.strategy:GentleMean"}
    for path in files:
        assert "$" not in (package / path).read_text(), path
    assert f"api_version = {API_VERSION}\n" in (package / "gentle_mean" / "strategy.py").read_text()


@pytest.mark.parametrize("name", ["gentle-mean", "a", "x2", "a-rather-long-name-for-a-strategy-that-averages"])
def test_a_new_package_is_clean_by_our_linter_and_formatter(name: str, tmp_path: Path) -> None:
    write_package(name, tmp_path / name, BUILT_IN)
    ours = ["--config", str(REPO / "pyproject.toml")]
    for command in (["check"], ["format", "--check"], ["check", *ours], ["format", "--check", *ours]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=tmp_path / name, capture_output=True,
            text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_strategy_conforms_and_needs_no_advice(fedrec: Fedrec, package: Path) -> None:
    code, out, err = fedrec("strategy", "check", str(package / "gentle_mean" / "strategy.py"))
    assert code == 0, out
    assert "warning" not in err


def test_new_says_what_it_wrote_and_what_comes_next(fedrec: Fedrec, tmp_path: Path) -> None:
    code, out, err = fedrec("strategy", "new", "two-fold", "--out", "here/there")
    assert code == 0
    written = out.splitlines()
    assert "here/there/two_fold/strategy.py" in written
    assert all((tmp_path / path).is_file() for path in written)
    assert err == (
        f"next: pip install -e {tmp_path / 'here' / 'there'} && fedrec strategy check two-fold\n"
        "its class is named in two places: two_fold/strategy.py and the entry point in pyproject.toml "
        "(install again after a change)\n"
    )
    assert fedrec("strategy", "new", "three-fold")[0] == 0
    assert (tmp_path / "three-fold" / "three_fold" / "strategy.py").is_file()


def test_new_overwrites_nothing(fedrec: Fedrec, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert fedrec("strategy", "new", "two-fold", "--out", "mine")[0] == 0
    (tmp_path / "a-file").write_text("kept")
    for folder in ("mine", "a-file"):
        assert "is there already" in error_of(fedrec("strategy", "new", "two-fold", "--out", folder))
    assert (tmp_path / "a-file").read_text() == "kept"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fedavg", "there is a strategy 'fedavg' already"),
        ("trimmed_mean", "there is a strategy 'trimmed_mean' already"),
        ("Two", "lower-case letters"),
        ("2nd", "lower-case letters"),
        ("-x", "lower-case letters"),
        ("x-", "lower-case letters"),
        ("a.b", "lower-case letters"),
        ("../x", "lower-case letters"),
        ("", "lower-case letters"),
        ("class", "is a word of Python"),
        ("match", "is a word of Python"),
        ("json", "means something else"),
        ("auto", "means something else"),
        ("strategies", "the Python package 'strategies' is installed already"),
        ("fedrec-app", "the Python package 'fedrec_app' is installed already"),
        ("numpy", "the Python package 'numpy' is installed already"),
    ],
)
def test_new_refuses_names_that_do_not_do(name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        module_name(name, BUILT_IN)
