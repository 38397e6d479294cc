"""The command line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedrec_app import __version__
from fedrec_app.artifacts import RunFolder
from fedrec_app.cli_audit import add_audit
from fedrec_app.cli_compare import add_compare
from fedrec_app.cli_data import data_commands
from fedrec_app.cli_fusion import add_fusion, parse_weights
from fedrec_app.cli_model import model_commands
from fedrec_app.cli_privacy import add_plan, privacy_commands
from fedrec_app.cli_strategy import strategy_commands
from fedrec_app.cli_tune import add_tune
from fedrec_app.config import RunConfig, Scalar, parse_overrides
from fedrec_app.console import say
from fedrec_app.errors import FedrecError
from fedrec_app.paths import absolute, default_output_dir

commands = typer.Typer(
    name="fedrec", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Recommender systems trained where the data is.",
)  # fmt: skip
commands.add_typer(data_commands, name="data")
commands.add_typer(model_commands, name="model")
commands.add_typer(strategy_commands, name="strategy")
commands.add_typer(privacy_commands, name="privacy")
stderr, stdout = Console(stderr=True), Console()

Settings = Annotated[
    list[str] | None,
    typer.Option("-c", "--run-config", help="Settings as 'key=value key=\"text\"', or a .toml file; may be repeated."),
]
NumNodes = Annotated[int, typer.Option("--num-nodes", min=1, help="Nodes that the users are dealt to.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as the last line of standard output.")]


def main() -> None:
    """Runs a command; a problem that the reader can act on is one line, not a traceback."""
    try:
        commands(standalone_mode=True)
    except FedrecError as error:
        stderr.print(f"[bold red]error:[/] {_escaped(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


@commands.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@commands.command()
def run(
    connection: Annotated[str, typer.Argument(help="SuperLink connection of Flower's configuration.")] = "",
    settings: Settings = None,
    num_nodes: NumNodes = 2,
    client_cpus: Annotated[int, typer.Option(min=1, help="CPUs that each simulated client reserves.")] = 1,
    as_json: AsJson = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Flower's own lines too.")] = False,
) -> None:
    """Train through Flower: in its simulation engine, or on the SuperLink of CONNECTION."""
    from fedrec_app.flower_run import run_with_flower

    flat = _asked(settings)
    config = preflight(flat)
    output_dir = _output_dir(flat)

    def on_log(line: str) -> None:
        if verbose:
            stderr.print(line, markup=False, highlight=False)

    with _bar(config) as bar:
        folder = run_with_flower(
            flat, output_dir, num_nodes, connection, client_cpus, on_log, lambda record: _advance(bar, record, config)
        )
    show_result(folder, as_json)


@commands.command()
def simulate(
    settings: Settings = None,
    num_nodes: NumNodes = 2,
    slow: Annotated[
        list[str] | None,
        typer.Option(
            "--slow",
            help="A slow node on a virtual clock, '0=10': partition 0 trains ten times as long as the others; may be "
            "repeated. The summary then has virtual_seconds: a training message takes 1 on a node that is not named.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train in this process: the same run as `fedrec run`, without a SuperLink and without Ray."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    from dataclasses import asdict

    from fedrec_app.simulate import parse_durations
    from fedrec_app.simulate import simulate as simulate_run

    flat = _asked(settings)
    config = preflight(flat)
    flat["output-dir"] = str(_output_dir(flat))
    with _bar(config) as bar:
        result = simulate_run(
            flat, num_nodes, watchers=[lambda record, progress, total: _advance(bar, asdict(record), config)],
            durations=parse_durations(slow) if slow else None,
        )  # fmt: skip
    show_result(result.folder, as_json)


@commands.command()
def report(run: Annotated[Path, typer.Option("--run", help="Folder of a run.")]) -> None:
    """Write report.md and its pictures anew."""
    from fedrec_app.report import write_report

    stdout.print(str(write_report(RunFolder(run))), highlight=False, soft_wrap=True)


@commands.command()
def recommend(
    run: Annotated[list[Path], typer.Option("--run", help="Folder of a run; several are fused.")],
    user: Annotated[str, typer.Option("--user", help="Id of a user of the data.")] = "",
    history: Annotated[
        str, typer.Option("--history", help="Item ids 'a,b,c' of somebody who is not in the data.")
    ] = "",
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    fusion: Annotated[str, typer.Option(help="How several runs are fused: rank or score.")] = "rank",
    weights: Annotated[
        str, typer.Option("--weights", help="A number for each run, such as '0.6,0.4'; by validation score if absent.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Recommend items to a user of the data, or to somebody with the history given; both left out: to a newcomer."""
    from fedrec_app.recommend import recommend_by

    asked = [item.strip() for item in history.split(",") if item.strip()]
    found = recommend_by([RunFolder(folder) for folder in run], user, asked, k, fusion, parse_weights(weights))
    for line in found.get("warnings", []):
        stderr.print(f"warning: {_escaped(line)}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(found))
        return
    table = Table(title=f"{found['method']} for {user or 'a history' if user or history else 'a newcomer'}")
    for column in ("rank", "item", "title", "score"):
        table.add_column(column, justify="right" if column in ("rank", "score") else "left")
    for rank, item in enumerate(found["items"], start=1):
        table.add_row(str(rank), item["item_id"], item.get("title", ""), f"{item['score']:.4f}")
    stdout.print(table)


add_fusion(commands)
add_tune(commands)


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
    text = f"settings that differ from the defaults: {_escaped(changed) or 'none'}"
    stderr.print(text, highlight=False, soft_wrap=True)
    return config


add_compare(commands, preflight)
add_plan(privacy_commands, preflight)
add_audit(privacy_commands, preflight)


def _asked(settings: list[str] | None) -> dict[str, Scalar]:
    """Returns the settings of `-c`, over those of the run that is to go on."""
    given = parse_overrides(settings or [])
    folder = str(given.get("checkpoint.resume-from", ""))
    return {**(RunFolder(Path(folder).expanduser()).read_config() if folder else {}), **given}


def show_result(folder: RunFolder, as_json: bool) -> None:
    """Prints the result table and where the report is; with `as_json` the summary follows as the last line."""
    from fedrec_app.report import notices, result_rows

    summary = folder.read_summary()
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
def _bar(config: RunConfig) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[metric]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=stderr) as bar:
        bar.add_task("training", total=config.num_server_rounds, metric="starting")
        yield bar


def _advance(bar: Progress, record: dict[str, Any], config: RunConfig) -> None:
    task = bar.tasks[0]
    name = config.evaluate.metric
    value = (record["validation"] or {}).get(name)
    text = f"{name} {value:.4f}" if value is not None else str(task.fields["metric"])
    if (epsilon := record["train"].get("epsilon")) is not None:
        text = f"{name} {value:.4f}, epsilon {epsilon:.3f}" if value is not None else f"epsilon {epsilon:.3f}"
    bar.update(task.id, completed=record["round"], metric=text)


def _output_dir(flat: dict[str, Scalar]) -> Path:
    given = str(flat.get("output-dir", ""))
    return Path(given).expanduser().absolute() if given else default_output_dir(str(Path.cwd() / "outputs"))


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    main()
