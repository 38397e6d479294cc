"""Where the real data sets are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Returns the folder of FEDREC_TEST_DATA, or shared/data beside the checkout; in CI it must be there."""
    folder = Path(os.environ.get("FEDREC_TEST_DATA") or _CHECKOUT.parent / "shared" / "data")
    if not folder.is_dir():
        message = f"no test data at {folder}: set FEDREC_TEST_DATA"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
