"""What a comparison shows: compare.md, compare.png, and the tables that the command prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrec_app.compare import COMPARISON, Comparison
from fedrec_app.compare_rows import CENTRALISED, FEDERATED
from fedrec_app.evaluation.sums import SAMPLED
from fedrec_app.files import write_atomically

REPORT, PICTURE = "compare.md", "compare.png"
_ACCURACY = ("hr@10", "ndcg@10", "recall@10", "precision@10", "f1@10")
_NEGATIVES = " (99 negatives)"
_NOTES = """\
Every row is the same code on the same split and is judged on the same users; where a row has rounds to choose from,
validation chose, and test was read once. Intervals are 95 %, over users (Poisson bootstrap), and say nothing of other
seeds. Differences are paired: both rows are judged on the same draws of users. p is two-sided and never below its
resolution, which the number of draws sets; none is corrected for how many differences there are.

A centralised row is a bound of the federated one only if its own settings were tuned as well: local rates that suit
users who train alone on a few items rarely suit batches of everybody's. Local-only takes all of its rounds and chooses
none."""


@dataclass(frozen=True)
class Figure:
    """A number of a row.

    Attributes:
        label: what it is.
        value: as text.
        interval: its 95 % interval as text, or "".
    """

    label: str
    value: str
    interval: str = ""


def figures(summary: dict[str, Any], metric: str) -> list[Figure]:
    """Returns what is shown of a row: accuracy, coverage, sampled metrics, best round, payload.

    Args:
        summary: of the row.
        metric: that chose the round.
    """
    found = []
    coverage = [name for name in summary["test"] if name.startswith("coverage@")]
    for name in dict.fromkeys((*_ACCURACY, metric, *coverage)):
        if name in summary["test"]:
            found.append(_figure(name, summary["test"], name))
    found += [_figure(n + _NEGATIVES, summary["sampled"], n) for n in ("hr@10", "ndcg@10") if n in summary["sampled"]]
    if "range" in summary:
        low, high = summary["range"]["test"][metric]
        found.append(Figure(f"{metric}, over seeds", f"{low:.4f} to {high:.4f}"))
    rounds = [one["best_round"] for one in summary.get("by_seed", [summary])]
    down, up = summary["bytes_down"] / 1e6, summary["bytes_up"] / 1e6
    found.append(Figure("best round", ", ".join(map(str, rounds))))
    return [*found, Figure("MB down", f"{down:.1f}"), Figure("MB up", f"{up:.1f}")]


def figures_by_label(comparison: Comparison) -> Iterator[tuple[str, list[Figure | None]]]:
    """Yields a label, and what it is of each row: None of a row that has no such figure."""
    rows = [figures(summary, comparison.about["metric"]) for summary in comparison.rows.values()]
    for label in dict.fromkeys(figure.label for row in rows for figure in row):
        yield label, [next((figure for figure in row if figure.label == label), None) for row in rows]


def differences(comparison: Comparison) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Yields (rows, metric, difference, 95 % interval, p, range over seeds) of any two rows in each metric."""
    for pair in comparison.differences:
        for name, found in pair["metrics"].items():
            (low, high), p = found["ci"], found["p"]
            label = name.removeprefix(SAMPLED) + _NEGATIVES if name.startswith(SAMPLED) else name
            few = p <= found["p_resolution"]
            seeds = found["seeds"]
            yield (
                f"{pair['row']} minus {pair['minus']}", label, f"{found['difference']:+.4f}",
                f"{low:+.4f} to {high:+.4f}", f"≤ {found['p_resolution']:.4f}" if few else f"{p:.4f}",
                f"{min(seeds):+.4f} to {max(seeds):+.4f}" if len(seeds) > 1 else "",
            )  # fmt: skip


def settings_lines(comparison: Comparison) -> list[str]:
    """Returns, a line a row, which of its settings are not those of the federated row."""
    lines = []
    for name, summary in comparison.rows.items():
        changed = ", ".join(f"{key} = {here} (not {theirs})" for key, (theirs, here) in summary["settings"].items())
        if changed:
            lines.append(f"{name}: {changed}")
    return lines


def remarks(comparison: Comparison) -> list[str]:
    """Returns what a reader of the figures should know, a line each."""
    metric = comparison.about["metric"]
    said = [
        f"{name}: {remark}"
        for name, row in comparison.rows.items()
        for summary in row.get("by_seed", [row])
        for remark in summary.get("remarks", [])
    ]
    lines = list(dict.fromkeys(said))
    both = [comparison.rows[name]["test"][metric] for name in (FEDERATED, CENTRALISED) if name in comparison.rows]
    if len(both) == 2 and both[0] > both[1]:
        lines.append(
            f"centralised is below federated in {metric}: it is no bound. Settings that suit the one need not suit the "
            "other: tune it on validation, and give what was found to --centralised"
        )
    return lines


def title(comparison: Comparison) -> str:
    """Returns what was compared, in a line."""
    about = comparison.about
    seeds = about["seeds"]
    of = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of seeds {', '.join(map(str, seeds))}"
    return f"{about['model']} on {about['data']}, {about['protocol']}, test, {of}"


def warning(comparison: Comparison) -> str:
    """Returns what must stand wherever the figures do, or ""."""
    if comparison.about["protocol"] != "leaky-pfedrec":
        return ""
    return "leaky protocol: held-out items are never training negatives; not comparable"


def write_comparison(comparison: Comparison) -> Path:
    """Returns the path of compare.md, written with compare.png beside it.

    The picture needs matplotlib (`pip install 'fedrec[report]'`); without it the page says so and has none.

    Args:
        comparison: one that is complete.
    """
    shown = [[label, *map(_cell, cells)] for label, cells in figures_by_label(comparison)]
    lines = [f"# {title(comparison)}", "", *([f"**{warning(comparison)}**", ""] if warning(comparison) else [])]
    lines += _table(("", *comparison.rows), shown)
    lines += [f"\n{remark[0].upper()}{remark[1:]}." for remark in remarks(comparison)]
    pairs = list(differences(comparison))
    if pairs:
        columns = ("rows", "metric", "difference", "95 % interval", "p", "over seeds")
        lines += ["", "## Paired differences", "", *_table(columns, pairs)]
        lines += ["", f"{comparison.differences[0]['num_draws']} draws of users."]
    try:
        plot(comparison, comparison.folder / PICTURE)
        lines += ["", f"![metrics of the rows and their differences, with intervals]({PICTURE})"]
    except ImportError:
        lines += ["", "No picture: matplotlib is not installed (`pip install 'fedrec[report]'`)."]
    if settings := settings_lines(comparison):
        lines += ["", "## Settings that are not the federated row's", "", *(f"- {line}" for line in settings)]
    lines += ["", "## How to read this", "", _NOTES, "", f"All figures: {COMPARISON}. The runs: folder `runs`.", ""]
    path = comparison.folder / REPORT
    write_atomically(path, "\n".join(lines).encode())
    return path


def plot(comparison: Comparison, path: Path) -> None:
    """Draws two metrics of each row, and the differences of any two rows in the metric that chose the round.

    Args:
        comparison: with at least one row.
        path: the PNG file.
    """
    from matplotlib.figure import Figure as Canvas

    metric = comparison.about["metric"]
    canvas = Canvas(
        figsize=(13, 1.4 + 0.5 * max(len(comparison.rows), len(comparison.differences))), layout="constrained"
    )
    full, sampled, gaps = canvas.subplots(1, 3, width_ratios=(1, 1, 1.3))
    for axes, part, name, heading in (
        (full, "test", metric, f"{metric}, full ranking"),
        (sampled, "sampled", "ndcg@10", "ndcg@10, 99 negatives"),
    ):
        rows = {row: summary[part] for row, summary in comparison.rows.items() if name in summary[part]}
        _points(axes, [(row, part[name], part.get("ci", {}).get(name)) for row, part in rows.items()], heading)
        axes.set_xlim(left=0)
    pairs = [(f"{p['row']}\nminus {p['minus']}", p["metrics"][metric]) for p in comparison.differences]
    _points(
        gaps, [(label, found["difference"], found["ci"]) for label, found in pairs], f"{metric}, paired differences"
    )
    gaps.axvline(0, color="grey", linestyle=":")
    if not pairs:
        gaps.text(0.5, 0.5, "one row: no differences", ha="center", va="center", transform=gaps.transAxes)
    canvas.suptitle(
        f"{title(comparison)}{' (LEAKY PROTOCOL)' if warning(comparison) else ''}; 95 % intervals over users"
    )
    canvas.savefig(path, dpi=120)


def _points(axes: Any, points: Sequence[tuple[str, float, list[float] | None]], heading: str) -> None:
    """Draws values with their intervals, the first at the top."""
    for at, (_, value, interval) in enumerate(points):
        if interval is not None:
            axes.plot(interval, [at, at], color="tab:blue", linewidth=2)
        axes.plot([value], [at], "o", color="tab:blue")
    axes.set_yticks(range(len(points)), [label for label, _, _ in points], fontsize=8)
    axes.set_ylim(max(len(points), 1) - 0.5, -0.5)
    axes.set_title(heading, fontsize=10)
    axes.grid(alpha=0.3, axis="x")


def _figure(label: str, part: dict[str, Any], name: str) -> Figure:
    value, interval = part[name], part.get("ci", {}).get(name)
    text = "" if interval is None else f"{interval[0]:.3f}–{interval[1]:.3f}"
    return Figure(label, "-" if value is None else f"{value:.4f}", text)


def _cell(found: Figure | None) -> str:
    if found is None:
        return "-"
    return f"{found.value} ({found.interval})" if found.interval else found.value


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *rows)]
