"""Every block of docs/strategies.md is executed, in its order, as a reader would."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fedrec_app.artifacts import RunFolder
from strategies.registry import BUILT_IN
from tests.conftest import REPO
from tests.e2e.helpers import sandbox
from tests.e2e.walk import Walk

PAGE = REPO / "docs" / "strategies.md"
NAME = "tempered-rows"


@pytest.fixture
def walk() -> Iterator[Walk]:
    with sandbox() as place:
        yield Walk(place)


@pytest.mark.timeout(600)
def test_every_block_of_the_page_runs(walk: Walk, flower_home: Path) -> None:
    walk.place.environment["FLWR_HOME"] = str(flower_home)
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert [kind for kind, _ in blocks].count("python") == 4
    try:
        for kind, text in blocks:
            if kind == "sh":
                for line in text.replace("\\\n", " ").splitlines():
                    run(walk, line)
            elif match := re.match(r"# (\S+\.py)\n", text):
                (walk.place.folder / match[1]).write_text(text.split("\n", 1)[1])
            else:
                script = walk.place.folder / "block.py"
                script.write_text(text)
                printed = walk.call("python", str(script))
                assert "passed" in printed
                assert "FAILED" not in printed
    finally:
        for process in psutil.process_iter(["environ"]):
            if (process.info["environ"] or {}).get("FLWR_HOME") == str(flower_home):
                process.kill()
    runs = [RunFolder(folder).read_summary() for folder in walk.place.folder.rglob("????-??-??/*") if folder.is_dir()]
    assert [summary["status"] for summary in runs] == ["completed"] * 3
    assert sorted(summary["strategy"] for summary in runs) == ["fedadam", NAME, NAME]


def run(walk: Walk, line: str) -> None:
    """Runs a line of the page: of the two commands that a checkout is needed for, `flwr run .` is given its path."""
    if line.startswith("pip install "):
        walk.install(str(walk.place.folder / line.split()[-1]))
    elif line.startswith("flwr run ."):
        settings = f'output-dir="{walk.place.outputs}" '
        shell(walk, line.replace("run .", f"run {REPO}").replace("-c '", f"-c '{settings}"))
    else:
        shell(walk, line)


def shell(walk: Walk, line: str) -> None:
    environment = {
        **walk.place.environment,
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "39619",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    done = subprocess.run(
        ["bash", "-ec", line], cwd=walk.place.folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_the_new_strategy_of_the_page_is_under_forty_lines() -> None:
    (text,) = re.findall(r"```python\n# \S+/strategy.py\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert len(text.splitlines()) < 40


def test_the_page_names_every_strategy() -> None:
    table = PAGE.read_text().split("## What there is")[1].split("## Combine")[0]
    names = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([a-z-]+)`", names)) == set(BUILT_IN)


def test_no_built_in_strategy_needs_more_than_about_120_lines() -> None:
    files = {REPO / f"{path.partition(':')[0].replace('.', '/')}.py" for path in BUILT_IN.values()}
    lines = {file.name: len(file.read_text().splitlines()) for file in files}
    assert {name: count for name, count in lines.items() if count > 140} == {}
