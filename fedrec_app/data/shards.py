"""One folder a node, and what the server needs: a data set dealt to the nodes of a deployment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedrec_app.config import Scalar, to_toml
from fedrec_app.data.partition import partition
from fedrec_app.data.prepare import write_clean
from fedrec_app.data.schema import Dataset
from fedrec_app.errors import ConfigError, DataError
from fedrec_app.files import write_atomically

SETTINGS = "run.toml"
MOST_NODES = 100_000
_REQUIRED = ("timestamp", "label")


@dataclass(frozen=True)
class Shards:
    """A dealt data set: `<folder>/server`, `<folder>/node-<i>` and `<folder>/run.toml`.

    Attributes:
        folder: where it is.
        num_users: (num_nodes,) how many users each node has.
        num_interactions: (num_nodes,) what they did.
    """

    folder: Path
    num_users: tuple[int, ...]
    num_interactions: tuple[int, ...]

    @property
    def settings(self) -> Path:
        """The settings of a run on these shards."""
        return self.folder / SETTINGS

    def node(self, partition_id: int) -> Path:
        """Returns the folder of a node: its `data-path`."""
        return self.folder / f"node-{partition_id}"


def write_shards(
    dataset: Dataset, scheme: str, num_nodes: int, seed: int, out_dir: str | Path, settings: dict[str, Scalar]
) -> Shards:
    """Returns a data set dealt to nodes as a simulation with as many nodes deals it, so that both find the same.

    A node's folder has all that the node reads: its users' interactions and attributes, edges between its own users,
    and the catalog. The server's folder has the catalog alone.

    Args:
        dataset: loaded and cleaned: which users an item has nobody can count later.
        scheme: see `partition`.
        num_nodes: how many nodes there are.
        seed: `data.seed` of the runs.
        out_dir: folder to write to; made if needed, and empty.
        settings: further settings for the runs, by dotted key.

    Raises:
        ConfigError: the scheme does not fit the data, or there are too many nodes.
        DataError: the folder cannot be written to, or has files in it.
    """
    if num_nodes > MOST_NODES:
        raise ConfigError(f"cannot deal users to {num_nodes} nodes: {MOST_NODES} at most")
    nodes = partition(dataset.users, scheme, num_nodes, seed)
    of_row = nodes[dataset.user_codes]
    out = Path(out_dir).absolute()
    options: dict[str, str] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise DataError(f"cannot write to {out}: it is not empty")
        (out / "server").mkdir()
        dataset.catalog.to_file(out / "server" / "catalog.jsonl")
        for node in range(num_nodes):
            shard = dataset.restricted(nodes == node, of_row == node, dataset.catalog)
            _, options = write_clean(shard, folder := out / f"node-{node}")
            folder.chmod(0o700)  # what users did is for the node's own eyes
        flat: dict[str, Scalar] = {
            "data.name": "csv",
            "data.path": str(out / "server"),
            # What is written has standard names, whatever the columns were called before.
            "data.columns": "",
            "data.options": json.dumps(options),
            "data.requires": ",".join(name for name in _REQUIRED if name in dataset.interactions.table),
            **settings,
        }
        write_atomically(out / SETTINGS, to_toml(flat).encode())
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error}") from error
    users, rows = (np.bincount(part, minlength=num_nodes).tolist() for part in (nodes, of_row))
    return Shards(out, tuple(users), tuple(rows))
