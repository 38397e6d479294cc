"""The deployment that a campaign hurts: a SuperLink, SuperNodes behind links that can be cut, and small data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from campaign.link import Link
from fedrec_app.config import RunConfig, Scalar
from fedrec_app.deployment.dealt_data import DealtData
from fedrec_app.deployment.loopback import Loopback
from fedrec_app.deployment.part import Part
from fedrec_app.errors import FedrecError

SERVER_APP, CLIENT_APP = "flwr-serverapp", "flwr-clientapp"
_SMALL = {"num_users": 60, "num_items": 80, "mean_interactions": 15, "min_interactions": 8}
SETTINGS: dict[str, Scalar] = {
    "seed": 7,
    "evaluate.every": 3,
    "evaluate.bootstrap": 0,
    # Sampled negatives keep private rows on the nodes.
    "model.options": '{"loss": "bce"}',
    "train.num-negatives": 2,
    "checkpoint.every": 1,
    "strategy.join-timeout": 120.0,
    "strategy.round-timeout": 60.0,
}
PRIVATE: dict[str, Scalar] = {"privacy.unit": "user", "privacy.noise-multiplier": 1.0, "strategy.options": "{}"}
_TAU: dict[str, Scalar] = {"strategy.options": '{"tau": 1e-4}'}
_HEALED = 120.0


@dataclass
class Place:
    """A deployment that is up.

    Attributes:
        loopback: SuperLink and SuperNodes.
        links: by node.
        settings: of every run on it.
        num_users: of all nodes together.
    """

    loopback: Loopback
    links: list[Link]
    settings: dict[str, Scalar]

    def run_settings(self, private: bool, rounds: int, output_dir: Path, min_nodes: int = 1) -> dict[str, Scalar]:
        """Returns the settings of a run."""
        return {
            **self.settings,
            **(PRIVATE if private else _TAU),
            "num-server-rounds": rounds,
            "strategy.min-nodes": min_nodes,
            "output-dir": str(output_dir),
        }

    def process(self, part: Part, name: str) -> psutil.Process | None:
        """Returns the newest process of a part whose command line has this name in it."""
        found: list[tuple[float, psutil.Process]] = []
        for process in part.family():
            try:
                # Flower's executor forks it, so it has the name of what is run in its arguments.
                if any(Path(word).name == name for word in process.cmdline()):
                    found.append((process.create_time(), process))
            except psutil.Error:
                continue
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def state_dir(self, node: int) -> Path:
        """Returns where a node keeps private state."""
        return self.loopback.node_folder(node) / "state"

    def heal(self) -> tuple[float, list[str]]:
        """Returns the seconds until every part is up and every node online again, and who had to be started by hand.

        Raises:
            FedrecError: it took too long even so.
        """
        began = time.monotonic()
        by_hand: list[str] = []
        for link in self.links:
            link.heal()
        while time.monotonic() - began < 2 * _HEALED:
            try:
                status = {int(node["node-id"]): node["status"] for node in self.loopback.control.nodes()}
                if all(part.alive for part in self.parts) and all(one == "online" for one in status.values()):
                    return time.monotonic() - began, by_hand
                if time.monotonic() - began > _HEALED and not by_hand:
                    for node in self.loopback.supernodes:
                        if node.alive and status.get(self.loopback.await_supernode(node)) != "online":
                            by_hand.append(node.name)
                            node.restart()
            except FedrecError:
                pass
            time.sleep(1.0)
        raise FedrecError(f"not all of the deployment came back within {2 * _HEALED:.0f} s")

    @property
    def parts(self) -> list[Part]:
        """The SuperLink and the SuperNodes."""
        return [self.loopback.superlink, *self.loopback.supernodes]


@contextmanager
def place(folder: Path, num_nodes: int, say: Callable[[str], None]) -> Iterator[Place]:
    """Yields a deployment with TLS, authentication and supervision, each node behind a link.

    Args:
        folder: empty or new; its path is short.
        num_nodes: how many SuperNodes.
        say: is told what happens.
    """
    dealt = DealtData.deal(
        RunConfig.from_flat({"data.options": json.dumps(_SMALL)}).data, num_nodes, folder / "shards"
    )  # fmt: skip
    loopback = Loopback(folder / "d", dealt.nodes, supervised=True, say=say)
    links = [Link(loopback.port) for _ in dealt.nodes]
    direct = f"127.0.0.1:{loopback.port}"
    for node, link in zip(loopback.supernodes, links, strict=True):
        node.command = [f"127.0.0.1:{link.entry}" if word == direct else word for word in node.command]
    try:
        with loopback:
            yield Place(loopback, links, {**SETTINGS, **dealt.settings})
    finally:
        for link in links:
            link.close()
