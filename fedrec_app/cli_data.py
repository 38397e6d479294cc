"""`fedrec data`: what data sets there are, fetching them, and what they look like."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedrec_app.cli_check import check_data
from fedrec_app.cli_plugins import add_list
from fedrec_app.config import DataConfig, Scalar, to_toml
from fedrec_app.plugins import Registry

data_commands = typer.Typer(no_args_is_help=True, help="Data sets: list, check, prepare, clean, stats.")
data_commands.command("check")(check_data)
stdout, stderr = Console(), Console(stderr=True)
_NO_TIME = (
    "no timestamps: held-out items are drawn, and histories have no order: a model of sequences (sasrec) needs one"
)

_DEFAULT = DataConfig()

Name = Annotated[str, typer.Argument(help="Data set, see `fedrec data list`.")]
DataPath = Annotated[str, typer.Option("--path", help="File or folder of the data set.")]
Columns = Annotated[str, typer.Option("--columns", help="Mapping 'user_id=user,item_id=film' for csv.")]
Options = Annotated[str, typer.Option("--options", help="The data set's own options, a JSON object.")]
MinInteractions = Annotated[int, typer.Option(min=1, help="Users with fewer are left out.")]
MaxInteractions = Annotated[int, typer.Option(min=0, help="Users with more are left out; 0: nobody is.")]
SessionGap = Annotated[
    int, typer.Option(min=0, help="Seconds; a longer pause starts a session, and the last one stays; 0: all stay.")
]
KCore = Annotated[int, typer.Option(min=0, help="Users and items with fewer are left out, until none has; 0: none is.")]


def _data_sets() -> Registry[Any]:
    from fedrec_app.data.sources import DATASETS

    return DATASETS


add_list(data_commands, "data sets", _data_sets)


@data_commands.command()
def prepare(
    name: Name,
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    source: Annotated[
        Path | None, typer.Option("--source", help="Take the files from here, not from the network.")
    ] = None,
    nodes: Annotated[
        int, typer.Option("--nodes", min=0, help="Deal the users to so many nodes of a deployment: a folder each.")
    ] = 0,
    partition: Annotated[
        str, typer.Option(help="How users are dealt: users, by:<column> or dirichlet:<alpha>.")
    ] = _DEFAULT.partition,
    columns: Columns = "",
    options: Options = "{}",
    min_interactions: MinInteractions = _DEFAULT.min_interactions,
) -> None:
    """Fetch a data set once, check it, and write it to a folder that `data.path` takes; or, with --nodes, one shard a
    node and the shared catalog."""
    if nodes:
        _deal(name, out, source, nodes, partition, columns, options, min_interactions)
        return
    from fedrec_app.data.prepare import prepare as prepare_data

    for line in prepare_data(name, source, out).lines():
        stderr.print(line, highlight=False)
    stdout.print(f'data.name="{name}" data.path="{out.absolute()}"', highlight=False, soft_wrap=True)


def _deal(
    name: str, out: Path, source: Path | None, nodes: int, partition: str, columns: str, options: str, least: int
) -> None:
    """Writes shards, and says what each node is started with."""
    from fedrec_app.data import sources
    from fedrec_app.data.prepare import RECIPES
    from fedrec_app.data.prepare import prepare as prepare_data
    from fedrec_app.data.shards import write_shards

    with tempfile.TemporaryDirectory(prefix="fedrec-data-") as scratch:
        if name in RECIPES and (source is None or source.is_file()):
            prepare_data(name, source, scratch)
            source = Path(scratch)
        dataset = sources.load(name, str(source or ""), columns, least, options, _DEFAULT.seed)
    for line in dataset.report.lines():
        stderr.print(line, highlight=False)
    shards = write_shards(dataset, partition, nodes, _DEFAULT.seed, out, {"data.min-interactions": least})
    table = Table("node", "users", "interactions", "data-path", title=f"{name}: {len(dataset.catalog):,} items")
    for node in range(nodes):
        sizes = (f"{shards.num_users[node]:,}", f"{shards.num_interactions[node]:,}")
        table.add_row(str(node), *sizes, str(shards.node(node)))
    stderr.print(table)
    own = f'data-path="{shards.node(0)}" state-dir="/var/lib/fedrec/state" partition-id=0 num-partitions={nodes}'
    stderr.print(f"a node: --node-config '{own}'", highlight=False, soft_wrap=True, markup=False)
    stdout.print(f"fedrec run CONNECTION -c {shards.settings}", highlight=False, soft_wrap=True)


@data_commands.command()
def clean(
    name: Name,
    out: Annotated[Path, typer.Option("--out", help="Empty folder to write to.")],
    path: DataPath = "",
    columns: Columns = "",
    options: Options = "{}",
    min_interactions: MinInteractions = _DEFAULT.min_interactions,
    max_interactions: MaxInteractions = _DEFAULT.max_interactions,
    session_gap: SessionGap = _DEFAULT.session_gap,
    k_core: KCore = _DEFAULT.k_core,
) -> None:
    """Write what the cleaning rules leave of a data set to a folder that the data set csv reads."""
    from fedrec_app.data import sources
    from fedrec_app.data.prepare import write_clean

    dataset = sources.load(
        name, path, columns, min_interactions, options, _DEFAULT.seed,
        max_interactions=max_interactions, session_gap=session_gap, k_core=k_core,
    )  # fmt: skip
    for line in dataset.report.lines():
        stderr.print(line, highlight=False)
    file, to_read = write_clean(dataset, out)
    where = str(file.absolute())
    flat: dict[str, Scalar] = {"data.name": "csv", "data.path": where, "data.options": json.dumps(to_read)}
    settings = file.parent / "settings.toml"
    settings.write_text(to_toml(flat))
    stdout.print(f"fedrec simulate -c {settings.absolute()}", highlight=False, soft_wrap=True)


@data_commands.command()
def stats(
    name: Name,
    path: DataPath = "",
    columns: Columns = "",
    options: Options = "{}",
    min_interactions: MinInteractions = _DEFAULT.min_interactions,
    max_interactions: MaxInteractions = _DEFAULT.max_interactions,
    session_gap: SessionGap = _DEFAULT.session_gap,
    k_core: KCore = _DEFAULT.k_core,
    num_nodes: Annotated[int, typer.Option("--num-nodes", min=1, help="Nodes that the users are dealt to.")] = 8,
    partition: Annotated[str, typer.Option(help="users, by:<column> or dirichlet:<alpha>.")] = "users",
    out: Annotated[Path, typer.Option("--out", help="Folder for stats.png and quarantine.csv.")] = Path("outputs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Show users, items, density, the long tail, what cleaning removed and the sizes of nodes, as a table and a
    picture."""
    import importlib.util

    from fedrec_app.data import sources
    from fedrec_app.data.partition import partition as deal
    from fedrec_app.data.stats import plot
    from fedrec_app.data.stats import stats as describe

    dataset = sources.load(
        name, path, columns, min_interactions, options, _DEFAULT.seed,
        max_interactions=max_interactions, session_gap=session_gap, k_core=k_core,
    )  # fmt: skip
    nodes = deal(dataset.users, partition, num_nodes, _DEFAULT.seed)
    found = describe(dataset, nodes, num_nodes)
    for line in dataset.report.lines():
        stderr.print(line, highlight=False)
    if not found["timestamps"]:
        stderr.print(_NO_TIME, highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    if len(dataset.quarantine):
        dataset.quarantine.write(out / "quarantine.csv")
        stderr.print(f"rows set aside: {out / 'quarantine.csv'}", highlight=False, soft_wrap=True)
    if importlib.util.find_spec("matplotlib"):
        plot(found, out / "stats.png")
        stderr.print(f"picture: {out / 'stats.png'}", highlight=False, soft_wrap=True)
    else:
        stderr.print("no picture: pip install 'fedrec[report]'", markup=False)
    if as_json:
        print(json.dumps(found))
        return
    table = Table(title=name)
    table.add_column("what")
    table.add_column("value", justify="right")
    for rule, removed in found.pop("cleaning", {}).get("rules", {}).items():
        counts = {what: removed[what] for what in ("users", "items", "interactions") if removed[what]}
        lines = [f"{n:,} {what} ({removed[f'share_of_{what}']:.2%})" for what, n in counts.items()]
        table.add_row(f"removed by {rule} {removed['value']}", "\n".join(lines) or "nothing")
    for key, value in found.items():
        if isinstance(value, float):
            table.add_row(key, f"{value:.4f}")
        elif isinstance(value, bool):
            table.add_row(key, "yes" if value else "no")
        elif isinstance(value, int):
            table.add_row(key, f"{value:,}")
        elif isinstance(value, dict):
            for inner, number in value.items():
                table.add_row(f"{key} {inner}", f"{number:g}")
    sizes = found["users_per_node"]
    table.add_row("users_per_node, smallest to largest", f"{min(sizes)} to {max(sizes)}")
    stdout.print(table)
