"""`fedrec run CONNECTION`: a run on a SuperLink that is up already, perhaps on another machine.

`flwr run --stream` exits 0 for runs that failed, leaves the run going when it is interrupted, and ends when the
SuperLink does. Here the outcome is the run's own: of its folder where that can be seen from here, else of the
SuperLink.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedrec_app.artifacts import RunFolder
from fedrec_app.checkpoint import FOLDER
from fedrec_app.config import Scalar
from fedrec_app.console import say
from fedrec_app.errors import FedrecError
from fedrec_app.flower_control import COMPLETED, STOPPED, FlowerControl, RunState
from fedrec_app.flower_process import (
    app_dir,
    end_tree,
    ends_through_finally,
    executable,
    flower_environment,
    undisturbed,
)
from fedrec_app.flower_run import streamed
from fedrec_app.flower_watch import OnLog, OnRound, RunWatch
from fedrec_app.paths import default_output_dir

_POLL = 3.0


@dataclass(frozen=True)
class SuperLinkRun:
    """A run on a SuperLink.

    Attributes:
        run_id: Flower's.
        folder: None where it cannot be seen from here.
        said_folder: where it is on the SuperLink's machine; "" where nobody said so.
    """

    run_id: str
    folder: RunFolder | None
    said_folder: str


def run_on_superlink(
    overrides: Mapping[str, Scalar],
    connection: str,
    on_log: OnLog = lambda line: None,
    on_round: OnRound = lambda record: None,
    environment: Mapping[str, str] | None = None,
    patience: float = 60.0,
    again: str | None = None,
) -> SuperLinkRun:
    """Returns a run that a SuperLink completed.

    When this process is interrupted, the run is stopped on the SuperLink.

    Args:
        overrides: settings that differ from the defaults, checked. Paths are those of the SuperLink's machine; without
            an "output-dir" the run goes to ~/.fedrec/outputs there.
        connection: a SuperLink connection of Flower's config.toml.
        on_log: called with each line that Flower prints.
        on_round: called after each round; see `RunWatch`.
        environment: of Flower's commands; this process's where it is None.
        patience: seconds that a SuperLink may be out of reach before the run is given up here.
        again: command that goes on with a run, but for its settings; "" where none can. None: `fedrec run`.

    Raises:
        FedrecError: the run could not start, failed, or the SuperLink is gone. How to go on is said.
    """
    env = dict(environment or flower_environment())
    control, again = FlowerControl(connection, env), f"fedrec run {connection}" if again is None else again
    resumed = str(overrides.get("checkpoint.resume-from", ""))
    output_dir = default_output_dir(str(overrides.get("output-dir", "")))
    watch = RunWatch(output_dir, on_log, on_round, Path(resumed) if resumed else None)
    command = [executable("flwr"), "run", str(app_dir()), connection, "--stream"]
    state: RunState | None = None
    with ends_through_finally():
        try:
            with streamed(command, overrides, env) as process:
                watch.follow(process)
            if not watch.run_id:
                raise FedrecError(_did_not_start(watch, connection))
            state = _awaited(control, watch, patience, again)
        except FedrecError:
            raise
        except BaseException:  # Ctrl-C and SIGTERM, and whatever a callback raises: nobody would watch the run
            if watch.run_id and state is None:
                with undisturbed():
                    _stop(control, watch, again)
            raise
    _check(state, watch, again)
    return SuperLinkRun(watch.run_id, watch.folder, watch.said_folder)


def start_on_superlink(
    overrides: Mapping[str, Scalar], connection: str, environment: Mapping[str, str] | None = None
) -> str:
    """Returns the id of a run that was started on a SuperLink, and goes on without this process.

    Raises:
        FedrecError: it could not start.
    """
    env = dict(environment or flower_environment())
    watch = RunWatch(Path(os.devnull), lambda line: None, lambda record: None)
    with streamed([executable("flwr"), "run", str(app_dir()), connection], overrides, env) as process:
        watch.follow(process)
    if not watch.run_id:
        raise FedrecError(_did_not_start(watch, connection))
    return watch.run_id


def _did_not_start(watch: RunWatch, connection: str) -> str:
    said = "\n".join(watch.last_lines)
    hint = f"\nIt says the same of a wrong ca.crt: fedrec doctor --connection {connection}"
    return f"the run did not start; Flower says:\n{said}{hint if 'unavailable' in said else ''}"


def _awaited(control: FlowerControl, watch: RunWatch, patience: float, again: str) -> RunState:
    """Returns how a run ended whose stream is over, as streams also break in the middle of a run.

    Raises:
        FedrecError: the SuperLink was out of reach for `patience` seconds.
    """
    heard = time.monotonic()
    while True:
        try:
            state = control.run_state(watch.run_id)
            heard = time.monotonic()
            if state.finished:
                return state
            _follow_again(control, watch)
        except FedrecError as error:
            if time.monotonic() - heard > patience:
                raise FedrecError(
                    f"SuperLink {control.connection!r} is out of reach ({error}). If it comes back on its database, "
                    f"it says how run {watch.run_id} ended: flwr ls {control.connection} --run-id {watch.run_id}"
                    f"{_how_to_go_on(watch, again)}"
                ) from None
        watch.look()
        time.sleep(_POLL)


def _follow_again(control: FlowerControl, watch: RunWatch) -> None:
    """Reads the lines of a run that goes on, until their stream is over once more."""
    with subprocess.Popen(
        [executable("flwr"), "log", watch.run_id, control.connection], env=dict(control.environment),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            watch.follow(process)
        finally:
            with undisturbed():
                end_tree(process.pid)


def _stop(control: FlowerControl, watch: RunWatch, again: str) -> None:
    try:
        control.stop(watch.run_id)
    except FedrecError as error:
        # It may have ended a moment ago.
        with contextlib.suppress(FedrecError):
            if control.run_state(watch.run_id).finished:
                return
        say(f"run {watch.run_id} could not be stopped: {error}; flwr stop {watch.run_id} {control.connection}")
        return
    watch.say_ended("it was stopped before it could say why", "stopped")
    say(f"run {watch.run_id} was stopped on the SuperLink{_how_to_go_on(watch, again)}")


def _check(state: RunState, watch: RunWatch, again: str) -> None:
    """Raises FedrecError for a run that did not complete."""
    folder = watch.folder
    if state.status == COMPLETED and (folder is None or folder.read_summary().get("status") == "completed"):
        return
    why = "somebody stopped it" if state.status == STOPPED else state.details or state.status
    if folder is not None:
        watch.say_ended(f"Flower says: {why}", "stopped" if state.status == STOPPED else "failed")
        summary = folder.read_summary()
        if (error := summary.get("error")) is not None:
            # Who interrupts a ServerApp but does not stop its run is the SuperLink, which ends or was ended itself.
            also = state.status != STOPPED and summary.get("status") == "stopped" and why not in str(error)
            why = f"{error}; Flower says: {why}" if also else str(error)
    where = f" ({watch.said_folder or (folder.path if folder else '')})" if watch.said_folder or folder else ""
    how = "was stopped" if state.status == STOPPED else "failed"
    raise FedrecError(f"the run {how}: {why}{where}{_how_to_go_on(watch, again)}")


def _how_to_go_on(watch: RunWatch, again: str) -> str:
    """Returns a hint for a run that has a checkpoint, or may have: its folder is then named."""
    path = str(watch.folder.path) if watch.folder else watch.said_folder
    there = (watch.folder.path / FOLDER).is_dir() if watch.folder else watch.seen
    if not again or not path or not there:
        return ""
    setting = shlex.quote(f'checkpoint.resume-from="{path}"')
    return f"; to go on: {again} -c {setting}"
