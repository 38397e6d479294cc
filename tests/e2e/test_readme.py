"""Every command that the README, and the quickstart, show is run as it stands, through Flower for two rounds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

REPO = Path(__file__).resolve().parents[2]


def commands(text: str) -> list[str]:
    """Returns the indented lines outside fenced blocks."""
    outside = re.sub(r"```.*?```", "", text, flags=re.S)
    return [line.strip() for line in outside.splitlines() if line.startswith("    ") and line.strip()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, with this environment as its `.venv`."""
    copy = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        check=True,
    ).stdout
    for name in tracked.decode().split("\0"):
        if name and (REPO / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, copy / name)
    (copy / ".venv").symlink_to(sys.prefix)
    checksum = subprocess.run(["cksum"], input=(copy / "pyproject.toml").read_bytes(), capture_output=True, check=True)
    stamp = copy / ".venv" / f".fedrec-report-{checksum.stdout.split()[0].decode()}"
    stamp.touch()
    return copy


def shell(line: str, checkout: Path, home: Path, limit: float = 240) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "FLWR_HOME": str(home)}
    environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"] = "39517"
    done = subprocess.run(
        ["bash", "-ec", line], cwd=checkout, env=environment, capture_output=True, text=True, timeout=limit
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def two_rounds(line: str) -> str:
    """Returns a command that starts Flower with fewer rounds, of which each takes a second or two there."""
    if line == "./scripts/quickstart.sh":
        return f"{line} -c num-server-rounds=2"
    if line.startswith("flwr run"):
        assert "num-server-rounds=20" in line
        return line.replace("num-server-rounds=20", "num-server-rounds=2")
    return line


def newest_run(checkout: Path) -> str:
    return str(sorted((checkout / "outputs").glob("????-??-??/*"))[-1].relative_to(checkout))


@pytest.mark.timeout(600)
def test_every_command_of_the_readme_works(checkout: Path, ml_100k: Path, flower_home: Path) -> None:
    rows = [(f"u{n % 30}", f"film {n * 7 % 23}", 1_000_000 + n) for n in range(400)]
    (checkout / "clicks.csv").write_text("user,film,ts\n" + "".join(f"{u},{f},{t}\n" for u, f, t in rows))
    exports, run_of_synthetic, first_run, ran = "", "", "", 0
    try:
        for line in commands((checkout / "README.md").read_text()):
            if line == "./scripts/test.sh" or line.startswith("./scripts/deploy_loopback.sh"):
                continue  # this suite; the next test
            if line.startswith("export "):
                exports = f"{line}; "
                continue
            if line.startswith("fedrec data prepare"):
                line += f" --source {ml_100k}"
            for name in ("outputs/<date>/<time>", "RUN_A"):
                line = line.replace(name, run_of_synthetic)
            line = line.replace("RUN_B", first_run)
            printed = shell(exports + two_rounds(line), checkout, flower_home)
            ran += 1
            if line.startswith("fedrec simulate --num-nodes") and not run_of_synthetic:
                run_of_synthetic = newest_run(checkout)
            if line == "./scripts/quickstart.sh":
                first_run = newest_run(checkout)
                shown = [text for text in commands(printed.split("Next:")[1].replace("\n  ", "\n    ")) if text]
                assert len(shown) == 3
                for following in shown:
                    shell(following, checkout, flower_home)
            if line.startswith("flwr run"):
                assert "done: best round" in printed
    finally:
        for process in psutil.process_iter(["cmdline", "environ"]):
            if (process.info["environ"] or {}).get("FLWR_HOME") == str(flower_home):
                process.kill()
    assert ran == 21


@pytest.mark.slow
def test_the_deployment_of_the_readme_works(checkout: Path, flower_home: Path) -> None:
    (line,) = [line for line in commands((checkout / "README.md").read_text()) if "deploy_loopback" in line]
    shell(f"{line} -c num-server-rounds=1", checkout, flower_home, limit=500)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ('model.name="not-there"', "not-there"),
        # Inside Flower: that `fedrec run` then fails is shown in test_flower_run.py.
        pytest.param('data.name="csv" data.path="not-there.csv"', "not-there.csv", marks=pytest.mark.slow),
    ],
    ids=["refused", "inside Flower"],
)
def test_the_quickstart_fails_when_the_run_fails(checkout: Path, tmp_path: Path, settings: str, named: str) -> None:
    done = subprocess.run(
        ["./scripts/quickstart.sh", "-c", settings], cwd=checkout,
        env={**os.environ, "FLWR_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode != 0
    assert named in done.stderr
    assert "Next:" not in done.stdout
