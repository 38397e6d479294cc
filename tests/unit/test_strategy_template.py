"""The package that `fedrec strategy new` writes, in the hands of somebody who edits its strategy and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedrec_app.strategy_template import write_package
from strategies.registry import BUILT_IN
from tests.conftest import REPO

OTHER = '''
"""Half the mean."""

from fedrec_app.api import MeanOptions, RecStrategy
from pydantic import Field


class GentleMean(RecStrategy):
    """The mean, times a factor."""

    name = "gentle-mean"
    api_version = 1

    class Options(MeanOptions):
        """Options."""

        factor: float = Field(default=0.5, gt=0)

    def aggregate(self, updates, params):
        return {name: delta * self.options.factor for name, delta in super().aggregate(updates, params).items()}
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The package as it was written, and what pip leaves of an editable install."""
    target = tmp_path / "gentle-mean"
    write_package("gentle-mean", target, BUILT_IN)
    info = target / "gentle_mean-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gentle-mean\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[fedrec.strategies]\ngentle-mean = gentle_mean.strategy:GentleMean\n")
    return target


def printed_by_its_tests(folder: Path) -> str:
    """What pytest prints in a process of its own, as its author starts it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(REPO)])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfs", "-p", "no:cacheprovider"], cwd=folder, env=environment,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    return done.stdout


def test_the_tests_of_a_new_package_pass_as_they_are(folder: Path) -> None:
    printed = printed_by_its_tests(folder).splitlines()[-1]
    assert " passed" in printed
    assert "failed" not in printed
    assert "skipped" not in printed


@pytest.mark.slow
def test_an_author_who_edits_his_strategy_alone_has_no_failing_tests(folder: Path) -> None:
    (folder / "gentle_mean" / "strategy.py").write_text(OTHER)
    printed = printed_by_its_tests(folder)
    assert " passed, 2 skipped" in printed.splitlines()[-1]
    assert "replace tests/test_numbers.py with your numbers" in printed


def test_a_strategy_that_breaks_the_contract_fails_them(folder: Path) -> None:
    (folder / "gentle_mean" / "strategy.py").write_text(OTHER.replace("delta * self", "delta + self"))
    assert "FAILED tests/test_conformance.py::test_conforms[{}-zero_updates_change_nothing]" in printed_by_its_tests(
        folder
    )


@pytest.mark.slow
def test_a_class_that_was_renamed_in_one_place_is_told_the_other(folder: Path) -> None:
    (folder / "gentle_mean" / "strategy.py").write_text(OTHER.replace("class GentleMean", "class GentlerMean"))
    printed = printed_by_its_tests(folder)
    assert (
        "module 'gentle_mean.strategy' has no 'GentleMean': it has GentlerMean (did you mean "
        "'gentle_mean.strategy:GentlerMean'?); the entry point in the pyproject.toml of gentle-mean names it: correct "
        "it, install again"
    ) in printed
    (info,) = folder.glob("*.dist-info/entry_points.txt")
    info.write_text(info.read_text().replace("GentleMean", "GentlerMean"))
    assert " passed, 2 skipped" in printed_by_its_tests(folder).splitlines()[-1], "no test names the class"


def test_the_class_stands_in_the_two_places_that_the_readme_names_and_nowhere_else(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file() and "dist-info" not in str(path)]
    naming = {path.relative_to(folder).as_posix() for path in files if "GentleMean" in path.read_text()}
    assert naming == {"gentle_mean/strategy.py", "pyproject.toml", "README.md"}
    readme = " ".join((folder / "README.md").read_text().split())
    assert "Two places name the class `GentleMean`: `gentle_mean/strategy.py`, and the entry point in" in readme
    assert (folder / "tests" / "test_numbers.py").read_text().startswith('"""Replace me with your numbers')
