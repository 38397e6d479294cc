"""Holds the end-to-end tests to one worker, and gives each module a home of Flower."""

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


@pytest.fixture(scope="module")
def flower_home() -> Iterator[Path]:
    """A FLWR_HOME of the module's own, with a short path: Ray keeps sockets in it."""
    folder = tempfile.mkdtemp(prefix="e2e-home-", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
