"""What a command found: tables for people, one JSON object for programs."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from benchmarks.measure import MB, Timing, environment

stdout, stderr = Console(), Console(stderr=True)

TARGETS: dict[str, tuple[float, float]] = {
    "mf": (20, 40),
    "neumf": (6, 10),
    "vmap": (3, 5),
    "threads": (1.7, 1.9),
    "evaluate": (100, 150),
    "aggregate": (10, 25),
    "flower": (80, 150),
    "async": (2, 5),
}
"""Ratios to reach: at least, and hoped for."""

LIMITS: dict[str, float] = {"clip-mf": 1.3, "clip-mf-bce": 1.3, "clip-transformer": 2.0}
"""Ratios of what something costs, not to be passed."""


@dataclass(frozen=True)
class Comparison:
    """One figure: our way against the naive one.

    Attributes:
        key: a key of TARGETS or LIMITS; other keys are told beside them and do not stand among the ratios.
        title: what is done.
        baseline_is, ours_is: how each does it.
        baseline, ours: what it took.
        by: which seconds the ratio is of.
        checks: figures that show that both did the same work.
    """

    key: str
    title: str
    baseline_is: str
    ours_is: str
    baseline: Timing
    ours: Timing
    by: Literal["cpu", "wall"] = "cpu"
    checks: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times as long the baseline takes: the ratio of medians."""
        return statistics.median(self._seconds(self.baseline)) / statistics.median(self._seconds(self.ours))

    @property
    def ratio_spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio that single repeats allow."""
        slow, fast = self._seconds(self.baseline), self._seconds(self.ours)
        return min(slow) / max(fast), max(slow) / min(fast)

    def as_json(self) -> dict[str, Any]:
        """Returns the figure with everything that it was made of."""
        low, high = self.ratio_spread
        return {
            "title": self.title,
            "ratio": self.ratio,
            "ratio_spread": {"min": low, "max": high},
            "ratio_of": f"{self.by} seconds",
            "target": TARGETS.get(self.key),
            "limit": LIMITS.get(self.key),
            "repeats": len(self.ours.wall),
            "baseline": {"what": self.baseline_is, **self.baseline.as_json()},
            "ours": {"what": self.ours_is, **self.ours.as_json()},
            "checks": self.checks,
        }

    def _seconds(self, timing: Timing) -> list[float]:
        return timing.cpu if self.by == "cpu" else timing.wall


@dataclass
class Report:
    """Everything that one command found.

    Attributes:
        command: train, aggregate, ...
        quick: tiny sizes: the figures mean nothing.
        data: what was measured on.
        comparisons: the figures.
        more: what has no baseline, by name, JSON values.
    """

    command: str
    quick: bool
    data: str
    comparisons: list[Comparison] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Returns the object that `--json` prints."""
        return {
            "command": self.command,
            "meaningful": not self.quick,
            "data": self.data,
            "ratios": {each.key: each.ratio for each in self.comparisons if each.key in TARGETS | LIMITS},
            "results": {each.key: each.as_json() for each in self.comparisons},
            **self.more,
            "environment": environment(),
        }

    def show(self, as_json: bool) -> None:
        """Prints the table, and with `as_json` the object as the last line of standard output."""
        console = stderr if as_json else stdout
        if self.quick:
            console.print("[bold red]--quick: tiny sizes, to see that it runs; these figures mean nothing[/]")
        if self.comparisons:
            console.print(self._table())
        if as_json:
            print(json.dumps(self.as_json()))

    def _table(self) -> Table:
        where = environment()
        kinds = " or ".join(sorted({each.by for each in self.comparisons}))
        table = Table(
            title=f"bench.py {self.command}: {self.data}",
            caption=f"{where['cpu']}, {where['threads']} thread(s), torch {where['torch']}, numpy {where['numpy']}, "
            f"numba {where['numba']}, load {where['load'][0]:.1f}. Medians; peak memory above what was held before; "
            f"ratios of {kinds} seconds.",
        )
        for column in ("what", "CPU s", "wall s", "peak MB", "ratio", "target"):
            table.add_column(column, justify="left" if column == "what" else "right")
        for each in self.comparisons:
            low, high = each.ratio_spread
            table.add_row(f"[bold]{each.key}[/]: {each.title}")
            table.add_row(f"  {each.baseline_is}", *_cells(each.baseline))
            table.add_row(
                f"  {each.ours_is}",
                *_cells(each.ours),
                f"[bold]x{each.ratio:.3g}[/]\n({low:.3g}-{high:.3g})",
                _aim(each.key),
                end_section=True,
            )
        return table


def _aim(key: str) -> str:
    if key in LIMITS:
        return f"at most\nx{LIMITS[key]:g}"
    return f"x{TARGETS[key][0]:g}\nx{TARGETS[key][1]:g}" if key in TARGETS else ""


def _cells(timing: Timing) -> list[str]:
    cpu = f"{statistics.median(timing.cpu):.4g}" if timing.cpu else "-"
    peak = "-" if timing.peak is None else f"{timing.peak / MB:.0f}"
    return [cpu, f"{statistics.median(timing.wall):.4g}", peak]
