"""Machine code is kept by what was compiled, not by where it lies: Flower unpacks the app anew for every run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPO

CALL = """
import numpy as np
from fedrec_app import splitmix
splitmix.uniform(np.uint64(3))
print(sum(splitmix.uniform.stats.cache_hits.values()))
"""


def copied(folder: Path) -> Path:
    (folder / "strategies").mkdir(parents=True)
    (folder / "fedrec_app").mkdir()
    for name in ("__init__.py", "compiled.py", "splitmix.py"):
        shutil.copyfile(REPO / "fedrec_app" / name, folder / "fedrec_app" / name)
    return folder


def hits(folder: Path, cache: Path) -> int:
    """How often the copy in this folder finds its function compiled."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(cache), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", CALL], env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_another_copy_finds_what_was_compiled_until_a_source_changes(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert hits(copied(tmp_path / "one"), cache) == 0
    other = copied(tmp_path / "other")
    assert hits(other, cache) == 1
    assert not list(other.rglob("*.nbi"))
    (other / "fedrec_app" / "more.py").write_text("from fedrec_app.compiled import njit\n")  # inlined somewhere, say
    assert hits(other, cache) == 0
    assert len(list((cache / "fedrec").iterdir())) == 2


def test_where_nothing_can_be_written_loops_are_compiled_all_the_same(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    assert hits(copied(tmp_path / "one"), nowhere) == 0
