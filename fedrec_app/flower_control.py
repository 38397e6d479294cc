"""What a SuperLink is asked and told through `flwr`: its runs, its SuperNodes, to stop and to register."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrec_app.errors import FedrecError
from fedrec_app.flower_process import executable

COMPLETED, STOPPED = "finished:completed", "finished:stopped"
_TIMEOUT = 120.0


@dataclass(frozen=True)
class RunState:
    """What a SuperLink says of a run.

    Attributes:
        status: "pending", "starting", "running", or "finished:" and how.
        details: why, where it says so.
    """

    status: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether it is over, one way or another."""
        return self.status.startswith("finished")


@dataclass(frozen=True)
class FlowerControl:
    """A SuperLink, as `flwr` reaches it.

    Attributes:
        connection: a SuperLink connection of Flower's config.toml.
        environment: of the commands; its FLWR_HOME has that file.
    """

    connection: str
    environment: Mapping[str, str]

    def run_state(self, run_id: str) -> RunState:
        """Returns how a run is.

        Raises:
            FedrecError: the SuperLink does not answer, or does not know the run.
        """
        said = self._ask("ls", self.connection, "--run-id", run_id)
        try:
            (run,) = said["runs"]
            details = str(run.get("status-details", ""))
            return RunState(str(run["status"]), "" if details == "N/A" else details)
        except (KeyError, ValueError, TypeError) as error:
            raise FedrecError(f"the SuperLink's answer about run {run_id} is not understood: {error!r}") from None

    def stop(self, run_id: str) -> None:
        """Stops a run.

        Raises:
            FedrecError: the SuperLink does not answer, or the run is over.
        """
        self._ask("stop", run_id, self.connection)

    def nodes(self) -> list[dict[str, Any]]:
        """Returns the registered SuperNodes, as Flower describes them: "node-id", "status" and more."""
        said = self._ask("supernode", "list", self.connection).get("nodes")
        if not isinstance(said, list):
            raise FedrecError("the SuperLink's answer about its SuperNodes is not understood")
        return said

    def register(self, public_key: Path) -> int:
        """Returns the id of a SuperNode whose key the SuperLink accepts from now on.

        Raises:
            FedrecError: it does not answer, or refuses the key.
        """
        return int(self._ask("supernode", "register", str(public_key), self.connection)["node-id"])

    def unregister(self, node_id: int) -> None:
        """Makes the SuperLink forget a SuperNode and its key.

        Raises:
            FedrecError: it does not answer, or there is no such node.
        """
        self._ask("supernode", "unregister", str(node_id), self.connection)

    def _ask(self, *command: str) -> dict[str, Any]:
        try:
            done = subprocess.run(
                [executable("flwr"), *command, "--format", "json"],
                env=dict(self.environment), capture_output=True, text=True, timeout=_TIMEOUT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise FedrecError(f"SuperLink {self.connection!r} does not answer within {_TIMEOUT:.0f} s") from None
        said = _json(done.stdout)
        if said is None:
            text = " ".join((done.stderr or done.stdout).split())
            raise FedrecError(f"flwr {command[0]}: {text[-500:] or 'no answer'}")
        if not said.get("success", True):
            # What it was about to do comes first, then, after an empty line, what is wrong.
            wrong = str(said.get("error-message", said)).rsplit("\n\n", 1)[-1]
            raise FedrecError(f"flwr {command[0]}: {wrong.strip()}")
        return said


def _json(text: str) -> dict[str, Any] | None:
    """Returns the JSON object that `flwr --format json` prints, None where it printed none."""
    start = text.find("{")
    try:
        found = json.loads(text[start:]) if start >= 0 else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
