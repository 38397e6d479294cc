"""What an operator tells a node (`--node-config`), and what that makes of a run's settings on this node.

    partition-id    the node's number in the federation; without it one is drawn, once, and kept in the state-dir
    num-partitions  how many nodes there are
    state-dir       where the node keeps private state, feedback and its partition-id
    data-path       file or folder that this node alone has: all its users are the node's
    data-name, data-columns, data-options    in the place of the run's own settings of that name
    catalog-path    the shared catalog, in the place of the one that the data's options name

Without `data-path` a node takes its part of the run's `data.path`, as every node of a simulation does.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from fedrec_app.config import DataConfig, RunConfig, Scalar, parse_options
from fedrec_app.errors import ConfigError, did_you_mean, nearest
from fedrec_app.files import write_atomically

_DATA = ("data-name", "data-path", "data-columns", "data-options")
KEYS = ("partition-id", "num-partitions", "state-dir", *_DATA, "catalog-path")
MOST_PARTITIONS = 1_000_000_000
_ID_FILE = "partition-id"
_START = "start the node with --node-config 'partition-id=0 num-partitions=2', or with state-dir and data-path"


class OwnData(DataConfig, frozen=True):
    """Settings of data that one node alone has: every user in it is the node's.

    Attributes:
        state_dir: of the node, where its feedback is.
        feedback_events: how many of them, the first ones, belong to the data of this run.
    """

    state_dir: str
    feedback_events: int = 0


@dataclass(frozen=True)
class NodeSettings:
    """What an operator told a node.

    Attributes:
        partition_id: the node's number in the federation.
        num_partitions: how many nodes there are; 0 where the node was not told.
        state_dir: where the node keeps state.
        durable: whether that must survive a power cut: not in a simulation.
        data: what takes the place of the run's own `data.` settings, by key; empty where the node has no data of its
            own.
        catalog_path: file of the shared catalog; "" for what the data's options name.
    """

    partition_id: int
    num_partitions: int
    state_dir: Path
    durable: bool = True
    data: Mapping[str, str] = field(default_factory=dict)
    catalog_path: str = ""

    @classmethod
    def of(cls, node_config: Mapping[str, Scalar], simulated: Path) -> NodeSettings:
        """Returns the settings of a node.

        Args:
            node_config: as Flower carries them. Keys that are not like ours are left to other apps.
            simulated: where a simulation keeps the state of its nodes.

        Raises:
            ConfigError: a key is misspelt, a number is none, or what goes together does not.
        """
        for key in set(node_config) - set(KEYS):
            if nearest(key, KEYS):
                raise ConfigError(f"unknown node setting {key!r}{did_you_mean(key, KEYS)}")
        own = str(node_config.get("state-dir", ""))
        data = {key.removeprefix("data-"): str(node_config[key]) for key in _DATA if key in node_config}
        if data and not data.get("path"):
            raise ConfigError(f"node setting data-{next(iter(data))} needs data-path: this node's own file or folder")
        if data and not own:
            raise ConfigError("a node with data-path needs a state-dir: private state must not be mixed with others'")
        if data and Path(own).expanduser().absolute() == Path(data["path"]).expanduser().absolute():
            raise ConfigError(f"state-dir and data-path are both {own}: what the node writes must not be its data")
        catalog = str(node_config.get("catalog-path", ""))
        if catalog and not data:
            raise ConfigError("node setting catalog-path goes with data-path: without it the run's data has a catalog")
        folder = Path(own).expanduser() if own else simulated
        if own:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # its folders tell which users are there
        partition, total = _numbers(node_config, folder if data else None)
        return cls(partition, total, folder, bool(own), data, str(Path(catalog).expanduser()) if catalog else "")

    def of_run(self, config: RunConfig, feedback_events: int = 0) -> RunConfig:
        """Returns the settings of a run as they hold on this node: its own data takes the place of the run's.

        Args:
            config: of the run.
            feedback_events: see `OwnData`.

        Raises:
            ConfigError: the run's data settings make no sense for the data of one node.
        """
        if not self.data:
            return config
        if config.data.k_core:
            raise ConfigError("data.k-core looks across users: run `fedrec data clean` before nodes get their shards")
        options = self.data.get("options", config.data.options)
        if self.catalog_path:
            options = json.dumps({**parse_options(options, "data.options"), "catalog": self.catalog_path})
        said = {**config.data.model_dump(), **self.data, "options": options}
        said["path"] = str(Path(said["path"]).expanduser())
        own = OwnData(**said, state_dir=str(self.state_dir), feedback_events=feedback_events)
        return config.model_copy(update={"data": own})


def _numbers(node_config: Mapping[str, Scalar], state_dir: Path | None) -> tuple[int, int]:
    """Returns partition-id and num-partitions.

    Args:
        node_config: of the node.
        state_dir: of a node with data of its own: there both may be missing.
    """
    given: dict[str, int] = {}
    for key in ("partition-id", "num-partitions"):
        if key not in node_config and state_dir is None:
            raise ConfigError(f"this node has no {key}: {_START}")
        if key in node_config:
            given[key] = _whole_number(key, node_config[key])
    partition = given["partition-id"] if "partition-id" in given or state_dir is None else _drawn_once(state_dir)
    total = given.get("num-partitions", 0)
    most = total or MOST_PARTITIONS
    if not 0 <= partition < most:
        raise ConfigError(f"partition-id is {partition}: 0 to {most - 1} is allowed")
    return partition, total if "partition-id" in given else 0


def _whole_number(key: str, value: Scalar) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) < 19:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{key} is {value!r}: a whole number is expected")
    return value


def _drawn_once(state_dir: Path) -> int:
    """Returns the number that this node drew when it was asked for the first time."""
    path = state_dir / _ID_FILE
    state_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(state_dir / f"{_ID_FILE}.lock", timeout=60):
        if not path.is_file():
            write_atomically(path, f"{secrets.randbelow(MOST_PARTITIONS)}\n".encode())
        text = path.read_text(encoding="utf-8").strip()
    if not text.isdecimal():
        raise ConfigError(f"{path} holds {text[:20]!r}: a whole number is expected; give partition-id instead")
    return int(text)
