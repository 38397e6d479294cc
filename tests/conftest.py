"""Shared fixtures: where the real data is, and runs that several tests look at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parent.parent


def real_data_dir() -> Path:
    """Returns the folder with the real data sets: $FEDREC_TEST_DATA, or ../shared/data beside the checkout."""
    return Path(os.environ.get("FEDREC_TEST_DATA", REPO.parent / "shared" / "data"))


def _data_set(name: str) -> Path:
    path = real_data_dir() / name
    if not path.is_dir():
        message = f"no real data in {path}: set FEDREC_TEST_DATA"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def ml_100k() -> Path:
    return _data_set("ml-100k")


@pytest.fixture(scope="session")
def amazon_video() -> Path:
    return _data_set("amazon-video")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors on busy cores are faster on one thread, and the same everywhere."""
    torch.set_num_threads(1)
