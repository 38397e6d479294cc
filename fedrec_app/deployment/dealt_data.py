"""Data for the nodes of a deployment on one machine: shards that are there, or are made now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedrec_app.config import DataConfig, Scalar, read_toml
from fedrec_app.data import sources
from fedrec_app.data.shards import SETTINGS, write_shards
from fedrec_app.errors import ConfigError

_OF_SHARDS = ("data.name", "data.path", "data.columns")


@dataclass(frozen=True)
class DealtData:
    """What nodes and run are told of shards.

    Attributes:
        nodes: `--node-config` of each node, without a state-dir.
        settings: of a run on them.
    """

    nodes: tuple[dict[str, Scalar], ...]
    settings: Mapping[str, Scalar]

    def told(self, flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Returns the settings of a run on the shards: the user's, but how the shards are read is theirs to say.

        Args:
            flat: the user's settings, by dotted key.
        """
        read = {key: self.settings[key] for key in _OF_SHARDS if key in self.settings}
        return {**self.settings, **flat, **read}

    @classmethod
    def read(cls, folder: Path) -> DealtData:
        """Returns the shards that `fedrec data prepare --nodes` wrote to a folder.

        Raises:
            ConfigError: there are none.
        """
        folder = folder.expanduser().absolute()
        if not (folder / SETTINGS).is_file():
            raise ConfigError(f"no shards in {folder}: write some, fedrec data prepare NAME --nodes N --out {folder}")
        found = sorted(folder.glob("node-*"), key=lambda path: int(path.name.removeprefix("node-")))
        if [path.name for path in found] != [f"node-{index}" for index in range(len(found))] or not found:
            raise ConfigError(f"the shards in {folder} are not complete: {', '.join(path.name for path in found)}")
        nodes = tuple(
            {"partition-id": index, "num-partitions": len(found), "data-path": str(path)}
            for index, path in enumerate(found)
        )
        return cls(nodes, read_toml(folder / SETTINGS))

    @classmethod
    def deal(cls, config: DataConfig, num_nodes: int, folder: Path) -> DealtData:
        """Returns shards that are made now, as a simulation with as many nodes deals its users.

        Args:
            config: the data of the run.
            num_nodes: how many nodes there are.
            folder: empty or new, for the shards.

        Raises:
            FedrecError: no such data, or it cannot be dealt so.
        """
        dataset = sources.load(
            config.name, config.path, config.columns, config.min_interactions, config.options, config.seed,
            max_interactions=config.max_interactions, session_gap=config.session_gap, k_core=config.k_core,
        )  # fmt: skip
        # Looks across users, and has been applied.
        settings: dict[str, Scalar] = {"data.min-interactions": config.min_interactions, "data.k-core": 0}
        write_shards(dataset, config.partition, num_nodes, config.seed, folder, settings)
        return cls.read(folder)
