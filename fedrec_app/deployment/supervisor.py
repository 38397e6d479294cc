"""Keeps a process running: starts it again, later and later, when it ends."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fedrec_app.errors import ConfigError


class Startable(Protocol):
    """What can be kept running."""

    name: str

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        ...

    def start(self) -> None:
        """Starts it."""

    def stop(self) -> None:
        """Ends it with all that it started, and clears up after one that has ended."""


@dataclass(frozen=True)
class Backoff:
    """How long to wait before each start: `first`, `first * factor`, ... up to `cap` seconds.

    The defaults suit an authenticated SuperNode. Its SuperLink refuses it while it holds an earlier process of it for
    alive, up to 60 s after that one was killed; an attempt costs two seconds of one core. Many nodes that lost the
    same SuperLink must not come back in one moment: hence the jitter.

    Attributes:
        first: seconds before the first restart.
        factor: of each wait to the one before.
        cap: most seconds of a wait, before jitter.
        jitter: each wait is this share longer or shorter, at random.
        healthy_after: seconds; a process that ran for so long had no trouble starting, and the waits begin anew.
    """

    first: float = 2.0
    factor: float = 2.0
    cap: float = 30.0
    jitter: float = 0.2
    healthy_after: float = 120.0

    def __post_init__(self) -> None:
        if not (0 < self.first <= self.cap and self.factor >= 1 and 0 <= self.jitter < 1 and self.healthy_after >= 0):
            raise ConfigError(
                f"no usable back-off: {self}: 0 < first <= cap, factor >= 1 and 0 <= jitter < 1 are needed"
            )

    def seconds(self, failures: int, draw: float) -> float:
        """Returns the wait before a start.

        Args:
            failures: in a row, 1 or more.
            draw: uniform in 0 to 1.
        """
        plain = self.cap
        # A process that failed for days has an exponent that no float holds.
        if failures <= 64:
            plain = min(self.cap, self.first * self.factor ** (failures - 1))
        return plain * (1 + self.jitter * (2 * draw - 1))


class Supervisor:
    """Runs a part in a thread of its own, and starts it again whenever it ends, with whatever exit code.

    A SuperNode also exits with code 0 when its SuperLink forgot it, so the code says nothing.

    Args:
        part: what is kept running.
        backoff: waits between its end and its next start.
        most_restarts: in a row without a healthy time between; None: it never gives up.
        say: is told of each end, start and giving up.
        draw: uniform numbers for the jitter.
        out_of_touch: is asked, about five times a second, why a part that lives is of no use; "" while it is. Such a
            part is ended, and started again as one that ended by itself.
    """

    def __init__(
        self,
        part: Startable,
        backoff: Backoff | None = None,
        most_restarts: int | None = None,
        say: Callable[[str], None] = lambda line: None,
        draw: Callable[[], float] = random.random,
        out_of_touch: Callable[[], str] = lambda: "",
    ) -> None:
        self.part, self.backoff, self.most_restarts = part, backoff or Backoff(), most_restarts
        self._say, self._draw, self._out_of_touch = say, draw, out_of_touch
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.restarts = 0
        self.gave_up = False

    def start(self) -> None:
        """Starts the part, and the thread that watches over it."""
        if not self.part.alive:
            self.part.start()
        self._thread = threading.Thread(target=self._watch, name=f"supervisor of {self.part.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the part for good."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self.part.stop()

    def wait(self) -> None:
        """Returns when it has given up or was stopped."""
        # An endless join would not let a signal through.
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(timeout=0.5)

    def _watch(self) -> None:
        failures, since = 0, time.monotonic()
        while not self._stopping.wait(0.2):
            if self.part.alive:
                if why := self._out_of_touch():
                    self._say(f"{self.part.name} lives but {why}: it is ended")
                    self.part.stop()
                continue
            lasted = time.monotonic() - since
            failures = 1 if lasted >= self.backoff.healthy_after else failures + 1
            if self.most_restarts is not None and failures > self.most_restarts:
                self.gave_up = True
                self._say(
                    f"{self.part.name} ended after {lasted:.0f} s: given up after {failures - 1} restarts in a row"
                )
                return
            pause = self.backoff.seconds(failures, self._draw())
            self._say(f"{self.part.name} ended after {lasted:.0f} s: restart {self.restarts + 1} in {pause:.1f} s")
            if self._stopping.wait(pause):
                return
            self.part.stop()
            self.restarts += 1
            since = time.monotonic()
            try:
                self.part.start()
            except OSError as error:  # no memory, no disk: as a process that ends at once
                self._say(f"{self.part.name} does not start: {error}")
