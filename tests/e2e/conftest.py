"""Holds the end-to-end tests to one worker, and lends them the home of Flower that they share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_worker(worker_id: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fails where two workers start Flower at once: they make shared runs twice, and wait for each other's cores."""
    if worker_id == "master":
        return
    claim = tmp_path_factory.getbasetemp().parent / "end-to-end"
    try:
        with claim.open("x") as file:
            file.write(worker_id)
    except FileExistsError:
        assert claim.read_text() == worker_id, "end-to-end tests on two workers: tests/conftest.py deals them to one"


@pytest.fixture(scope="session")
def _kept_home() -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="e2e-home-", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def flower_home(_kept_home: Path) -> Path:
    """A FLWR_HOME as new but for the app in it, whose loops are compiled: half of the CPU time of a short run."""
    for entry in _kept_home.iterdir():
        if entry.is_dir() and entry.name != "apps":
            shutil.rmtree(entry)
        elif entry.is_file():
            entry.unlink()
    return _kept_home
