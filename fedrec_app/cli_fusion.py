"""`fedrec fuse` and `fedrec ensemble`: several finished runs as one model."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedrec_app.artifacts import RunFolder
from fedrec_app.errors import ConfigError
from fedrec_app.paths import default_output_dir

stdout, stderr = Console(), Console(stderr=True)

Runs = Annotated[list[Path], typer.Option("--run", help="Folder of a run; give it once for each run.")]
Weights = Annotated[str, typer.Option("--weights", help="A number for each run, such as '0.6,0.4'.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


def add_fusion(commands: typer.Typer) -> None:
    """Adds the commands."""
    commands.command()(fuse)
    commands.command()(ensemble)


def fuse(
    run: Runs,
    out_dir: Annotated[Path | None, typer.Option("--out-dir", help="Where runs go; ./outputs when absent.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Weights by score are softmax(score / T); proportional when absent.")
    ] = None,
    align: Annotated[
        str, typer.Option(help="auto: factorisations are rotated onto the best run first; none: nothing is.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Interpolate the parameters of finished runs; weights are chosen on validation. Makes a new run folder."""
    from fedrec_app.finished import FinishedRun
    from fedrec_app.fusion import fuse as fuse_runs

    logging.getLogger("flwr").setLevel(logging.WARNING)
    output_dir = out_dir.expanduser().absolute() if out_dir else default_output_dir(str(Path.cwd() / "outputs"))
    runs = [FinishedRun.read(RunFolder(folder)) for folder in run]
    result = fuse_runs(runs, output_dir, temperature, align)
    summary, fusion = result.summary, result.summary["fusion"]
    ours = {**summary, "validation": summary["validation"][fusion["metric"]]}
    title = f"fusion, {fusion['weighting']}{', aligned' if fusion['aligned'] else ''}"
    _show(title, fusion["metric"], fusion["candidates"], fusion["parents"], ours)
    stderr.print(f"report: {result.folder.path / 'report.md'}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps({"run": str(result.folder.path), **summary}))


def ensemble(
    run: Runs,
    fusion: Annotated[
        str, typer.Option(help="How runs are fused: rank or score; chosen on validation when absent.")
    ] = "",
    weights: Weights = "",
    as_json: AsJson = False,
) -> None:
    """Judge several finished runs as one recommender, beside each of them, on the data that they were trained on."""
    from fedrec_app.ensemble import evaluate_ensemble
    from fedrec_app.finished import FinishedRun

    logging.getLogger("flwr").setLevel(logging.WARNING)
    runs = [FinishedRun.read(RunFolder(folder)) for folder in run]
    found = evaluate_ensemble(runs, fusion or None, parse_weights(weights))
    for line in found["warnings"]:
        stderr.print(f"warning: {line}", markup=False, highlight=False, soft_wrap=True)
    title = f"{found['fusion']} fusion, weights {found['weighting']}"
    _show(title, found["metric"], found["candidates"], found["runs"], found)
    if as_json:
        print(json.dumps(found))


def parse_weights(text: str) -> list[float] | None:
    """Returns the numbers in "0.6,0.4"; None for an empty text.

    Raises:
        ConfigError: it is not numbers with commas.
    """
    if not text:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"weights are {text!r}: numbers such as 0.6,0.4 are expected") from None


def _show(
    title: str, metric: str, candidates: list[dict[str, Any]], runs: list[dict[str, Any]], ours: dict[str, Any]
) -> None:
    judged = "; ".join(f"{_name(c)} {c['validation']:.4f}" for c in candidates)
    stderr.print(f"{metric} on validation: {judged}", markup=False, highlight=False, soft_wrap=True)
    hit = f"hr@{metric.split('@')[1]}"
    columns = [*dict.fromkeys((hit, metric))]
    table = Table(title=f"{title}; test read once, full ranking and 99 negatives")
    table.add_column("run", no_wrap=True)
    for name in ("weight", f"valid. {metric}", *columns, "hr@10 (99)", "ndcg@10 (99)"):
        table.add_column(name, justify="right")
    for line in [*runs, {**ours, "run": "", "weight": 1.0}]:
        figures = [line["test"].get(name) for name in columns]
        figures += [line["sampled"].get(name) for name in ("hr@10", "ndcg@10")]
        numbers = [line["weight"], line["validation"], *figures]
        table.add_row(_label(line), *("-" if number is None else f"{number:.4f}" for number in numbers))
    stderr.print(table)


def _label(line: dict[str, Any]) -> str:
    if not line["run"]:
        return "together"
    return f"{Path(line['run']).name} {line['model']}"


def _name(candidate: dict[str, Any]) -> str:
    return " ".join(candidate[key] for key in ("fusion", "weighting") if key in candidate)
