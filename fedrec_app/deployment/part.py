"""One process of a deployment, with the processes that it starts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fedrec_app.console import uncoloured
from fedrec_app.errors import FedrecError
from fedrec_app.flower_process import end_tree, living_in

_LAST_LINES = 5
_EXIT = "Exit Code: "


@dataclass
class Part:
    """A process that can be started, watched, and ended with what it started, again and again.

    Attributes:
        name: what messages call it.
        command: its command line.
        environment: of the process. Where its FLWR_HOME is the part's own, what a killed process leaves behind is found
            by it.
        log: file that it writes to; each start appends. None: where this process writes to.
        own_home: no other part has its FLWR_HOME, so that every process in it is this part's.
        process: the newest one.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path | None
    own_home: bool = True
    process: subprocess.Popen[bytes] | None = None
    _from: int = field(default=0, repr=False)

    @property
    def pid(self) -> int:
        """Of the newest process.

        Raises:
            FedrecError: it was never started.
        """
        if self.process is None:
            raise FedrecError(f"{self.name} was not started")
        return self.process.pid

    @property
    def home(self) -> str:
        """Its FLWR_HOME, or "" where that is not its own."""
        return self.environment.get("FLWR_HOME", "") if self.own_home else ""

    @property
    def alive(self) -> bool:
        """Whether the process runs, if only to wait."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Starts the process, in a session of its own: a Ctrl-C at this terminal does not reach it.

        Raises:
            FedrecError: it runs already.
        """
        if self.alive:
            raise FedrecError(f"{self.name} runs already, as process {self.pid}")
        if self.log is None:
            self.process = subprocess.Popen(self.command, env=dict(self.environment), start_new_session=True)
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as stream:
            self._from = stream.tell()
            self.process = subprocess.Popen(
                self.command, env=dict(self.environment), stdin=subprocess.DEVNULL,
                stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip

    def stop(self, patience: float = 10.0) -> None:
        """Ends the process and all that it started: asked first, killed after `patience` seconds."""
        if self.process is None:
            return
        self.resume()
        # The number of a process that has ended may be somebody else's by now.
        if self.alive:
            end_tree(self.process.pid, self.home, patience)
            self.process.wait(timeout=patience)
        for left in self.family():
            if left.is_running():
                end_tree(left.pid, self.home, patience)

    def kill(self) -> None:
        """Kills the process and nothing else, as a crash would: no good-bye, and its children are on their own."""
        if self.alive and self.process is not None:
            self.process.kill()
            self.process.wait(timeout=10)

    def restart(self) -> None:
        """Stops the process where it runs, and starts it anew."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stops the clock of the process: it is there and does nothing."""
        if self.alive:
            psutil.Process(self.pid).suspend()

    def resume(self) -> None:
        """Makes a paused process go on."""
        if self.alive:
            psutil.Process(self.pid).resume()

    def send(self, number: signal.Signals) -> None:
        """Sends the process a signal."""
        if self.alive and self.process is not None:
            self.process.send_signal(number)

    def family(self) -> set[psutil.Process]:
        """Returns the process, what it started, and what an earlier one left behind in its FLWR_HOME.

        Those that have ended are not among them, though Flower leaves them in the table of processes.
        """
        found = living_in(self.home)
        # A session keeps the number of its leader taken: where that is a new process, the session is gone.
        if self.process is not None and (self.alive or not psutil.pid_exists(self.process.pid)):
            found |= _in_session(self.process.pid)
        if self.alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(self.pid)
                found |= {root, *root.children(recursive=True)}
        return {process for process in found if not _ended(process)}

    def logged(self) -> str:
        """Returns what the newest process has written to its log."""
        if self.log is None or not self.log.is_file():
            return ""
        with self.log.open("rb") as stream:
            stream.seek(self._from)
            return stream.read().decode(errors="replace")

    def wait(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Waits until the process is ready.

        Args:
            ready: is asked every fifth of a second.
            seconds: at most.
            what: is waited for, in words.

        Raises:
            FedrecError: the process ended, or it is too late.
        """
        end = time.monotonic() + seconds
        while not ready():
            if not self.alive:
                code = None if self.process is None else self.process.returncode
                raise FedrecError(f"{self.name} ended with code {code} before {what}: {self.last_words()}")
            if time.monotonic() > end:
                raise FedrecError(f"{self.name}: not within {seconds:.0f} s: {what}; see {self.log}")
            time.sleep(0.2)

    def last_words(self) -> str:
        """Returns why it ended, as far as its log tells, in one line."""
        lines = [line.strip() for line in uncoloured(self.logged()).splitlines()]
        for index, line in reversed(list(enumerate(lines))):
            if _EXIT in line:
                # Flower says it in a block of lines, and then logs how it shuts down.
                block = lines[index : lines.index("", index) if "" in lines[index:] else None]
                return " / ".join([line[line.index(_EXIT) :], *block[1:]])
        return " / ".join(line for line in lines[-_LAST_LINES:] if line)[-600:] or "its log is empty"


def _in_session(leader: int) -> set[psutil.Process]:
    """Returns what a process started that led a session of its own, also after it has ended."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader and not _ended(process):
                found.add(process)
    return found


def _ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
