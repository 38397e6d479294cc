"""The command line."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedrec_app import __version__
from fedrec_app.artifacts import RunFolder
from fedrec_app.cli_audit import add_audit
from fedrec_app.cli_compare import add_compare
from fedrec_app.cli_data import data_commands
from fedrec_app.cli_deploy import deploy_commands
from fedrec_app.cli_fusion import add_fusion, parse_weights
from fedrec_app.cli_model import model_commands
from fedrec_app.cli_node import add_node, extend_catalog, recommend_here
from fedrec_app.cli_operate import add_operate
from fedrec_app.cli_privacy import add_plan, privacy_commands
from fedrec_app.cli_run import add_runs
from fedrec_app.cli_shared import escaped, stderr
from fedrec_app.cli_strategy import strategy_commands
from fedrec_app.cli_tune import add_tune
from fedrec_app.errors import ConfigError, FedrecError
from fedrec_app.operation import json_log

commands = typer.Typer(
    name="fedrec", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Recommender systems trained where the data is.",
)  # fmt: skip
commands.add_typer(data_commands, name="data")
commands.add_typer(model_commands, name="model")
commands.add_typer(strategy_commands, name="strategy")
commands.add_typer(privacy_commands, name="privacy")
commands.add_typer(deploy_commands, name="deploy")
add_runs(commands)
stdout = Console()


def main() -> None:
    """Runs a command; a problem that the reader can act on is one line, not a traceback."""
    try:
        commands(standalone_mode=True)
    except FedrecError as error:
        if json_log.wanted():
            json_log.say_failed(error)
            sys.exit(1)
        stderr.print(f"[bold red]error:[/] {escaped(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


@commands.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    stderr.quiet = json_log.wanted()  # collectors get JSON lines alone
    if version:
        print(__version__)
        raise typer.Exit


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
        stderr.print(f"warning: {escaped(line)}", highlight=False, soft_wrap=True)
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
add_tune(commands)
add_compare(commands)
add_operate(commands)
data_commands.command("extend-catalog")(extend_catalog)
add_plan(privacy_commands)
add_audit(privacy_commands)


if __name__ == "__main__":
    main()
