"""The command line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedrec_app import __version__
from fedrec_app.artifacts import RunFolder
from fedrec_app.cli_audit import add_audit
from fedrec_app.cli_compare import add_compare
from fedrec_app.cli_data import data_commands
from fedrec_app.cli_deploy import add_loopback, deploy_commands
from fedrec_app.cli_fusion import add_fusion, parse_weights
from fedrec_app.cli_model import model_commands
from fedrec_app.cli_node import add_node, extend_catalog, recommend_here
from fedrec_app.cli_operate import add_operate
from fedrec_app.cli_privacy import add_plan, privacy_commands
from fedrec_app.cli_strategy import strategy_commands
from fedrec_app.cli_tune import add_tune
from fedrec_app.config import RunConfig, Scalar, parse_overrides
from fedrec_app.console import say
from fedrec_app.errors import ConfigError, FedrecError
from fedrec_app.operation import json_log
from fedrec_app.paths import absolute, default_output_dir

if TYPE_CHECKING:
    from fedrec_app.superlink_run import SuperLinkRun

commands = typer.Typer(
    name="fedrec", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Recommender systems trained where the data is.",
)  # fmt: skip
commands.add_typer(data_commands, name="data")
commands.add_typer(model_commands, name="model")
commands.add_typer(strategy_commands, name="strategy")
commands.add_typer(privacy_commands, name="privacy")
commands.add_typer(deploy_commands, name="deploy")
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
        if json_log.wanted():
            json_log.say_failed(error)
            sys.exit(1)
        stderr.print(f"[bold red]error:[/] {_escaped(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


@commands.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    stderr.quiet = json_log.wanted()  # collectors get JSON lines alone
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
    detach: Annotated[
        bool, typer.Option("--detach", help="With CONNECTION: start the run, print its id, and leave it to itself.")
    ] = False,
) -> None:
    """Train through Flower: in its simulation engine, or on the SuperLink of CONNECTION."""
    flat = _asked(settings, elsewhere=bool(connection))
    config = preflight(flat)

    def on_log(line: str) -> None:
        if json_log.wanted() and json_log.is_line(line):
            print(line, file=sys.stderr, flush=True)
        elif verbose:
            stderr.print(line, markup=False, highlight=False)

    if connection:
        if flat.get("output-dir"):  # else the default of the SuperLink's machine
            flat["output-dir"] = str(_output_dir(flat))
        if detach:
            _start_there(flat, connection, as_json)
        else:
            _run_there(flat, config, connection, as_json, on_log)
        return
    if detach:
        raise ConfigError("--detach needs a CONNECTION: a simulation ends with this command")
    from fedrec_app.flower_run import run_with_flower

    with _bar(config) as bar:
        folder = run_with_flower(
            flat, _output_dir(flat), num_nodes, client_cpus, on_log, lambda record: _advance(bar, record, config)
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
    if not json_log.wanted():
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
    run: Annotated[list[Path] | None, typer.Option("--run", help="Folder of a run; several are fused.")] = None,
    user: Annotated[str, typer.Option("--user", help="Id of a user of the data.")] = "",
    history: Annotated[
        str, typer.Option("--history", help="Item ids 'a,b,c' of somebody who is not in the data.")
    ] = "",
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    fusion: Annotated[str, typer.Option(help="How several runs are fused: rank or score.")] = "rank",
    weights: Annotated[
        str, typer.Option("--weights", help="A number for each run, such as '0.6,0.4'; by validation score if absent.")
    ] = "",
    model: Annotated[
        Path | None, typer.Option("--model", help="On a node: a bundle of `fedrec export`, or a run's folder.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", help="On a node: where it keeps private rows and feedback.")
    ] = None,
    data_path: Annotated[str, typer.Option("--data-path", help="On a node: its own data.")] = "",
    data_name: Annotated[str, typer.Option("--data-name", help="On a node: data set, where not the run's.")] = "",
    columns: Annotated[str, typer.Option("--columns", help="On a node: mapping 'user_id=user,item_id=film'.")] = "",
    catalog: Annotated[str, typer.Option("--catalog", help="On a node: catalog, where the model has none.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Recommend items to a user of the data, or to somebody with the history given; both left out: to a newcomer.

    With --state-dir and --model it is done on a node, from its private rows, data and feedback alone.
    """
    asked = [item.strip() for item in history.split(",") if item.strip()]
    own = {"path": data_path, "name": data_name, "columns": columns}
    if model is not None or state_dir is not None:
        if run or weights:
            raise ConfigError("--run and --weights are for several runs on one machine: a node has --model")
        logging.getLogger("flwr").setLevel(logging.WARNING)
        found = recommend_here(model, state_dir, user, asked, k, own, catalog)
    elif not run:
        raise ConfigError("give --run with the folder of a run, or, on a node, --model and --state-dir")
    elif catalog or any(own.values()):
        raise ConfigError("--data-path, --data-name, --columns and --catalog go with --model: a run has its own")
    else:
        from fedrec_app.recommend import recommend_by

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
add_node(commands)
data_commands.command("extend-catalog")(extend_catalog)
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
add_operate(commands)


def _asked(settings: list[str] | None, elsewhere: bool = False) -> dict[str, Scalar]:
    """Returns the settings of `-c`, over those of the run that is to go on.

    Args:
        settings: as they were given.
        elsewhere: that run may lie on another machine: then its settings must be given.
    """
    given = parse_overrides(settings or [])
    folder = str(given.get("checkpoint.resume-from", ""))
    if elsewhere and folder and not Path(folder).expanduser().is_dir():
        say(f"{folder} is not on this machine: the run goes on with the settings given here, which must be its own")
        return given
    return {**(RunFolder(Path(folder).expanduser()).read_config() if folder else {}), **given}


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


def _start_there(flat: dict[str, Scalar], connection: str, as_json: bool) -> None:
    from fedrec_app.superlink_run import start_on_superlink

    run_id = start_on_superlink(flat, connection)
    say(f"run {run_id} goes on alone; to see it: flwr log {run_id} {connection}")
    print(json.dumps({"run_id": run_id}) if as_json else run_id)


def _run_there(
    flat: dict[str, Scalar], config: RunConfig, connection: str, as_json: bool, on_log: Callable[[str], None]
) -> None:
    there = _trained_there(flat, config, connection, on_log=on_log)
    if there.folder is not None:
        show_result(there.folder, as_json)
        return
    say(f"run {there.run_id} completed; its folder, on the SuperLink's machine: {there.said_folder or 'unknown'}")
    if as_json:
        print(json.dumps({"status": "completed", "run_id": there.run_id, "folder": there.said_folder}))


def _trained_there(
    flat: dict[str, Scalar],
    config: RunConfig,
    connection: str,
    environment: Mapping[str, str] | None = None,
    on_log: Callable[[str], None] = lambda line: None,
) -> SuperLinkRun:
    from fedrec_app.superlink_run import run_on_superlink

    with _bar(config) as bar:
        return run_on_superlink(
            flat, connection, on_log, lambda record: _advance(bar, record, config), environment=environment
        )


add_loopback(deploy_commands, preflight, _trained_there, show_result)


@contextmanager
def _bar(config: RunConfig) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[metric]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=stderr, disable=json_log.wanted()) as bar:
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
