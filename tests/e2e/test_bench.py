"""The benchmark of whole runs through Flower and Ray; the other benchmarks are in tests/unit/test_bench.py."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPO

SCRIPT = REPO / "scripts" / "bench.py"


@pytest.mark.slow
def test_flower_runs_both_placements_through_ray() -> None:
    command = [sys.executable, str(SCRIPT), "flower", "--quick", "--json"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["ratios"]) == {"flower"}
    assert 0 < found["ratios"]["flower"] < float("inf")
    assert found["results"]["flower"]["baseline"]["what"] == "6 nodes of one user"
    assert found["results"]["flower"]["checks"]["difference_of_ndcg"] < 1e-4
