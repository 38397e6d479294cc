"""Closed-form models on several data sets: federated in one round, settings chosen on validation, against EASE."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.page import short
from experiments.runs import Finished, Runs

DATA_SETS = ("ml-100k", "amazon-video", "lastfm-2k")
REFERENCE = "`ease`"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        model: its name in the registry.
        options: of the model, that are fixed.
        grid: option -> values; validation chooses.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)

    def points(self) -> Iterator[dict[str, Any]]:
        """Yields the options of each point of the grid."""
        combinations: list[dict[str, Any]] = [{}]
        for name, values in self.grid.items():
            combinations = [{**point, name: value} for point in combinations for value in values]
        for point in combinations:
            yield {**self.options, **point}


PENALTIES = [30.0, 100.0, 300.0, 1000.0]
ROWS: dict[str, Row] = {
    "`popularity`": Row("popularity"),
    "`itemknn`": Row("itemknn", grid={"neighbors": [50, 100, 200], "shrinkage": [0.0, 10.0]}),
    REFERENCE: Row("ease", grid={"regularization": PENALTIES}),
    "`ease`, recent items weigh more": Row("ease", grid={"regularization": PENALTIES, "recency": [0.25, 0.5, 1.0]}),
}
NOTES = """\
`ease` on eight nodes is the central closed form: the nodes' counts add up to the same matrix (a test holds it to 1e-6),
so its rows are the centralised ones too. "minus" is the paired difference of test NDCG@10 to it, with a 95 % bootstrap
interval over users. Of large catalogs 256 weights an item are kept, of the 8,000 most popular items. `lastfm-2k` has no
time, so nothing there is recent and its held-out items are drawn at random.
"""


def models(runs: Runs, only: str = "") -> str:
    """Returns the section.

    Args:
        runs: how runs are made; the other data sets lie beside its own.
        only: data sets whose name holds this text.
    """
    lines = [
        "## Closed-form models",
        "",
        "Made by `python scripts/reproduce.py models --data-dir DATA --out docs/results.md`.",
        "",
        f"{runs.num_nodes} nodes, one round; leave-one-out; options chosen by validation NDCG@10 (full ranking) from "
        "the grids in scripts/experiments/models.py; test read once a row.",
        "",
        "| data | model | options | validation NDCG@10 | HR@10 / NDCG@10, full | 99 negatives | minus `ease` | MB up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    folder = Path(runs.data["data.path"]).parent
    for data_set in (name for name in DATA_SETS if only in name):
        here = replace(runs, data={"data.name": data_set, "data.path": str(folder / data_set)}, num_rounds=1)
        chosen = {name: _best(here, row) for name, row in ROWS.items()}
        for name, (options, found) in chosen.items():
            cells = [data_set, name, options, *_figures(found), _gap(found, chosen[REFERENCE][1])]
            lines.append("| " + " | ".join([*cells, f"{found.summary['bytes_up'] / 1e6:.1f}"]) + " |")
            print(lines[-1], flush=True)
    return "\n".join([*lines, "", NOTES])


def _best(runs: Runs, row: Row) -> tuple[str, Finished]:
    """Returns the options that validation chooses, in short, and their run."""
    found = []
    for options in row.points():
        run = runs.run({"model.name": row.model, "model.options": json.dumps(options, sort_keys=True)})
        found.append((run.best, options, run))
    _, options, run = max(found, key=lambda point: point[0])
    return ", ".join(f"{name} {value:g}" for name, value in options.items() if name in row.grid), run


def _figures(found: Finished) -> list[str]:
    test, sampled = found.summary["test"], found.summary["sampled"]
    return [
        f"{found.best:.4f}".removeprefix("0"),
        f"{short(test['hr@10'])} / {short(test['ndcg@10'])}",
        f"{short(sampled['hr@10'])} / {short(sampled['ndcg@10'])}",
    ]


def _gap(found: Finished, reference: Finished) -> str:
    """Returns the difference of test NDCG@10 with the 2.5 and 97.5 percentiles of its bootstrap draws."""
    if found is reference:
        return ""
    return gap(
        found.summary["test"]["ndcg@10"] - reference.summary["test"]["ndcg@10"], found.replicates, reference.replicates
    )


def gap(value: float, ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Returns a difference with the 2.5 and 97.5 percentiles of its bootstrap draws.

    Args:
        value: over all users.
        ours, theirs: the metric in each draw.
    """
    low, *_, high = statistics.quantiles([mine - other for mine, other in zip(ours, theirs, strict=True)], n=40)
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
