"""What the end-to-end tests share: small data, settings as a command line, comparisons, and the processes of a run."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fedrec_app.artifacts import RunFolder
from fedrec_app.config import Scalar, to_toml
from fedrec_app.deployment.dealt_data import DealtData
from fedrec_app.deployment.loopback import Loopback
from fedrec_app.operation import json_log
from fedrec_app.records import Arrays
from tests.conftest import REPO

MARK = "FEDREC_E2E"
SMALL_DATA = json.dumps({"num_users": 60, "num_items": 80, "mean_interactions": 15, "min_interactions": 8})
SMALL: dict[str, Scalar] = {"num-server-rounds": 3, "seed": 7, "data.options": SMALL_DATA}


@dataclass(frozen=True)
class Sandbox:
    """Where commands run as on a machine of their own.

    Attributes:
        folder: everything temporary; its path is short, because Ray's sockets lie in it.
        environment: of the commands; its mark is handed down to every process that they start.
    """

    folder: Path
    environment: dict[str, str]

    def processes(self) -> list[psutil.Process]:
        """Returns what runs now and was started, directly or not, by a command of this sandbox."""
        return [process for process in psutil.process_iter() if self._started(process)]

    def _started(self, process: psutil.Process) -> bool:
        try:
            if process.environ().get(MARK) == self.environment[MARK]:
                return True
            # Ray's agents write their title over their environment; their logs lie in the folder.
            descriptors = Path(f"/proc/{process.pid}/fd")
            return descriptors.is_dir() and any(
                os.readlink(entry).startswith(f"{self.folder}/") for entry in descriptors.iterdir()
            )
        except (psutil.Error, OSError):  # gone, a zombie, or another user's
            return False

    def command_lines(self) -> list[str]:
        """Returns the command lines of `processes`."""
        lines = []
        for process in self.processes():
            try:
                lines.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return lines

    def run_folder(self) -> RunFolder:
        """Returns the folder of the one run that was made here."""
        (folder,) = self.outputs.glob("????-??-??/*")
        return RunFolder(folder)

    @property
    def outputs(self) -> Path:
        """The output-dir of the runs made here."""
        return self.folder / "out"

    def settings(self, settings: Mapping[str, Scalar]) -> list[str]:
        """Returns the settings as arguments, by way of a file; the output-dir is added."""
        path = self.folder / "settings.toml"
        path.write_text(to_toml({"output-dir": str(self.outputs), **settings}))
        return ["-c", str(path)]

    def fedrec_run(self, settings: Mapping[str, Scalar], *more: str) -> subprocess.Popen[str]:
        """Starts `fedrec run`."""
        return subprocess.Popen(
            ["fedrec", "run", *self.settings(settings), *more],
            env=self.environment, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def call(self, *command: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Returns a command that has ended, whatever its exit code."""
        return subprocess.run(
            command, env=self.environment, cwd=REPO, capture_output=True, text=True, timeout=timeout, check=False
        )

    def start_there(
        self, loopback: Loopback, settings: Mapping[str, Scalar], *more: str, cwd: Path = REPO
    ) -> subprocess.Popen[str]:
        """Starts `fedrec run CONNECTION`, as a user of that deployment; nothing is added to the settings."""
        file = self.folder / "there.toml"
        file.write_text(to_toml(settings))
        return subprocess.Popen(
            ["fedrec", "run", loopback.connection, "-c", str(file), *more],
            env={**self.environment, "FLWR_HOME": loopback.environment["FLWR_HOME"]},
            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run_there(
        self, loopback: Loopback, settings: Mapping[str, Scalar], *more: str, cwd: Path = REPO
    ) -> subprocess.CompletedProcess[str]:
        """Returns `fedrec run CONNECTION` after its end, whatever its exit code."""
        process = self.start_there(loopback, settings, *more, cwd=cwd)
        try:
            stdout, stderr = process.communicate(timeout=240)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@contextmanager
def sandbox(**variables: str) -> Iterator[Sandbox]:
    """Yields a place to run commands in; what they leave behind, processes and files, is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="e2e-", dir="/tmp"))
    scripts = str(Path(sys.executable).parent)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "RAY_"))},
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPO),
        "TMPDIR": str(folder / "t"),
        MARK: uuid.uuid4().hex,
        **variables,
    }
    (folder / "t").mkdir()
    place = Sandbox(folder, environment)
    try:
        yield place
    finally:
        left = place.processes()
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def deployed(place: Sandbox, nodes: Sequence[Mapping[str, Scalar]], insecure: bool = False) -> Iterator[Loopback]:
    """Yields a deployment in the sandbox's folder; its processes work in `superlink-cwd` there."""
    work = place.folder / "superlink-cwd"
    work.mkdir()
    handed = (MARK, "PYTHONPATH", "TMPDIR", json_log.VARIABLE)
    variables = {key: place.environment[key] for key in handed if key in place.environment}
    with chdir(work), Loopback(place.folder / "d", nodes, insecure, variables=variables) as loopback, chdir(REPO):
        yield loopback


def small_shards(place: Sandbox, num_nodes: int = 2) -> DealtData:
    """Returns the small data, dealt to nodes in `shards` of the sandbox's folder."""
    shards = place.folder / "shards"
    dealt = place.call(
        "fedrec", "data", "prepare", "synthetic", "--nodes", str(num_nodes), "--out", str(shards),
        "--options", str(SMALL["data.options"]),
    )  # fmt: skip
    assert dealt.returncode == 0, dealt.stderr
    return DealtData.read(shards)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits until the condition holds; raises an AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)


def assert_same_numbers(one: Any, other: Any, tolerance: float = 1e-5, where: str = "") -> None:
    """Holds two JSON values to the same keys, and the same numbers within the tolerance."""
    if isinstance(one, Mapping):
        assert sorted(one) == sorted(other), where
        for key in one:
            assert_same_numbers(one[key], other[key], tolerance, f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same_numbers(*pair, tolerance, f"{where}/{index}")
    else:
        assert math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance), f"{where}: {one} and {other}"


def assert_same_arrays(one: Arrays, other: Arrays, tolerance: float = 1e-5) -> None:
    """Holds two sets of parameters to the same names and values."""
    assert sorted(one) == sorted(other)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=tolerance, err_msg=name)
