"""`fedrec status`, `fedrec audit verify`, `fedrec doctor`: what an operator asks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fedrec_app.operation.status import Status

stdout = Console()
audit_commands = typer.Typer(no_args_is_help=True, help="The audit log of a run: verify.")
Run = Annotated[Path, typer.Argument(help="Folder of a run.", exists=True, file_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "failed": "bold red"}
_PAUSE = 2.0


def add_operate(commands: typer.Typer) -> None:
    """Adds the commands to the program's."""
    commands.command("status")(status)
    commands.command("doctor")(doctor)
    commands.add_typer(audit_commands, name="audit")


def status(
    run: Run,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds, until the run is over.")] = False,
) -> None:
    """Say how far a run is: round, nodes, dropped replies, epsilon, checkpoint. Reads files alone."""
    from fedrec_app.operation.status import status_of

    if not watch:
        _show_status(status_of(run), as_json)
        return
    found = status_of(run)
    if as_json:
        while True:
            print(json.dumps(found.to_json()), flush=True)
            if found.over:
                return
            time.sleep(_PAUSE)
            found = status_of(run)
    with Live(_table(found), console=stdout, refresh_per_second=1) as live:
        while not found.over:
            time.sleep(_PAUSE)
            found = status_of(run)
            live.update(_table(found))


@audit_commands.command("verify")
def verify_run(run: Run, as_json: AsJson = False) -> None:
    """Check every line of a run's audit log, and that its files are those that the log speaks of."""
    from fedrec_app.operation.audit_check import passed, verify

    findings = verify(run)
    if as_json:
        print(json.dumps({"passed": passed(findings), "findings": [finding.to_json() for finding in findings]}))
    else:
        _show("audit log", [(finding.check, finding.state, finding.text, "") for finding in findings])
    if not passed(findings):
        raise typer.Exit(1)


def doctor(
    ca: Annotated[Path | None, typer.Option("--ca", help="Certificate of the CA that nodes and users trust.")] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="Certificate of the SuperLink on this machine.")
    ] = None,
    key: Annotated[
        list[Path] | None, typer.Option("--key", help="Private key that nobody else may read; may be repeated.")
    ] = None,
    superlink: Annotated[str, typer.Option("--superlink", help="HOST:PORT that this machine must reach.")] = "",
    connection: Annotated[str, typer.Option("--connection", help="SuperLink connection of Flower's config.toml.")] = "",
    port: Annotated[
        list[int] | None, typer.Option("--port", help="Port that a process here is to listen on; may be repeated.")
    ] = None,
    data_path: Annotated[Path | None, typer.Option("--data-path", help="The node's own data.")] = None,
    catalog: Annotated[
        list[Path] | None, typer.Option("--catalog", help="Catalog file; twice: node's and server's must be the same.")
    ] = None,
    state_dir: Annotated[Path | None, typer.Option("--state-dir", help="Where the node keeps its state.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine before a run: versions, ports, certificates, catalogs, disk, clock, memory, environment."""
    from fedrec_app.operation.doctor import Asked, examine, healthy

    asked = Asked(
        ca, certificate, tuple(key or ()), superlink, connection, tuple(port or ()), data_path, tuple(catalog or ()),
        state_dir,
    )  # fmt: skip
    checks = examine(asked)
    if as_json:
        print(json.dumps({"healthy": healthy(checks), "checks": [check.to_json() for check in checks]}))
    else:
        _show("doctor", [(check.name, check.state, check.found, check.advice) for check in checks])
    if not healthy(checks):
        raise typer.Exit(1)


def _show(title: str, rows: list[tuple[str, str, str, str]]) -> None:
    advised = any(advice for *_, advice in rows)
    table = Table(title=title)
    for column in ("check", "", "found", *(["what to do"] if advised else [])):
        table.add_column(column, overflow="fold")
    for name, state, found, advice in rows:
        cells = [escape(name), f"[{_COLOURS[state]}]{state}[/]", escape(found)]
        table.add_row(*cells, *([escape(advice)] if advised else []))
    stdout.print(table)


def _show_status(found: Status, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.to_json()))
        return
    stdout.print(_table(found))


def _table(found: Status) -> Group:
    table = Table(title=f"run {Path(found.folder).name}", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, text in _rows(found):
        table.add_row(name, escape(text))
    return Group(table)


def _rows(found: Status) -> list[tuple[str, str]]:
    ago = f"last wrote {found.silent_for:.0f} s ago"
    rows = [("state", f"{found.state}, {found.remark or ago}"), ("round", f"{found.round} of {found.rounds}")]
    if found.seconds_a_round is not None:
        left = "" if found.eta is None else f", about {int(found.eta) // 60}:{int(found.eta) % 60:02d} left"
        rows.append(("seconds a round", f"{found.seconds_a_round:.2f}{left}"))
    if found.metric:
        name, value, at = found.metric
        rows.append((f"best {name}", f"{value:.4f} in round {at} (validation)"))
    rows.append(("nodes", f"partitions {found.members}" if found.members else "none yet"))
    rows += [("refused", f"{count}: {why}") for why, count in found.refused.items()]
    rows += [("dropped replies", f"{count}: {why}") for why, count in found.drops.items()]
    if found.epsilon is not None:
        most = f" of {found.target_epsilon:g}" if found.target_epsilon else ""
        rows.append(("epsilon", f"{found.epsilon:.3f}{most}"))
    rows.append(("checkpoint", "none" if found.checkpoint is None else f"of round {found.checkpoint}"))
    for name, text in (("failed with", found.error), ("audit log", found.audit), ("to go on", found.resume)):
        if text:
            rows.append((name, text))
    return rows
