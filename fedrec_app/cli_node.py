"""Commands of a node: new events, recommendations from what lies here, and models in other formats."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedrec_app.artifacts import RunFolder
from fedrec_app.console import say
from fedrec_app.errors import ConfigError, DataError, StateError
from fedrec_app.export import FORMATS

stdout = Console()

StateDir = Annotated[Path, typer.Option("--state-dir", help="Where the node keeps state, as in its --node-config.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


def add_node(commands: typer.Typer) -> None:
    """Adds the commands."""
    commands.command()(feedback)
    commands.command()(export)


def feedback(
    state_dir: StateDir,
    user: Annotated[str, typer.Option("--user", help="Id of a user.")] = "",
    item: Annotated[str, typer.Option("--item", help="Id of an item; the catalog may not know it yet.")] = "",
    rating: Annotated[float | None, typer.Option("--rating", help="A number, where there is one.")] = None,
    timestamp: Annotated[
        str, typer.Option("--timestamp", help="Seconds since 1970 or an ISO 8601 date; now when absent.")
    ] = "",
    file: Annotated[Path | None, typer.Option("--file", help="Many events: .csv, .tsv or .jsonl.")] = None,
    columns: Annotated[str, typer.Option("--columns", help="Mapping 'user_id=user,item_id=film' for --file.")] = "",
    as_json: AsJson = False,
) -> None:
    """Add what users of this node did; the next run trains on it, if the node owns its data (data-path in its
    --node-config). Nothing is sent anywhere."""
    import pandas as pd

    from fedrec_app.data.feedback import Feedback
    from fedrec_app.data.feedback_file import read_events

    single = [("--user", user), ("--item", item), ("--rating", rating is not None), ("--timestamp", timestamp)]
    if file is not None:
        if given := [name for name, value in single if value]:
            raise ConfigError(f"--file brings its own users, items, ratings and times: leave {', '.join(given)} out")
        events = read_events(file, columns)
    elif user and item and not columns:
        said: dict[str, Any] = {"user_id": user, "item_id": item}
        said |= {} if rating is None else {"rating": rating}
        said |= {"timestamp": timestamp} if timestamp else {}
        events = pd.DataFrame({name: pd.Series([value], dtype="object") for name, value in said.items()})
    else:
        raise ConfigError("give --user and --item, or --file (with --columns where its columns have other names)")
    if not state_dir.expanduser().is_dir():
        raise StateError(f"there is no state-dir {state_dir}: the one of the node's --node-config is expected")
    kept = Feedback(state_dir.expanduser())
    total = kept.append(events)
    if kept.torn:
        say(
            f"warning: a call that was cut short left {kept.torn} lines, set aside in feedback-torn.jsonl: give them "
            "again"
        )
    if as_json:
        print(json.dumps({"added": len(events), "events": total, "set_aside": kept.torn}))
    else:
        say(
            f"events added: {len(events):,}; there are {total:,} now, and the next run takes them if this node owns "
            "its data (data-path in its --node-config)"
        )


def recommend_here(
    model: Path | None,
    state_dir: Path | None,
    user: str,
    history: list[str],
    k: int,
    data: dict[str, str],
    catalog: str,
) -> dict[str, Any]:
    """Returns what `recommend_on_node` does; arguments as the command `recommend` has them.

    Raises:
        ConfigError: the model or the state-dir is missing.
    """
    from fedrec_app.serving.on_node import recommend_on_node

    if model is None or state_dir is None:
        raise ConfigError("on a node, --state-dir and --model go together: its private rows, and what they belong to")
    given = {key: value for key, value in data.items() if value}
    return recommend_on_node(
        model.expanduser(),
        state_dir.expanduser(),
        user,
        history,
        k,
        given,
        Path(catalog).expanduser() if catalog else None,
    )


def export(
    run: Annotated[Path, typer.Option("--run", help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    format: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "safetensors",
    users: Annotated[int, typer.Option("--users", min=1, help="Users whose scores are compared.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Write a finished run's model for serving, and compare its scores with the run's own."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    from fedrec_app.export.files import export_run

    found = export_run(RunFolder(run.expanduser()), format, out.expanduser(), users)
    if as_json:
        print(json.dumps(found))
        return
    table = Table(title=f"{found['model']} of {run.name}, compared on {found['users']} users {found['whose']}")
    for column in ("format", "bytes", "max score difference", "top-10 overlap", "NDCG@10"):
        table.add_column(column, justify="left" if column == "format" else "right")
    real = found["whose"] == "of the run's data"  # what comes next in a history that was drawn says nothing
    for row in found["formats"]:
        table.add_row(
            row["format"], f"{row['bytes']:,}", f"{row['max_difference']:.2g}", f"{row['overlap']:.2%}",
            f"{row['ndcg']:.4f} ({row['ndcg_difference']:+.4f})" if real else "-",
        )  # fmt: skip
    stdout.print(table)


def extend_catalog(
    catalog: Annotated[Path, typer.Argument(help="Catalog: JSON lines or Parquet.")],
    items: Annotated[Path, typer.Option("--items", help="New items: JSON lines, Parquet or CSV with item_id.")],
    out: Annotated[Path, typer.Option("--out", help="File to write; it may be CATALOG itself.")],
) -> None:
    """Add items to the end of a catalog, so that old ones keep their rows. Every node needs the new file."""
    from fedrec_app.data.catalog import Catalog
    from fedrec_app.data.extended import extend_file

    if out.suffix not in (".jsonl", ".parquet"):
        raise DataError(f"--out {out}: a name that ends in .jsonl or .parquet is expected")
    after, before = extend_file(catalog, items, out)
    say(f"{after - before:,} items added to {before:,}; hash {Catalog.from_file(out).hash[:12]}: {out}")
