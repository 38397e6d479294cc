"""What commands that train share: checks before, a bar in the meantime, the result after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedrec_app.artifacts import RunFolder
from fedrec_app.config import RunConfig, Scalar, parse_overrides
from fedrec_app.console import say
from fedrec_app.operation import json_log
from fedrec_app.paths import absolute, default_output_dir

stderr = Console(stderr=True)
RunSettings = Annotated[
    list[str] | None, typer.Option("-c", "--run-config", help="Settings of the run, as for `fedrec simulate`.")
]


def asked_settings(settings: list[str] | None, elsewhere: bool = False) -> dict[str, Scalar]:
    """Returns the settings of `-c`, over those of the run that is to go on.

    Args:
        settings: as they were given.
        elsewhere: that run may lie on another machine: then its settings must be given.

    Raises:
        FedrecError: a setting cannot be read, or that run.
    """
    given = parse_overrides(settings or [])
    folder = str(given.get("checkpoint.resume-from", ""))
    if elsewhere and folder and not Path(folder).expanduser().is_dir():
        say(f"{folder} is not on this machine: the run goes on with the settings given here, which must be its own")
        return given
    return {**(RunFolder(Path(folder).expanduser()).read_config() if folder else {}), **given}


def preflight(flat: dict[str, Scalar]) -> RunConfig:
    """Returns the resolved configuration after every check that needs no data, and prints what differs from the
    defaults.

    Raises:
        FedrecError: something is unknown or does not fit.
    """
    from fedrec_app.data import sources
    from fedrec_app.models.registry import resolved
    from fedrec_app.node_data import unbound_model
    from fedrec_app.run_strategy import strategy_of

    asked = RunConfig.from_flat(flat)
    config = resolved(flat)
    strategy_of(config, unbound_model(config))
    sources.resolve(config.data.name)
    flat.update(absolute(flat))
    changed = ", ".join(f"{key} = {value}" for key, value in asked.changed().items() if key != "output-dir")
    text = f"settings that differ from the defaults: {escaped(changed) or 'none'}"
    stderr.print(text, highlight=False, soft_wrap=True)
    return config


def show_result(folder: RunFolder, as_json: bool) -> None:
    """Prints the result table and where the report is; with `as_json` the summary follows as the last line."""
    from fedrec_app.report import notices, result_rows

    summary = folder.read_summary()
    if json_log.wanted():
        if as_json:
            print(json.dumps(summary))
        return
    table = Table(
        title=f"{summary['model']} by {summary['strategy']} on {summary['data']}, test (round {summary['best_round']})"
    )
    if "warning" in summary:
        table.caption = f"[bold red]{summary['warning']}[/]"
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for row in result_rows(summary):
        table.add_row(*row)
    stderr.print(table)
    for line in notices(summary):
        say(line)
    stderr.print(f"report: {folder.path / 'report.md'}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(summary))


@contextmanager
def progress_bar(config: RunConfig) -> Iterator[Progress]:
    """Yields a progress bar for the rounds of a run."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[metric]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=stderr, disable=json_log.wanted()) as bar:
        bar.add_task("training", total=config.num_server_rounds, metric="starting")
        yield bar


def advance(bar: Progress, record: dict[str, Any], config: RunConfig) -> None:
    """Moves a progress bar on to a round; `record` is a line of metrics.jsonl."""
    task = bar.tasks[0]
    name = config.evaluate.metric
    value = (record["validation"] or {}).get(name)
    text = f"{name} {value:.4f}" if value is not None else str(task.fields["metric"])
    if (epsilon := record["train"].get("epsilon")) is not None:
        text = f"{name} {value:.4f}, epsilon {epsilon:.3f}" if value is not None else f"epsilon {epsilon:.3f}"
    bar.update(task.id, completed=record["round"], metric=text)


def output_dir(flat: dict[str, Scalar]) -> Path:
    """Returns where runs of these settings go on this machine."""
    given = str(flat.get("output-dir", ""))
    return Path(given).expanduser().absolute() if given else default_output_dir(str(Path.cwd() / "outputs"))


def escaped(text: str) -> str:
    """Returns a text that rich prints as it is."""
    return text.replace("[", "\\[")
