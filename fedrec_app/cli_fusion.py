"""`fedrec fuse` and `fedrec ensemble`: several finished runs as one model."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedrec_app.artifacts import RunFolder
from fedrec_app.console import say
from fedrec_app.errors import ConfigError
from fedrec_app.paths import default_output_dir

stdout, stderr = Console(), Console(stderr=True)

Runs = Annotated[list[Path], typer.Option("--run", help="Folder of a run; give it once for each run.")]
Weights = Annotated[str, typer.Option("--weights", help="A number for each run, such as '0.6,0.4'.")]
_SAME = 1e-9  # metrics are sums in another order
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
    runs = [FinishedRun.read(folder) for folder in _distinct(run)]
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
    runs = [FinishedRun.read(folder) for folder in _distinct(run)]
    found = evaluate_ensemble(runs, fusion or None, parse_weights(weights))
    for line in found["warnings"]:
        say(f"warning: {line}")
    title = f"{found['fusion']} fusion, weights {found['weighting']}"
    _show(title, found["metric"], found["candidates"], found["runs"], found)
    if as_json:
        print(json.dumps(found))


def _distinct(paths: Sequence[Path]) -> list[RunFolder]:
    """Returns the folders of the runs.

    Raises:
        ConfigError: one is given twice, which would count its opinion twice; weights are for that.
    """
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise ConfigError(
                f"--run {path} is given twice: each run once; --weights of `fedrec ensemble` weights them"
            )
        seen.add(path.resolve())
    return [RunFolder(path) for path in paths]


def best_alone(metric: str, runs: Sequence[dict[str, Any]], together: float, chosen: bool) -> str:
    """Returns a sentence where one run is at least as good by itself as all of them together, else "".

    Args:
        metric: on validation.
        runs: "run", its "weight" in the whole and its own "validation" score, of each.
        together: the validation score of the whole.
        chosen: weights were chosen on validation, not given.
    """
    for line in runs if chosen else ():
        if line["weight"] == 1:
            return (
                f"one run alone is best: {line['run']}; no weighting with others does better by {metric} on validation"
            )
    best = max(runs, key=lambda line: line["validation"])
    if best["validation"] >= together - _SAME:
        return (
            f"one run alone is at least as good: {best['run']} has {metric} {best['validation']:.4f} on validation, "
            f"together they have {together:.4f}"
        )
    return ""


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
    say(f"{metric} on validation: {judged}")
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
    if sentence := best_alone(metric, runs, ours["validation"], len(candidates) > 1):
        say(sentence)


def _label(line: dict[str, Any]) -> str:
    if not line["run"]:
        return "together"
    return f"{Path(line['run']).name} {line['model']}"


def _name(candidate: dict[str, Any]) -> str:
    return " ".join(candidate[key] for key in ("fusion", "weighting") if key in candidate)
