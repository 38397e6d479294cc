"""Seconds and memory of functions that take turns, so that a machine that slows down slows them all down."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

MB = 1e6


@dataclass
class Timing:
    """What the repeats of one function took.

    Attributes:
        cpu: CPU seconds of all threads of this process; empty where the work is done by others.
        wall: wall-clock seconds.
        peak: bytes above what the process held before, at the worst moment; None where it was not measured.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns medians and spread."""
        return {
            "cpu_seconds": spread(self.cpu),
            "wall_seconds": spread(self.wall),
            "peak_mb": None if self.peak is None else round(self.peak / MB, 1),
        }


@dataclass(frozen=True)
class Measured:
    """Timings by name, and what each function returned when it ran for the first time."""

    timings: dict[str, Timing]
    results: dict[str, Any]


def interleaved(
    contestants: Mapping[str, Callable[[], Any]], repeats: int, say: Callable[[str], None] = lambda text: None
) -> Measured:
    """Returns what the contestants took, one after the other in every repeat.

    Each runs twice before it is timed: once to compile, the result of which is kept, and once for its memory.

    Args:
        contestants: functions that do the same work at each call.
        repeats: how often each is timed.
        say: told what runs next.
    """
    results, timings = {}, {}
    for name, run in contestants.items():
        say(f"{name}: warming up")
        results[name] = run()
        timings[name] = Timing(peak=peak_memory(run))
    for repeat in range(repeats):
        for name, run in contestants.items():
            say(f"{name}: {repeat + 1} of {repeats}")
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            timings[name].cpu.append(time.process_time() - cpu)
            timings[name].wall.append(time.perf_counter() - wall)
    return Measured(timings, results)


def spread(values: list[float]) -> dict[str, float] | None:
    """Returns median, smallest and largest; None of nothing."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peak_memory(run: Callable[[], Any]) -> int | None:
    """Returns the bytes that a call needs above what the process holds, None where the kernel does not tell.

    Args:
        run: called once.
    """
    gc.collect()
    try:
        # Memory that was freed but not given back would be reused by the call and not be seen.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    before = process_memory("VmRSS")
    run()
    return max(process_memory("VmHWM") - before, 0)


def process_memory(key: str) -> int:
    """Returns bytes of this process that lie in memory: now ("VmRSS"), or at most since its start or `peak_memory`.

    Not ru_maxrss where there is another way: a child process inherits its parent's there.

    Args:
        key: "VmRSS" or "VmHWM".
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if key in fields:
            return int(fields[key].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment() -> dict[str, Any]:
    """Returns what a figure depends on: processor, versions, how busy the machine was."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "numba", "flwr", "ray")}
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
