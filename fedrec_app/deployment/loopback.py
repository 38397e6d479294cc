"""A whole deployment on one machine, in one folder: what several machines have, without the network between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from fedrec_app.config import Scalar, to_toml
from fedrec_app.deployment.certificates import Certificates, make_authority, make_server_certificate
from fedrec_app.deployment.commands import SuperLinkSettings, SuperNodeSettings
from fedrec_app.deployment.node_keys import make_node_key
from fedrec_app.deployment.part import Part
from fedrec_app.deployment.supervisor import Backoff, Supervisor
from fedrec_app.errors import ConfigError
from fedrec_app.files import write_atomically
from fedrec_app.flower_control import FlowerControl
from fedrec_app.flower_process import flower_environment, free_port, listens

CONNECTION = "loopback"
START_TIMEOUT = 180.0
"""Seconds; on a machine that is busy with others, processes that import much take long."""
_HOST = "127.0.0.1"
_NODE_ID = re.compile(r"SuperNode ID: (\d+)")


class Loopback:
    """A SuperLink and its SuperNodes, brought up on `with` and ended after it, each with a FLWR_HOME of its own.

    Below the folder lie `certificates/`, `superlink/` (database, log), `node-<i>/` (key, node.toml, log, state) and
    `flwr/` (what users have: config.toml with the connection).

    Args:
        folder: of the deployment. What an earlier one left there (certificates, keys, database, state) is used again.
        nodes: what each node is told (`--node-config`). Where a node is told no state-dir, it gets one in the folder.
        insecure: no TLS and no authentication.
        supervised: a part that ends is started again, with back-off. For faults that are made by hand, leave it off.
        say: is told what happens.
        variables: added to the environment of every process.

    Attributes:
        folder: as given, absolute.
        connection: name for `flwr run . NAME` and `fedrec run NAME` with `environment`.
        environment: of a user's commands.
        superlink: the SuperLink.
        supernodes: the SuperNodes, in the order of `nodes`.
        supervisors: one for each part, the SuperLink's first; empty where it is not supervised.
        control: the SuperLink as `flwr` reaches it.
        certificates: None where it is insecure.
        port: of the SuperLink.
    """

    connection = CONNECTION

    def __init__(
        self,
        folder: Path,
        nodes: Sequence[Mapping[str, Scalar]],
        insecure: bool = False,
        supervised: bool = False,
        say: Callable[[str], None] = lambda line: None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        if not nodes:
            raise ConfigError("a deployment needs a node")
        self.folder, self.supervised, self.port = folder.absolute(), supervised, free_port()
        self._say, self._variables = say, dict(variables or {})
        self.certificates = None if insecure else self._certificates()
        self.environment = self._environment("flwr")
        self.control = FlowerControl(CONNECTION, self.environment)
        self._write_connection()
        self.superlink = self._superlink()
        self.supernodes = [self._supernode(index, settings) for index, settings in enumerate(nodes)]
        self.supervisors: list[Supervisor] = []

    def __enter__(self) -> Loopback:
        try:
            self._say(f"starting the SuperLink on {_HOST}:{self.port}")
            self._start(self.superlink)
            self.await_superlink()
            if self.certificates is not None:
                self._register()
            self._say(f"starting {len(self.supernodes)} SuperNodes")
            for node in self.supernodes:
                self._start(node)
            for node in self.supernodes:
                self.await_supernode(node)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def await_superlink(self, seconds: float = START_TIMEOUT) -> None:
        """Waits until the SuperLink accepts connections.

        Raises:
            FedrecError: it ended, or it is too late.
        """
        self.superlink.wait(lambda: listens(self.port), seconds, "it accepts connections")

    def await_supernode(self, node: Part, seconds: float = START_TIMEOUT) -> int:
        """Returns the node id that the SuperLink has given a SuperNode, once it has.

        Raises:
            FedrecError: the SuperNode ended, or it is too late.
        """
        node.wait(lambda: _NODE_ID.search(node.logged()) is not None, seconds, "the SuperLink accepts it")
        found = _NODE_ID.findall(node.logged())
        return int(found[-1])

    def stop(self) -> None:
        """Ends exactly what was started, the SuperNodes first."""
        keepers, self.supervisors = self.supervisors, []
        with ThreadPoolExecutor(max_workers=len(self.supernodes) + 1) as pool:
            list(pool.map(lambda keeper: keeper.stop(), reversed(keepers)))
            list(pool.map(lambda node: node.stop(), self.supernodes))
        self.superlink.stop()

    def node_folder(self, index: int) -> Path:
        """Returns the folder of a node."""
        return self.folder / f"node-{index}"

    def _start(self, part: Part) -> None:
        if not self.supervised:
            part.start()
            return
        # A SuperLink has nobody who would refuse it.
        backoff = Backoff(first=1.0, cap=15.0) if part is self.superlink else Backoff()
        self.supervisors.append(Supervisor(part, backoff, say=self._say))
        self.supervisors[-1].start()

    def _certificates(self) -> Certificates:
        found = Certificates(self.folder / "certificates")
        if not found.ca.exists():
            make_authority(found.folder)
        if not found.server.exists():
            make_server_certificate(found.folder, ["localhost"])
        return found

    def _environment(self, name: str) -> dict[str, str]:
        home = self.folder / name
        home.mkdir(parents=True, exist_ok=True)
        return {**flower_environment(str(home)), **self._variables}

    def _write_connection(self) -> None:
        trust = {"insecure": True} if self.certificates is None else {"root-certificates": str(self.certificates.ca)}
        settings: dict[str, Scalar] = {"address": f"{_HOST}:{self.port}", **trust}
        text = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n{to_toml(settings)}'
        write_atomically(Path(self.environment["FLWR_HOME"]) / "config.toml", text.encode())

    def _superlink(self) -> Part:
        folder = self.folder / "superlink"
        settings = SuperLinkSettings(
            folder / "state.db", self.certificates, self.certificates is not None, _HOST, self.port
        )
        return Part("the SuperLink", settings.command(), self._environment("superlink"), folder / "superlink.log")

    def _supernode(self, index: int, told: Mapping[str, Scalar]) -> Part:
        folder = self.node_folder(index)
        environment = self._environment(folder.name)
        node_config = folder / "node.toml"
        write_atomically(node_config, to_toml({"state-dir": str(folder / "state"), **told}).encode())
        key = None
        if self.certificates is not None:
            key = folder / "key"
            if not key.exists():
                make_node_key(key)
        ca = self.certificates.ca if self.certificates else None
        settings = SuperNodeSettings(f"{_HOST}:{self.port}", node_config, ca, key, free_port())
        return Part(f"SuperNode {index}", settings.command(), environment, folder / "supernode.log")

    def _register(self) -> None:
        """Makes the SuperLink accept the keys of the nodes; its database remembers them."""
        self._say("registering the keys of the SuperNodes")
        for index in range(len(self.supernodes)):
            folder = self.node_folder(index)
            known = folder / "registered"
            if not known.exists():
                node_id = self.control.register(folder / "key.pub")
                write_atomically(known, f"{node_id}\n".encode())
