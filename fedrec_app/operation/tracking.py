"""What a run tells TensorBoard or Weights & Biases: each round's figures, and the final ones. Off by default.

Files go below the folder of the run. W&B works offline, with `wandb sync` whenever somebody wants to, unless
WANDB_MODE says otherwise. Both are told what metrics.jsonl tells and nothing else: no gradients, no texts of nodes, no
figures of the machine.

Both stamp every figure with the time. Under privacy the seconds of a round are withheld, so TensorBoard's stamps are
all that of the run's start then; those of W&B cannot be set, so it is refused.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fedrec_app.config import RunConfig, Scalar
from fedrec_app.errors import ConfigError

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
_GROUPS = ("train", "validation")
_FINAL = ("test", "sampled", "privacy")


class Tracker(Protocol):
    """Somebody who is told of a run as it goes on."""

    def on_round(self, told: Mapping[str, Any]) -> None:
        """Takes what metrics.jsonl says of a round."""
        ...

    def close(self, summary: Mapping[str, Any]) -> None:
        """Takes the summary of a run, completed or failed, and ends whatever was started."""
        ...


class Untracked:
    """Nobody is told."""

    def on_round(self, told: Mapping[str, Any]) -> None:
        """Does nothing."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Does nothing."""


def tracker_of(config: RunConfig, folder: Path) -> Tracker:
    """Returns who is told of a run.

    Args:
        config: resolved.
        folder: of the run.

    Raises:
        ConfigError: a package is not installed, or privacy does not go with it.
    """
    backend, private = config.tracking.backend, config.privacy.unit != "none"
    if not backend:
        return Untracked()
    if find_spec(_PACKAGES[backend]) is None:
        raise ConfigError(
            f'tracking.backend="{backend}" needs the package {_PACKAGES[backend]!r} where the server runs: '
            "pip install 'fedrec[track]'"
        )
    if backend == "wandb" and private:
        raise ConfigError(
            f'tracking.backend="wandb" with privacy.unit="{config.privacy.unit}": W&B stamps every round with its '
            'time, which privacy withholds; set tracking.backend="tensorboard" or ""'
        )
    if backend == "tensorboard":
        return _TensorBoard(folder / "tensorboard", config.flat(), private)
    return _Wandb(folder, config.flat(), config.tracking.project)


class _TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Scalar], private: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))
        self._time = time.time() if private else None
        self._last = 0
        self._writer.add_text("settings", _table(settings), 0, walltime=self._time)

    def on_round(self, told: Mapping[str, Any]) -> None:
        """Writes the figures of a round, so that they are seen at once."""
        self._last = int(told["round"])
        for name, value in figures(told):
            self._writer.add_scalar(name, value, self._last, walltime=self._time)
        self._writer.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        """Writes the final figures and closes the file."""
        for name, value in final_figures(summary):
            self._writer.add_scalar(f"final/{name}", value, self._last, walltime=self._time)
        self._writer.close()


class _Wandb:
    """A W&B run: a process beside this one, which `close` ends; it ends itself where this one is killed."""

    def __init__(self, folder: Path, settings: Mapping[str, Scalar], project: str) -> None:
        import wandb

        self._wandb = wandb
        # Everything off that it would find out by itself about this machine, its user and its code.
        quiet = wandb.Settings(
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
            console="off", disable_git=True, save_code=False, silent=True,
        )  # fmt: skip
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        own = {key: value for key, value in settings.items() if key not in ("output-dir", "data.path")}
        name = "-".join(folder.parts[-2:])
        self._run: Any = wandb.init(project=project, name=name, dir=folder, config=own, settings=quiet, mode=mode)

    def on_round(self, told: Mapping[str, Any]) -> None:
        """Hands the figures of a round on."""
        self._run.log(dict(figures(told)), step=int(told["round"]))

    def close(self, summary: Mapping[str, Any]) -> None:
        """Hands the final figures on, and ends the run and its process."""
        try:
            self._run.summary.update({f"final/{name}": value for name, value in final_figures(summary)})
            self._run.finish(exit_code=0 if summary.get("status") == "completed" else 1)
        finally:
            self._wandb.teardown()


def figures(told: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the numbers in a line of metrics.jsonl by name: `train/loss`, `validation/ndcg@10`, `bytes_up`."""
    for group in _GROUPS:
        yield from _numbers(told.get(group) or {}, f"{group}/")
    yield from _numbers({key: value for key, value in told.items() if key not in ("round", *_GROUPS)}, "")


def final_figures(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the final figures of a summary by name."""
    for group in _FINAL:
        yield from _numbers(summary.get(group) or {}, f"{group}/")


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, float(value)


def _table(settings: Mapping[str, Scalar]) -> str:
    return "\n".join(["| setting | value |", "|---|---|", *(f"| {k} | {json.dumps(v)} |" for k, v in settings.items())])
