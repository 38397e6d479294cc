"""Memory, file descriptors and threads of processes while they run, and whether they grow."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from scipy import stats

WARM_UP = 0.1
"""Share of the rounds that fills caches, and does not count."""
FLAT = 0.01
"""Growth over all further rounds, as a share of what there is, that nobody would call growth."""
A_HALF = 0.5
"""The same of descriptors and threads, in numbers of them."""
_BLOCKS = 20
_MEGABYTE = 1e6


@dataclass
class Series:
    """One process over time.

    Attributes:
        rounds: (n,) how many rounds were over at each sample; with parts of a round by time.
        memory: (n,) resident bytes.
        files: (n,) file descriptors.
        threads: (n,) threads.
    """

    rounds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    threads: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Growth:
    """How a figure of a process changes with the rounds.

    Attributes:
        level: median.
        slope: a round.
        error: standard error of the slope, of the means of blocks of rounds: samples that follow each other are alike.
        rounds: that were looked at.
        grows: whether it does.
    """

    level: float
    slope: float
    error: float
    rounds: float
    grows: bool

    @property
    def share(self) -> float:
        """Growth over all rounds that were looked at, as a share of the level."""
        return self.slope * self.rounds / self.level if self.level else 0.0


def memory_growth(rounds: Sequence[float], values: Sequence[float], total: int) -> Growth | None:
    """Returns how memory changes with the rounds, once caches are filled; None for a process that was there too short.

    It grows where a straight line through the means of 20 blocks rises by more than 1 % of the memory over the rounds
    that were looked at, and by more than chance (p < 0.01, one-sided).

    Args:
        rounds: (n,) at each sample.
        values: (n,) bytes.
        total: rounds of the run.
    """
    return _growth(rounds, values, total, lambda level: FLAT * level)


def count_growth(rounds: Sequence[float], values: Sequence[float], total: int) -> Growth | None:
    """Returns how a number of descriptors or threads changes, as `memory_growth` does.

    It grows where that line rises by more than a half. One that is never given back makes it rise so, unless it was
    taken in the first or the last tenth; a pool that breathes does not.
    """
    return _growth(rounds, values, total, lambda level: A_HALF)


def _growth(
    rounds: Sequence[float], values: Sequence[float], total: int, least: Callable[[float], float]
) -> Growth | None:
    x, y = np.asarray(rounds, dtype=float), np.asarray(values, dtype=float)
    late = x >= WARM_UP * total
    x, y = x[late], y[late]
    if len(x) < 2 * _BLOCKS or np.ptp(x) < (1 - WARM_UP) * total / 2:
        return None
    edges = np.linspace(x[0], x[-1], _BLOCKS + 1)
    block = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, _BLOCKS - 1)
    there = [index for index in range(_BLOCKS) if (block == index).any()]
    means = np.array([(x[block == index].mean(), y[block == index].mean()) for index in there])
    fit = stats.linregress(means[:, 0], means[:, 1])
    slope, error = float(fit.slope), float(fit.stderr)
    by_chance = float(stats.t.sf(slope / error, len(means) - 2)) if error > 0 else float(slope <= 0)
    level, span = float(np.median(y)), float(np.ptp(x))
    return Growth(level, slope, error, span, slope * span > least(level) and by_chance < 0.01)


class Sampler:
    """Looks at processes again and again, in a thread.

    Args:
        processes: returns who is to be looked at, by name; a name goes with one process at a time.
        done: returns how many rounds are over.
        every: seconds between two looks.
    """

    def __init__(
        self, processes: Callable[[], Mapping[str, psutil.Process]], done: Callable[[], int], every: float
    ) -> None:
        self.series: dict[str, Series] = {}
        self._processes, self._done, self._every = processes, done, every
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._began_round = time.monotonic()
        self._round, self._last_took = 0, math.inf

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.set()
        self._thread.join()

    def look(self) -> None:
        """Notes what every process has now."""
        at = self._progress()
        for name, process in self._processes().items():
            try:
                with process.oneshot():
                    values = process.memory_info().rss, process.num_fds(), process.num_threads()
            except psutil.Error:
                continue
            series = self.series.setdefault(name, Series())
            for kept, value in zip((series.memory, series.files, series.threads), values, strict=True):
                kept.append(float(value))
            series.rounds.append(at)

    def _run(self) -> None:
        while not self._ends.wait(self._every):
            self.look()

    def _progress(self) -> float:
        now, done = time.monotonic(), self._done()
        if done > self._round:
            self._last_took = (now - self._began_round) / (done - self._round)
            self._round, self._began_round = done, now
        return self._round + min((now - self._began_round) / self._last_took, 0.99)


def findings(series: Mapping[str, Series], total: int) -> list[dict[str, Any]]:
    """Returns, for every process that was there for most of the run, what it had and whether that grew."""
    rows = []
    for name, one in sorted(series.items()):
        memory = memory_growth(one.rounds, one.memory, total)
        files = count_growth(one.rounds, one.files, total)
        threads = count_growth(one.rounds, one.threads, total)
        if memory is None or files is None or threads is None:
            continue
        rows.append(
            {
                "process": name, "samples": len(one.rounds), "mb": memory.level / _MEGABYTE,
                "kb_a_round": memory.slope / 1e3, "kb_error": memory.error / 1e3, "growth": memory.share,
                "files": files.level, "most_files": max(one.files), "threads": threads.level,
"grows": [
                    what
                    for what, growth in (("memory", memory), ("files", files), ("threads", threads))
                    if growth.grows
                ],
            }
        )  # fmt: skip
    return rows
