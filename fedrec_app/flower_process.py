"""Processes of Flower: where its commands are, what environment they need, and how they end with their children."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from fedrec_app.errors import ConfigError, FedrecError

QUIET = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
}
"""Environment of every command of Flower: no installation at run time, no telemetry, no look for updates."""
_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


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


def flower_environment(home: str = "") -> dict[str, str]:
    """Returns the environment of a command of Flower: ours, quiet, with the commands of this Python first.

    Args:
        home: its FLWR_HOME; "" for the caller's.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **QUIET, "PATH": path, **({"FLWR_HOME": home} if home else {})}


def free_port() -> int:
    """Returns a port of this machine's loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Returns whether somebody accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def host_and_port(text: str) -> tuple[str, int]:
    """Returns the two parts of an address.

    Args:
        text: HOST:PORT.

    Raises:
        ConfigError: it is something else.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{text!r} is no HOST:PORT")
    return host, int(port)


def one_thread_each() -> None:
    """Makes processes compute with one thread each: those that are started from now on, and this one, where neither
    numpy nor torch are loaded, which read this once. What the environment says already stays."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")


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
    family |= living_in(home)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=patience)
    alive = {*alive, *living_in(home)}
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def living_in(home: str) -> set[psutil.Process]:
    """Returns the processes whose FLWR_HOME this is; none for ""."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter() if home else ():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("FLWR_HOME") == home:
                found.add(process)
    return found
