"""`fedrec compare`: a model beside its centralised and local-only twins and popularity."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedrec_app.artifacts import RunFolder
from fedrec_app.cli_shared import preflight
from fedrec_app.config import parse_overrides
from fedrec_app.console import say
from fedrec_app.errors import StateError
from fedrec_app.files import require_writable
from fedrec_app.paths import default_output_dir

if TYPE_CHECKING:
    from fedrec_app.compare import Comparison

stderr = Console(stderr=True)

_ALL = "federated,centralised,local-only,popularity"


def add_compare(commands: typer.Typer) -> None:
    """Adds the command to the program's."""
    commands.command()(compare)


def compare(
    settings: Annotated[
        list[str] | None,
        typer.Option("-c", "--run-config", help="Settings of the federated row, as for `fedrec simulate`."),
    ] = None,
    num_nodes: Annotated[int, typer.Option("--num-nodes", min=1, help="Nodes that the users are dealt to.")] = 2,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds each row has: the run's own and the next.")] = 1,
    rows: Annotated[str, typer.Option(help="Which rows, with commas.")] = _ALL,
    centralised: Annotated[
        list[str] | None,
        typer.Option(help="Settings of the centralised row alone, such as 'train.learning-rate=0.1'."),
    ] = None,
    local_rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Rounds of a user alone; num-server-rounds, but not above 10, when absent."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the result; ./outputs/<date>/<time> when absent.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows and differences as a JSON object.")] = False,
) -> None:
    """Run a model federated, centralised and for every user alone, and popularity, on one split; test any two."""
    from fedrec_app.compare import compare as compare_rows
    from fedrec_app.compare_report import write_comparison
    from fedrec_app.compare_rows import plan_rows

    logging.getLogger("flwr").setLevel(logging.WARNING)
    flat = parse_overrides(settings or [])
    preflight(flat)
    names = [name.strip() for name in rows.split(",") if name.strip()]
    planned = plan_rows(flat, num_nodes, names, parse_overrides(centralised or []), local_rounds)
    for row in planned:
        if row.differs:
            changed = ", ".join(f"{key} = {here}" for key, (_, here) in row.differs.items())
            say(f"{row.name} differs from the federated row in: {changed}")
    folder = _folder(out, str(flat.get("output-dir", "")))
    with _bars() as watch:
        found = compare_rows(planned, folder, seeds, watch)
    report = write_comparison(found)
    _show(found)
    say(f"report: {report}")
    if as_json:
        print(json.dumps(found.to_json()))


def _folder(out: Path | None, output_dir: str) -> Path:
    """Returns the folder of the comparison, made.

    Raises:
        StateError: it cannot be made, or holds a comparison already.
    """
    if out is None:
        given = Path(output_dir).expanduser().absolute() if output_dir else Path.cwd() / "outputs"
        return RunFolder.create(default_output_dir(str(given)), datetime.now()).path
    folder = out.expanduser().absolute()
    if (folder / "compare.json").exists():
        raise StateError(f"--out {out} holds a comparison already: name another folder, or remove that one")
    try:
        require_writable(folder)
    except OSError as error:
        raise StateError(f"cannot write to --out {out}: {error}") from None
    return folder


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int, int, str], None]]:
    """Yields what shows a bar for each row and seed."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    tasks: dict[tuple[str, int], Any] = {}
    with Progress(*columns, console=stderr) as bars:

        def watch(row: str, seed: int, done: int, total: int, text: str) -> None:
            if (row, seed) not in tasks:
                tasks[row, seed] = bars.add_task(f"{row}, seed {seed}", total=total, text="")
            task = tasks[row, seed]
            bars.update(task, completed=done, text=text or bars.tasks[task].fields["text"])

        yield watch


def _show(found: Comparison) -> None:
    from fedrec_app.compare_report import differences, figures_by_label, remarks, title, warning

    table = Table(title=title(found))
    if text := warning(found):
        table.caption = f"[bold red]{text}[/]"
    table.add_column("")
    for name in found.rows:
        table.add_column(name, justify="right")
    for label, cells in figures_by_label(found):
        lines = ["-" if cell is None else f"{cell.value}\n[dim]{cell.interval}[/]".rstrip() for cell in cells]
        table.add_row(label, *(line.removesuffix("\n[dim][/]") for line in lines))
    stderr.print(table)
    pairs = Table(title=f"paired differences over {found.about['num_draws']} draws of users")
    seeds = len(found.about["seeds"]) > 1
    for name in ("metric", "difference", "95 % interval", "p", *(["over seeds"] if seeds else [])):
        pairs.add_column(name, justify="left" if name == "metric" else "right")
    last = ""
    for rows, *cells, of_seeds in differences(found):
        if rows != last:
            pairs.add_section()
            pairs.add_row(f"[bold]{rows}[/]")
        pairs.add_row(*cells, *([of_seeds] if seeds else []))
        last = rows
    if found.differences:
        stderr.print(pairs)
    for remark in remarks(found):
        say(f"note: {remark}")
