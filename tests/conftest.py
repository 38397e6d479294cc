"""Where the real data is, and how several workers share the suite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

REPO = Path(__file__).resolve().parent.parent
# What starts Flower, Ray or a fresh environment: each test keeps more than one core busy, and most share a run.
END_TO_END = "tests/e2e/"


class FilesWhole(LoadScopeScheduling):
    """Deals out whole files, so that what a module's tests share is made once, and all of `tests/e2e` to one worker.

    `--dist loadgroup` cannot do it: pytest-xdist 3.8 loses the groups under pytest 9.2, and says nothing.
    """

    def _split_scope(self, nodeid: str) -> str:
        return END_TO_END if nodeid.startswith(END_TO_END) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesWhole:
    """Returns `FilesWhole` in the order of the collection, whatever --dist says."""
    config.option.loadscopereorder = False
    return FilesWhole(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest piece of work first, so that no worker begins it while the others have nothing left."""
    items.sort(key=lambda item: not item.nodeid.startswith(END_TO_END))


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


@pytest.fixture(scope="session")
def lastfm_2k() -> Path:
    """The folder of Last.fm, HetRec 2011."""
    return _data_set("lastfm-2k")
