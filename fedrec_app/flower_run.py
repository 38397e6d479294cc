"""`fedrec run`: `flwr run` with its traps taken out.

Flower installs the app's dependencies anew for each run, leaves a SuperLink behind, exits 0 for runs that failed, and
loses relative paths. Here the environment is set, a local SuperLink is started on a free port with a home of its own
and stopped again with all that it started, and the exit code is the run's.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedrec_app.artifacts import RunFolder
from fedrec_app.config import Scalar, to_toml
from fedrec_app.errors import FedrecError
from fedrec_app.flower_process import (
    app_dir,
    end_tree,
    ends_through_finally,
    executable,
    flower_environment,
    free_port,
    listens,
    undisturbed,
)
from fedrec_app.flower_watch import OnLog, OnRound, RunWatch

START_TIMEOUT = 90.0
# Ray's sockets lie up to 66 characters below its folder, and a socket's path has at most 107.
_LONGEST_RAY_DIR = 40


@contextlib.contextmanager
def local_superlink() -> Iterator[dict[str, str]]:
    """Yields the environment in which `flwr` finds a SuperLink of our own; it is ended with all its children."""
    home = tempfile.mkdtemp(prefix="fedrec-flwr-")
    port = free_port()
    environment = {**flower_environment(home), "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port)}
    if len(home) <= _LONGEST_RAY_DIR:
        environment["RAY_TMPDIR"] = home
    log_path = Path(home) / "superlink.log"
    command = [
        executable("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess",
        "--control-api-address", f"127.0.0.1:{free_port()}", "--host", "127.0.0.1", "--port", str(port),
        "--database", str(Path(home) / "state.db"),
    ]  # fmt: skip
    try:
        with (
            log_path.open("wb") as log,
            subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as process,
        ):
            try:
                _wait_for(process, port, log_path)
                yield environment
            finally:
                with undisturbed():
                    end_tree(process.pid, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def run_with_flower(
    overrides: Mapping[str, Scalar],
    output_dir: Path,
    num_nodes: int,
    client_cpus: int = 1,
    on_log: OnLog = lambda line: None,
    on_round: OnRound = lambda record: None,
) -> RunFolder:
    """Returns the folder of a run that Flower's simulation engine completed.

    Args:
        overrides: settings that differ from the defaults, checked.
        output_dir: absolute; where the run's folder goes.
        num_nodes: SuperNodes of the simulation.
        client_cpus: CPUs that a client reserves; fewer mean more clients at a time.
        on_log: called with each line that Flower prints.
        on_round: called with each new line of metrics.jsonl, as an object.

    Raises:
        FedrecError: the run could not start, or failed. summary.json says why, also of a run that was stopped.
    """
    command = [executable("flwr"), "run", str(app_dir())]
    command += ["--federation-config", f"num-supernodes={num_nodes} client-resources-num-cpus={client_cpus}"]
    resumed = str(overrides.get("checkpoint.resume-from", ""))
    watch = RunWatch(output_dir, on_log, on_round, Path(resumed) if resumed else None)
    try:
        with (
            ends_through_finally(),
            local_superlink() as environment,
            streamed([*command, "--stream"], {**overrides, "output-dir": str(output_dir)}, environment) as process,
        ):
            watch.follow(process)
    finally:
        watch.say_ended("it was stopped before it could say why", "stopped")
    if watch.folder is None:
        raise FedrecError("the run ended before it began; Flower says:\n" + "\n".join(watch.last_lines))
    summary = watch.folder.read_summary()
    if summary.get("status") != "completed":
        raise FedrecError(f"the run failed: {summary.get('error', 'no reason given')} ({watch.folder.path})")
    return watch.folder


@contextlib.contextmanager
def streamed(
    command: list[str], settings: Mapping[str, Scalar], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Yields a `flwr run` whose lines can be read; it is ended on leaving, and the run itself is not.

    Args:
        command: without its settings.
        settings: of the run, by way of a file, because of the quotes that `flwr run -c` cannot carry.
        environment: of the command.
    """
    with tempfile.TemporaryDirectory(prefix="fedrec-run-") as scratch:
        file = Path(scratch) / "settings.toml"
        file.write_text(to_toml(settings))
        with subprocess.Popen(
            [*command, "-c", str(file)], env=dict(environment),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                with undisturbed():
                    end_tree(process.pid)


def _wait_for(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end:
        if process.poll() is not None:
            tail = log_path.read_text(errors="replace").strip().splitlines()[-5:]
            raise FedrecError(f"the local SuperLink ended with code {process.returncode}: {' / '.join(tail)}")
        if listens(port):
            return
        time.sleep(0.2)
    raise FedrecError(f"the local SuperLink did not start within {START_TIMEOUT:.0f} s")
