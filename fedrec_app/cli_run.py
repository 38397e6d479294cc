"""`fedrec run` and `fedrec simulate`."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from fedrec_app.cli_shared import advance, asked_settings, output_dir, preflight, progress_bar, show_result, stderr
from fedrec_app.config import RunConfig, Scalar
from fedrec_app.console import say, uncoloured
from fedrec_app.errors import ConfigError
from fedrec_app.operation import json_log

if TYPE_CHECKING:
    from fedrec_app.superlink_run import SuperLinkRun

_WORTH_SAYING = re.compile(
    r"nodes take part, | is refused: |rows of the nodes' data were set aside|partition \d+ left|waiting for those"
)
"""Lines of the ServerApp about its nodes. They may quote a node, so they are printed without control characters."""

Settings = Annotated[
    list[str] | None,
    typer.Option("-c", "--run-config", help="Settings as 'key=value key=\"text\"', or a .toml file; may be repeated."),
]
NumNodes = Annotated[int, typer.Option("--num-nodes", min=1, help="Nodes that the users are dealt to.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as the last line of standard output.")]


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
    flat = asked_settings(settings, elsewhere=bool(connection))
    config = preflight(flat)

    def on_log(line: str) -> None:
        if json_log.wanted() and json_log.is_line(line):
            print(line, file=sys.stderr, flush=True)
        elif verbose or _WORTH_SAYING.search(line):
            printable = "".join(char if char.isprintable() else "?" for char in uncoloured(line))
            stderr.print(printable, markup=False, highlight=False, soft_wrap=True)

    if connection:
        if flat.get("output-dir"):  # else the default of the SuperLink's machine
            flat["output-dir"] = str(output_dir(flat))
        if detach:
            _start_there(flat, connection, as_json)
        else:
            _run_there(flat, config, connection, as_json, on_log)
        return
    if detach:
        raise ConfigError("--detach needs a CONNECTION: a simulation ends with this command")
    from fedrec_app.flower_run import run_with_flower

    with progress_bar(config) as bar:
        folder = run_with_flower(
            flat, output_dir(flat), num_nodes, client_cpus, on_log, lambda record: advance(bar, record, config)
        )
    show_result(folder, as_json)


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

    flat = asked_settings(settings)
    config = preflight(flat)
    flat["output-dir"] = str(output_dir(flat))
    with progress_bar(config) as bar:
        result = simulate_run(
            flat, num_nodes, watchers=[lambda record, progress, total: advance(bar, asdict(record), config)],
            durations=parse_durations(slow) if slow else None,
        )  # fmt: skip
    show_result(result.folder, as_json)


def _start_there(flat: dict[str, Scalar], connection: str, as_json: bool) -> None:
    from fedrec_app.superlink_run import start_on_superlink

    run_id = start_on_superlink(flat, connection)
    say(f"run {run_id} goes on alone; to see it: flwr log {run_id} {connection}")
    print(json.dumps({"run_id": run_id}) if as_json else run_id)


def _run_there(
    flat: dict[str, Scalar], config: RunConfig, connection: str, as_json: bool, on_log: Callable[[str], None]
) -> None:
    there = trained_there(flat, config, connection, on_log=on_log)
    if there.folder is not None:
        show_result(there.folder, as_json)
        return
    say(f"run {there.run_id} completed; its folder, on the SuperLink's machine: {there.said_folder or 'unknown'}")
    if as_json:
        print(json.dumps({"status": "completed", "run_id": there.run_id, "folder": there.said_folder}))


def trained_there(
    flat: dict[str, Scalar],
    config: RunConfig,
    connection: str,
    environment: Mapping[str, str] | None = None,
    on_log: Callable[[str], None] = lambda line: None,
    again: str | None = None,
) -> SuperLinkRun:
    """Returns a run that a SuperLink completed, with a bar in the meantime; arguments as of `run_on_superlink`."""
    from fedrec_app.superlink_run import run_on_superlink

    with progress_bar(config) as bar:
        return run_on_superlink(
            flat, connection, on_log, lambda record: advance(bar, record, config), environment, again=again
        )


def add_runs(commands: typer.Typer) -> None:
    """Adds the two commands."""
    commands.command()(run)
    commands.command()(simulate)
