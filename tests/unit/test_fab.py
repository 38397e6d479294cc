"""The FAB, what `flwr run` sends to a SuperLink: complete without the checkout, and nothing in it that has no use."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from fedrec_app.flower_run import executable
from tests.conftest import REPO
from tests.e2e.helpers import SMALL

PACKAGES = ("fedrec_app", "strategies")
# What may lie about in a checkout, inside the packages too.
LITTER = (
    "fedrec_app/data/ratings.csv",
    "fedrec_app/data/u.data",
    "fedrec_app/data/private.json",
    "strategies/test_own.py",
    "outputs/2026-01-01/00-00-00/summary.json",
    "ratings.csv",
)
LIMIT = 10 * 2**20
# -I: neither the working folder nor PYTHONPATH; what site-packages adds (an editable install) goes as well.
ISOLATED = """
import sys
from pathlib import Path
fab, checkout = Path(sys.argv[1]), Path(sys.argv[2])
sys.path = [str(fab)] + [entry for entry in sys.path if Path(entry).resolve() != checkout]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("checkout") / "repo"
    copy.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md", ".gitignore"):
        shutil.copy(REPO / name, copy / name)
    for name in (*PACKAGES, "tests", "scripts", "docs"):
        shutil.copytree(REPO / name, copy / name, ignore=shutil.ignore_patterns("*.nbc", "*.nbi"))
    for name in LITTER:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("litter")
    return copy


@pytest.fixture(scope="module")
def fab(checkout: Path) -> bytes:
    quiet = {**os.environ, "FLWR_HOME": str(checkout.parent / "home"), "FLWR_TELEMETRY_ENABLED": "0"}
    command = [executable("flwr"), "build", "--app", str(checkout)]
    built = subprocess.run(command, cwd=checkout, env=quiet, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = checkout.glob("*.fab")
    return path.read_bytes()


@pytest.fixture(scope="module")
def unpacked(fab: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fab")
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        archive.extractall(folder)
    return folder


def modules_below(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
        if not path.name.startswith("test_")
    }


def run_isolated(unpacked: Path, script: str, *arguments: str) -> str:
    command = [sys.executable, "-I", "-c", ISOLATED + script, str(unpacked), str(REPO), *arguments]
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_holds_every_module_of_the_checkout_unchanged(unpacked: Path, checkout: Path) -> None:
    packed = modules_below(unpacked)
    assert packed == modules_below(checkout)
    assert {"fedrec_app/data/__init__.py", "fedrec_app/client_app.py", "strategies/fedavg.py"} <= set(packed)


def test_holds_no_tests_no_data_and_no_other_files(fab: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
    top = {name.parts[0] for name in names}
    assert top <= {*PACKAGES, "pyproject.toml", "README.md", "LICENSE", ".info"}
    assert {"pyproject.toml", *PACKAGES} <= top
    for name in names:
        assert str(name) not in LITTER
        assert not name.name.startswith("test_")
        assert not name.name.endswith("_test.py")
        if name.parts[0] in PACKAGES:
            assert name.suffix == ".py"


def test_is_far_below_the_size_that_flower_takes(fab: bytes) -> None:
    assert len(fab) < LIMIT / 5


def test_every_module_imports_from_the_unpacked_fab_alone(unpacked: Path, checkout: Path) -> None:
    found = json.loads(
        run_isolated(
            unpacked,
            """
import importlib, json
import fedrec_app.server_app, fedrec_app.client_app
files = {}
for package in ("fedrec_app", "strategies"):
    for path in sorted((fab / package).rglob("*.py")):
        parts = path.relative_to(fab).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        files[name] = importlib.import_module(name).__file__
print(json.dumps(files))
""",
        )
    )
    assert {"fedrec_app.server_app", "fedrec_app.client_app", "strategies.registry"} <= set(found)
    assert len(found) == len(modules_below(checkout))
    for name, file in found.items():
        assert Path(file).is_relative_to(unpacked), f"{name} came from {file}"


def test_trains_from_the_unpacked_fab_alone(unpacked: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "output-dir": str(tmp_path / "out")}
    summary = json.loads(
        run_isolated(
            unpacked,
            """
import json
import fedrec_app.simulate as subject
assert Path(subject.__file__).is_relative_to(fab), subject.__file__
summary = subject.simulate(json.loads(sys.argv[3]), 2).summary
ours = [m.__file__ or "" for name, m in sys.modules.items() if name.split(".")[0] in ("fedrec_app", "strategies")]
strays = [file for file in ours if not Path(file).is_relative_to(fab)]
print(json.dumps({**summary, "strays": strays}))
""",
            json.dumps(settings),
        )
    )
    assert summary["strays"] == []
    assert summary["status"] == "completed"
    assert summary["rounds"] == 3
    assert 0 < summary["test"]["ndcg@10"] < 1
