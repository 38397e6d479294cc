"""`fedrec tune`: hyper-parameters and models chosen on validation."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedrec_app.config import RunConfig, parse_overrides
from fedrec_app.console import say
from fedrec_app.errors import ConfigError, StateError
from fedrec_app.files import require_writable
from fedrec_app.paths import absolute

stderr = Console(stderr=True)
_SHOWN = 8


def add_tune(commands: typer.Typer) -> None:
    """Adds the command."""
    commands.command()(tune)


def tune(
    out: Annotated[Path, typer.Option("--out", help="Where the best configuration goes: a .toml file that -c takes.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("-c", "--run-config", help="Settings that all trials have, as for `fedrec simulate`."),
    ] = None,
    num_nodes: Annotated[int, typer.Option("--num-nodes", min=1, help="Nodes that the users are dealt to.")] = 2,
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space",
            help="What is searched, 'train.learning-rate=log:1e-3..1 model.options.dropout=0..0.5 "
            'train.local-epochs=int:1..4 model.name="mf"|"sasrec"\', or a .toml file; a default space for each model '
            "when absent.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials, those of an earlier call included.")] = 30,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, help="Seconds after which no trial is begun.", show_default="none")
    ] = math.inf,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the search; that of the runs is a setting.")] = 0,
    study: Annotated[
        Path | None,
        typer.Option("--study", help="Where trials are kept, and gone on with; beside --out when absent."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object as the last line.")] = False,
) -> None:
    """Choose settings and models on validation; the test part is not read. A study that was stopped goes on."""
    from fedrec_app.tune import tune as run_study
    from fedrec_app.tune_search import importances, require_optuna
    from fedrec_app.tune_space import Space, read_space

    require_optuna()
    if out.suffix != ".toml":
        raise ConfigError(f"--out is {str(out)!r}: a name that ends in .toml is expected, as -c takes no other file")
    try:
        require_writable(out.parent)
    except OSError as error:
        raise StateError(f"cannot write to --out {out}: {error}") from None
    if out.is_dir():
        raise StateError(f"cannot write to --out {out}: it is a folder")
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # why a trial failed is kept with it
    fixed = parse_overrides(settings or [])
    config = RunConfig.from_flat(fixed)
    fixed = absolute(fixed)
    searched: Space = read_space(space or [], fixed)
    _show_space(searched.described(), searched.origins)
    path = study or out.with_suffix(".study.jsonl")
    if path.exists():
        say(f"going on with study {path}")
    try:
        with _bar(trials, config.evaluate.metric) as (on_round, on_trial):
            done = run_study(
                fixed, searched, num_nodes, path, trials, seed=seed, timeout=timeout, out=out, on_trial=on_trial,
                watchers=[on_round],
            )  # fmt: skip
    except KeyboardInterrupt:
        say(f"stopped: the same command goes on with the trials in {path}")
        raise
    found = {
        "study": str(path), "out": str(out), "metric": config.evaluate.metric, **dict(done.about),
        "best": done.best.model_dump() if done.best else None, "settings": parse_overrides([str(out)]),
        "trials": [trial.model_dump(exclude={"by_round"}) for trial in done.trials],
        "importances": importances(done, searched),
    }  # fmt: skip
    picture = _picture(found, out.with_suffix(".png"))
    _show(found, trials, timeout < math.inf)
    say(f"best configuration: {out}; study: {path}; {picture}")
    if as_json:
        print(json.dumps(found))


def _show_space(described: dict[str, dict[str, str]], origins: Any) -> None:
    for model, dimensions in described.items():
        text = ", ".join(f"{key} = {values}" for key, values in dimensions.items()) or "nothing"
        say(f"{model}, {origins[model]}: {text}")


@contextmanager
def _bar(num_trials: int, metric: str) -> Iterator[tuple[Any, Any]]:
    """Yields what to call after each round and each trial."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=stderr) as bar:
        task = bar.add_task("trials", total=num_trials, text="starting")
        best = ""

        def on_round(record: Any, progress: Any, num_rounds: int) -> None:
            bar.update(task, text=f"{best}round {record.round}/{num_rounds} {progress.best_value:.4f}")

        def on_trial(trial: Any, study: Any) -> None:
            nonlocal best
            if study.best is not None:
                best = f"best {metric} {study.best.value:.4f} (trial {study.best.number}) "
            bar.update(task, completed=len(study.trials), text=best)

        yield on_round, on_trial


def _show(found: dict[str, Any], wanted: int, limited: bool) -> None:
    trials, metric = found["trials"], found["metric"]
    complete = sorted((t for t in trials if t["state"] == "complete"), key=lambda t: -t["value"])
    table = Table(title=f"best trials by {metric} on validation; test was not read")
    for name in ("trial", metric, "round", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("settings")
    for trial in complete[:_SHOWN]:
        text = " ".join(f"{key}={_short(value)}" for key, value in trial["params"].items())
        figures = (str(trial["number"]), f"{trial['value']:.4f}", str(trial["best_round"]), f"{trial['seconds']:.1f}")
        table.add_row(*figures, text.replace("[", "\\["))
    stderr.print(table)
    states = Counter(trial["state"] for trial in trials)
    lines = [", ".join(f"{number} {state}" for state, number in states.items())]
    if len(trials) < wanted:
        lines.append("the time is up" if limited else "no configuration was left that had not been tried")
    failures = Counter(trial["reason"] for trial in trials if trial["state"] == "failed")
    lines += [f"{number} failed: {reason}" for reason, number in failures.most_common(3)]
    if found["importances"]:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in found["importances"].items())
        lines.append(f"importance: {shares}")
    for line in lines:
        say(line)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def _picture(found: dict[str, Any], path: Path) -> str:
    """Draws the metric by trial, and returns where it is or why there is none."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no picture: pip install 'fedrec[report]'"
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes: Any = figure.subplots()
    judged = [t for t in found["trials"] if t["value"] is not None]
    models = list(dict.fromkeys(t["params"].get("model.name", "") for t in judged))
    for model in models:
        for state, marker in (("complete", "o"), ("pruned", "x")):
            own = [t for t in judged if t["state"] == state and t["params"].get("model.name", "") == model]
            if own:
                label = f"{model} {state}".strip()
                color = f"C{models.index(model)}"
                axes.scatter(
                    [t["number"] for t in own], [t["value"] for t in own], marker=marker, color=color, label=label
                )
    complete = [t for t in judged if t["state"] == "complete"]
    best = [max(t["value"] for t in complete[: n + 1]) for n in range(len(complete))]
    axes.step([t["number"] for t in complete], best, where="post", color="grey", label="best so far")
    axes.set(xlabel="trial", ylabel=f"{found['metric']}, validation")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return f"picture: {path}"
