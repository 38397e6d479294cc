"""`fedrec run`: `flwr run` with its traps taken out.

Flower installs the app's dependencies anew for each run, leaves a SuperLink behind, exits 0 for runs that failed, and
loses relative paths. Here the environment is set, a local SuperLink is started on a free port with a home of its own
and stopped again with all that it started, and the exit code is the run's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fedrec_app.artifacts import CONFIG, SUMMARY, RunFolder
from fedrec_app.config import Scalar, to_toml
from fedrec_app.errors import FedrecError

START_TIMEOUT = 90.0
# Ray's sockets lie up to 66 characters below its folder, and a socket's path has at most 107.
_LONGEST_RAY_DIR = 40
_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
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
def ends_through_finally() -> Iterator[None]:
    """While it is open, SIGTERM and SIGHUP end the program as Ctrl-C does: through its `finally` clauses.

    The exit code is the shell's, 128 + the signal. Outside the main thread, where no signal arrives, nothing changes.
    """

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    with _handlers({number: stop for number in _STOPPING if number != signal.SIGINT}):
        yield


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """While it is open, a second Ctrl-C does not cut short the clearing up after the first."""
    with _handlers(dict.fromkeys(_STOPPING, signal.SIG_IGN)):
        yield


@contextlib.contextmanager
def _handlers(wanted: Mapping[int, Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A signal that is ignored stays ignored (nohup), and a handler that C code has set cannot be put back (None).
    kept = {n: h for n in wanted if (h := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
    for number in kept:
        signal.signal(number, wanted[number])
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def local_superlink() -> Iterator[dict[str, str]]:
    """Yields the environment in which `flwr` finds a SuperLink of our own; it is ended with all its children."""
    home = tempfile.mkdtemp(prefix="fedrec-flwr-")
    port = _free_port()
    environment = {**os.environ, **_QUIET, "FLWR_HOME": home, "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    if len(home) <= _LONGEST_RAY_DIR:
        environment["RAY_TMPDIR"] = home
    log_path = Path(home) / "superlink.log"
    command = [
        executable("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess",
        "--control-api-address", f"127.0.0.1:{_free_port()}", "--host", "127.0.0.1", "--port", str(port),
        "--database", str(Path(home) / "state.db"),
    ]  # fmt: skip
    try:
        with (
            log_path.open("wb") as log,
            subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as process,
        ):
            try:
                _wait_for(process, port, log_path)
                yield environment
            finally:
                with undisturbed():
                    end_tree(process.pid, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def end_tree(pid: int, home: str = "", patience: float = 5.0) -> None:
    """Ends a process and everything that it started: asked first, killed after `patience` seconds.

    Args:
        pid: the process; it may have ended already.
        home: a FLWR_HOME; processes that live in it are ended too, even if their parent is gone (Ray's after a crash).
        patience: in seconds.
    """
    family: set[psutil.Process] = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        family |= {root, *root.children(recursive=True)}
    family |= _living_in(home)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=patience)
    alive = {*alive, *_living_in(home)}
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def _living_in(home: str) -> set[psutil.Process]:
    found: set[psutil.Process] = set()
    for process in psutil.process_iter() if home else ():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("FLWR_HOME") == home:
                found.add(process)
    return found


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
        FedrecError: the run could not start, or failed. summary.json says why, also of a run that was stopped.
    """
    command = [executable("flwr"), "run", str(app_dir())]
    if connection:
        command.append(connection)
        environment = contextlib.nullcontext({**os.environ, **_QUIET})
    else:
        command += ["--federation-config", f"num-supernodes={num_nodes} client-resources-num-cpus={client_cpus}"]
        environment = local_superlink()
    resumed = str(overrides.get("checkpoint.resume-from", ""))
    watch = _Watch(output_dir, on_log, on_round, Path(resumed) if resumed else None)
    try:
        with ends_through_finally(), environment as env, tempfile.TemporaryDirectory(prefix="fedrec-run-") as scratch:
            # A file, because of the quotes that `flwr run -c` cannot carry.
            settings = Path(scratch) / "settings.toml"
            settings.write_text(to_toml({**overrides, "output-dir": str(output_dir)}))
            with subprocess.Popen(
                [*command, "--stream", "-c", str(settings)],
                env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            ) as process:  # fmt: skip
                try:
                    watch.follow(process)
                finally:
                    with undisturbed():
                        end_tree(process.pid)
    finally:
        watch.say_failed("it was stopped before it could say why")
    if watch.folder is None:
        raise FedrecError("the run ended before it began; Flower says:\n" + "\n".join(watch.last_lines))
    summary = watch.folder.read_summary()
    if summary.get("status") != "completed":
        raise FedrecError(f"the run failed: {summary.get('error', 'no reason given')} ({watch.folder.path})")
    return watch.folder


@dataclass
class _Watch:
    """Follows `flwr run --stream`, and finds the folder that its run writes to: a new one, or that of the run that is
    resumed."""

    output_dir: Path
    on_log: Callable[[str], None]
    on_round: Callable[[dict[str, Any]], None]
    resumed: Path | None = None
    folder: RunFolder | None = None
    run_id: str = ""
    seen: int = 0
    before: set[Path] = field(default_factory=set)
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=15))

    def __post_init__(self) -> None:
        self.before = set(_run_folders(self.output_dir))

    def follow(self, process: subprocess.Popen[str]) -> None:
        """Reads what the process prints until it ends."""
        for line in process.stdout or ():
            self.on_log(line.rstrip("\n"))
            self.last_lines.append(line.rstrip("\n"))
            if "Successfully started run" in line:
                self.run_id = line.split("Successfully started run", 1)[1].split()[0]
            self._look()
        process.wait()
        self._look()

    def say_failed(self, why: str) -> None:
        """Writes the summary of a run that wrote none itself."""
        self._look()
        if self.folder is not None and not (self.folder.path / SUMMARY).is_file():
            self.folder.write_summary({"status": "failed", "error": why})

    def _look(self) -> None:
        if self.folder is None:
            self.folder = self._find()
        if self.folder is not None:
            records = self.folder.read_metrics()
            for record in records[self.seen :]:
                self.on_round(record)
            self.seen = len(records)

    def _find(self) -> RunFolder | None:
        new = set(_run_folders(self.output_dir)) - self.before
        if self.resumed is not None:
            new.add(self.resumed)
        for folder in sorted(new) if self.run_id else ():
            config = folder / CONFIG
            if config.is_file() and config.read_text().startswith(f"# run-id {self.run_id}\n"):
                return RunFolder(folder)
        return None


def _run_folders(output_dir: Path) -> list[Path]:
    return list(output_dir.glob("????-??-??/*"))


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
