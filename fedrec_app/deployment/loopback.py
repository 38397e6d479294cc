"""A whole deployment on one machine, in one folder: what several machines have, without the network between them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from fedrec_app.config import Scalar, to_toml
from fedrec_app.deployment.certificates import Certificates, make_authority, make_server_certificate
from fedrec_app.deployment.commands import SuperLinkSettings, SuperNodeSettings
from fedrec_app.deployment.node_keys import make_node_key
from fedrec_app.deployment.part import Part
from fedrec_app.deployment.supervisor import Backoff, Supervisor
from fedrec_app.deployment.touch import Touch
from fedrec_app.errors import ConfigError, FedrecError, StateError
from fedrec_app.files import write_atomically
from fedrec_app.flower_control import FlowerControl
from fedrec_app.flower_process import end_tree, flower_environment, free_port, listens, living_in

CONNECTION = "loopback"
START_TIMEOUT = 180.0
"""Seconds; on a machine that is busy with others, processes that import much take long."""
_HOST = "127.0.0.1"
_NODE_CONFIG = "node.toml"
_NODE_ID = re.compile(r"SuperNode ID: (\d+)")
_REGISTERED = "Public key already in use"
_REFUSED = "[code: 2004]"


class Loopback:
    """A SuperLink and its SuperNodes, brought up on `with` and ended after it, each with a FLWR_HOME of its own.

    Below the folder lie `certificates/`, `superlink/` (database, log), `node-<i>/` (key, node.toml, log, state) and
    `flwr/` (what users have: config.toml with the connection). One deployment at a time has the folder. Nothing is
    written or started before `with`.

    Args:
        folder: of the deployment. What an earlier one left there (certificates, keys, database, state) is used again.
        nodes: what each node is told (`--node-config`). Where a node is told no state-dir, it gets one in the folder.
        insecure: no TLS and no authentication.
        supervised: a part that ends, or is out of touch, is started again, with back-off. For faults that are made by
            hand, leave it off.
        say: is told what happens.
        variables: added to the environment of every process.

    Attributes:
        folder: as given, absolute, without links.
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
        self.folder, self.supervised, self.port = folder.resolve(), supervised, free_port()
        self._lock = FileLock(self.folder / "lock", timeout=0, thread_local=False)
        self._say, self._variables = say, dict(variables or {})
        self.certificates = None if insecure else Certificates(self.folder / "certificates")
        self.environment = self._environment("flwr")
        self.control = FlowerControl(CONNECTION, self.environment)
        self.superlink = self._superlink()
        self.supernodes = [self._supernode(index) for index in range(len(nodes))]
        self._told = nodes
        self.supervisors: list[Supervisor] = []

    def __enter__(self) -> Loopback:
        """Returns itself, once every SuperNode is accepted.

        Raises:
            StateError: another process has a deployment in the folder.
            FedrecError: a part ended, or took too long.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise StateError(f"another process has a deployment in {self.folder}") from None
        try:
            self._end_leftovers()
            self._write_files()
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

        A node that was killed is held for alive until its heartbeat lapses, and refused: one that is supervised comes
        back, and is waited for.

        Raises:
            FedrecError: the SuperNode ended, or it is too late.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                left = end - time.monotonic()
                node.wait(lambda: _NODE_ID.search(node.logged()) is not None, left, "the SuperLink accepts it")
                return int(_NODE_ID.findall(node.logged())[-1])
            except FedrecError:
                if not self.supervisors or _REFUSED not in node.logged() or time.monotonic() > end:
                    raise
                time.sleep(0.5)

    def stop(self) -> None:
        """Ends exactly what was started, the SuperNodes first; what fails to end does not keep the others."""
        keepers, self.supervisors = self.supervisors, []
        with ExitStack() as steps:  # the last one comes first
            steps.callback(self._lock.release)
            steps.callback(self.superlink.stop)
            steps.callback(_at_once, [node.stop for node in self.supernodes])
            steps.callback(_at_once, [keeper.stop for keeper in reversed(keepers)])

    def node_folder(self, index: int) -> Path:
        """Returns the folder of a node."""
        return self.folder / f"node-{index}"

    def _start(self, part: Part) -> None:
        if not self.supervised:
            part.start()
            return
        if part is self.superlink:  # it has nobody who would refuse it, or whom it is in touch with
            keeper = Supervisor(part, Backoff(first=1.0, cap=15.0), say=self._say)
        else:
            keeper = Supervisor(part, say=self._say, out_of_touch=Touch(part).lost)
        self.supervisors.append(keeper)
        keeper.start()

    def _end_leftovers(self) -> None:
        """Ends what a deployment left that was killed: its SuperNodes first, so that they can say good-bye.

        What lives in the users' home is theirs.
        """
        for home in (*self.folder.glob("node-*"), self.folder / "superlink"):
            left = {process.pid for process in living_in(str(home))}
            if left:
                self._say(f"ending what an earlier deployment left in {home}: {', '.join(map(str, sorted(left)))}")
                end_tree(min(left), str(home))

    def _write_files(self) -> None:
        for environment in (self.environment, self.superlink.environment, *(n.environment for n in self.supernodes)):
            Path(environment["FLWR_HOME"]).mkdir(exist_ok=True)
        if self.certificates is not None:
            if not self.certificates.ca.exists():
                make_authority(self.certificates.folder)
            if not self.certificates.server.exists():
                make_server_certificate(self.certificates.folder, ["localhost"])
        self._write_connection()
        for index, told in enumerate(self._told):
            folder = self.node_folder(index)
            settings: dict[str, Scalar] = {"state-dir": str(folder / "state"), **told}
            write_atomically(folder / _NODE_CONFIG, to_toml(settings).encode())
            if self.certificates is not None and not (folder / "key.pub").exists():
                # Without its public half, which is written last, it was never registered.
                (folder / "key").unlink(missing_ok=True)
                make_node_key(folder / "key")

    def _environment(self, name: str) -> dict[str, str]:
        return {**flower_environment(str(self.folder / name)), **self._variables}

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

    def _supernode(self, index: int) -> Part:
        folder = self.node_folder(index)
        ca, key = (self.certificates.ca, folder / "key") if self.certificates else (None, None)
        settings = SuperNodeSettings(f"{_HOST}:{self.port}", folder / _NODE_CONFIG, ca, key, free_port())
        environment = self._environment(folder.name)
        return Part(f"SuperNode {index}", settings.command(), environment, folder / "supernode.log")

    def _register(self) -> None:
        """Makes the SuperLink accept the keys of the nodes; its database alone knows which it has accepted before."""
        self._say("registering the keys of the SuperNodes")
        for index in range(len(self.supernodes)):
            try:
                self.control.register(self.node_folder(index) / "key.pub")
            except FedrecError as error:
                if _REGISTERED not in str(error):
                    raise


def _at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Makes all calls, each in a thread of its own; raises what the first of them raised that failed."""
    if calls:
        with ThreadPoolExecutor(max_workers=len(calls)) as pool:
            done = [pool.submit(call) for call in calls]
        for one in done:
            one.result()
