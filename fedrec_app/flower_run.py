"""`fedrec run`: `flwr run` with its traps taken out.

Flower installs the app's dependencies anew for each run, leaves a SuperLink behind, exits 0 for runs that failed, and loses relative paths. Here the environment is set, a local
SuperLink is started on a free port with a home of its own and stopped again with all that it started, and the exit code is the run's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from fedrec_app.artifacts import CONFIG, SUMMARY, RunFolder
from fedrec_app.config import Scalar
from fedrec_app.errors import FedrecError

START_TIMEOUT = 90.0
_QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
}


def app_dir() -> Path:
    """Returns the folder with the app's pyproject.toml: the current one if it is fedrec, else where this package lies.

    Raises:
        FedrecError: neither is; the app is run from a checkout.
    """
    for folder in (Path.cwd(), Path(__file__).resolve().parent.parent):
        if (folder / "pyproject.toml").is_file() and (folder / "fedrec_app").is_dir():
            return folder
    raise FedrecError("no fedrec checkout here: run this in the folder with fedrec's pyproject.toml")


def executable(name: str) -> str:
    """Returns the path of a command of this Python environment.

    Raises:
        FedrecError: it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise FedrecError(f"the command {name!r} is not installed: pip install 'flwr[simulation]>=1.41,<2'")
    return found


@contextlib.contextmanager
def local_superlink() -> Iterator[dict[str, str]]:
    """Yields the environment in which `flwr` finds a SuperLink of our own; it and all its children are ended at the end."""
    home = tempfile.mkdtemp(prefix="fedrec-flwr-")
    port = _free_port()
    environment = {**os.environ, **_QUIET, "FLWR_HOME": home, "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    log_path = Path(home) / "superlink.log"
    command = [
        executable("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess",
        "--control-api-address", f"127.0.0.1:{_free_port()}", "--host", "127.0.0.1", "--port", str(port),
        "--database", str(Path(home) / "state.db"),
    ]  # fmt: skip
    with log_path.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)
    try:
        _wait_for(process, port, log_path)
        yield environment
    finally:
        end_tree(process.pid)
        shutil.rmtree(home, ignore_errors=True)


def end_tree(pid: int, patience: float = 10.0) -> None:
    """Ends a process and everything that it started: asked first, killed after `patience` seconds."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def run_with_flower(
    overrides: Mapping[str, Scalar],
    output_dir: Path,
    num_nodes: int,
    connection: str = "",
    client_cpus: int = 1,
    on_log: Callable[[str], None] = lambda line: None,
    on_round: Callable[[dict[str, Any]], None] = lambda record: None,
) -> RunFolder:
    """Returns the folder of a run that `flwr run` completed.

    Args:
        overrides: settings that differ from the defaults, checked.
        output_dir: absolute; where the run's folder goes.
        num_nodes: SuperNodes of a simulation; a connection brings its own.
        connection: a SuperLink connection of Flower's config.toml; "" for a local simulation.
        client_cpus: CPUs that a client of a simulation reserves; fewer mean more clients at a time.
        on_log: called with each line that Flower prints.
        on_round: called with each new line of metrics.jsonl, as an object.

    Raises:
        FedrecError: the run could not start, failed, or was stopped.
    """
    command = [executable("flwr"), "run", str(app_dir())]
    if connection:
        command.append(connection)
        environment = contextlib.nullcontext({**os.environ, **_QUIET})
    else:
        command += ["--federation-config", f"num-supernodes={num_nodes} client-resources-num-cpus={client_cpus}"]
        environment = local_superlink()
    settings = " ".join(f"{key}={_toml(value)}" for key, value in {**overrides, "output-dir": str(output_dir)}.items())
    command += ["--stream", "-c", settings]
    before = set(_run_folders(output_dir))
    with environment as env:
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            folder = _follow(process, output_dir, before, on_log, on_round)
        finally:
            end_tree(process.pid)
    if folder is None:
        raise FedrecError("the run ended before it began: see Flower's lines above")
    summary = RunFolder(folder).read_summary() if (folder / SUMMARY).is_file() else {}
    if summary.get("status") != "completed":
        raise FedrecError(
            f"the run failed: {summary.get('error', 'it was stopped before it could say why')} ({folder})"
        )
    return RunFolder(folder)


def _follow(
    process: subprocess.Popen[str],
    output_dir: Path,
    before: set[Path],
    on_log: Callable[[str], None],
    on_round: Callable[[dict[str, Any]], None],
) -> Path | None:
    assert process.stdout is not None
    folder: Path | None = None
    run_id, seen = "", 0
    for line in process.stdout:
        on_log(line.rstrip("\n"))
        if "Successfully started run" in line:
            run_id = line.split("Successfully started run", 1)[1].split()[0]
        folder = folder or _find(output_dir, before, run_id)
        if folder is not None:
            records = RunFolder(folder).read_metrics()
            for record in records[seen:]:
                on_round(record)
            seen = len(records)
    process.wait()
    return folder or _find(output_dir, before, run_id)


def _find(output_dir: Path, before: set[Path], run_id: str) -> Path | None:
    for folder in sorted(set(_run_folders(output_dir)) - before):
        config = folder / CONFIG
        if run_id and config.is_file() and config.read_text().startswith(f"# run-id {run_id}\n"):
            return folder
    return None


def _run_folders(output_dir: Path) -> list[Path]:
    return list(output_dir.glob("????-??-??/*"))


def _toml(value: Scalar) -> str:
    if isinstance(value, str):
        if "'" in value:
            raise FedrecError(f"the setting {value!r} holds a single quote, which `flwr run -c` cannot carry")
        return f"'{value}'"
    return json.dumps(value)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait_for(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end:
        if process.poll() is not None:
            tail = log_path.read_text(errors="replace").strip().splitlines()[-5:]
            raise FedrecError(f"the local SuperLink ended with code {process.returncode}: {' / '.join(tail)}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise FedrecError(f"the local SuperLink did not start within {START_TIMEOUT:.0f} s")
