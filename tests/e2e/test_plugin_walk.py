"""From `fedrec strategy new` to a run: the package is made, installed in an environment of its own, checked, trained.

The environment is a venv with pip's own install of the new package; fedrec, Flower and torch are those of the
environment that the tests run in, and the commands of Flower are installed anew, so that they start the venv's Python.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedrec_app.artifacts import RunFolder
from fedrec_app.flower_run import executable
from tests.conftest import REPO
from tests.e2e.helpers import sandbox
from tests.e2e.walk import Walk

NAME, PACKAGE = "gentle-mean", "gentle_mean"
WITNESS = "GENTLE_MEAN_WITNESS"
# Added to the installed strategy: which fedrec each process that imports it sees.
TELL = f"""
import os as _os, sys as _sys
import fedrec_app.api as _api
if _os.environ.get("{WITNESS}"):
    with open(_os.environ["{WITNESS}"], "a") as _file:
        print(_sys.prefix, _api.__file__, _sys.modules[RecStrategy.__module__].__file__, file=_file)
"""


@pytest.fixture(scope="module")
def walk() -> Iterator[Walk]:
    """The package, made and installed."""
    with sandbox() as place:
        walk = Walk(place)
        walk.call("fedrec", "strategy", "new", NAME)
        walk.install(str(walk.place.folder / NAME))
        yield walk


def test_the_package_is_installed_in_the_environment_and_nowhere_else(walk: Walk) -> None:
    assert (walk.site / PACKAGE / "strategy.py").read_text() == (
        walk.place.folder / NAME / PACKAGE / "strategy.py"
    ).read_text()
    assert walk.call("python", "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)").startswith(str(walk.site))
    command = [executable("fedrec"), "strategy", "list", "--json"]
    listed = json.loads(subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout)
    assert NAME not in [entry["name"] for entry in listed]


def test_its_own_tests_pass_there(walk: Walk) -> None:
    printed = walk.call("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=walk.place.folder / NAME)
    assert " passed" in printed
    assert "failed" not in printed


def test_the_kit_passes_and_the_list_names_its_source_there(walk: Walk) -> None:
    printed = walk.call("fedrec", "strategy", "check", NAME)
    assert re.search(r"^GentleMean: (\d\d) of \1 checks passed$", printed, re.M)
    (entry,) = json.loads(walk.call("fedrec", "strategy", "list", NAME, "--json"))
    assert (entry["name"], entry["source"], entry["problem"]) == (NAME, f"{NAME} 0.1.0", "")
    options = {option["name"]: (option["type"], option["default"], option["allowed"]) for option in entry["options"]}
    assert options["max_norm"] == ("number", "10.0", "> 0")


@pytest.fixture(scope="module")
def settings(walk: Walk, ml_100k: Path) -> list[str]:
    return walk.place.settings({
        "num-server-rounds": 2, "seed": 3, "data.name": "ml-100k", "data.path": str(ml_100k), "strategy.name": NAME,
        "strategy.options": '{"max_norm": 5.0}',
    })  # fmt: skip


def test_it_trains_on_ml_100k_through_a_bare_flwr_run(walk: Walk, settings: list[str], flower_home: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    witness = walk.place.folder / "witness"
    walk.place.environment.update({
        "FLWR_HOME": str(flower_home), "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port, WITNESS: str(witness),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0",
    })  # fmt: skip
    installed = walk.site / PACKAGE / "strategy.py"
    installed.write_text(installed.read_text() + TELL)
    before = folders(walk)
    # Not from inside the checkout: Ray puts the working folder first on its workers' path, and they would run its code.
    walk.call("flwr", "run", str(REPO), "--stream", *settings)
    (folder,) = folders(walk) - before
    assert_trained(RunFolder(folder))
    seen = {tuple(line.split()) for line in witness.read_text().splitlines()}
    assert seen
    for prefix, *files in seen:
        assert Path(prefix) == walk.venv
        for file in files:
            assert Path(file).is_relative_to(flower_home / "apps"), f"the plug-in builds on {file}, not on the FAB"


@pytest.mark.slow
def test_it_trains_on_ml_100k_through_fedrec_run(walk: Walk, settings: list[str]) -> None:
    before = folders(walk)
    walk.call("fedrec", "run", *settings, "--num-nodes", "2", cwd=REPO)
    (folder,) = folders(walk) - before
    assert_trained(RunFolder(folder))


def folders(walk: Walk) -> set[Path]:
    return set(walk.place.outputs.glob("????-??-??/*"))


def assert_trained(folder: RunFolder) -> None:
    summary = folder.read_summary()
    assert summary["status"] == "completed"
    assert summary["strategy"] == NAME
    assert (summary["rounds"], summary["num_nodes"], summary["test"]["num_users"]) == (2, 2, 943)
    assert summary["dropped_updates"] == {}
