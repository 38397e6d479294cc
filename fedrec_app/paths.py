"""Where runs are written, and what is read from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

READ_FROM = ("data.path", "model.init-from", "checkpoint.resume-from", "checkpoint.continue-from")
"""Settings that are paths of what is read."""


def default_output_dir(output_dir: str) -> Path:
    """Returns the folder of all runs: the setting, or ~/.fedrec/outputs where it is empty (a bare `flwr run`).

    Flower runs an app from a folder of its own, so a relative path would be lost: it is taken from the home
        folder's .fedrec.
    """
    if not output_dir:
        return Path.home() / ".fedrec" / "outputs"
    path = Path(output_dir).expanduser()
    return path if path.is_absolute() else Path.home() / ".fedrec" / path


def absolute(flat: Mapping[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
    """Returns flat settings with absolute paths: Flower runs the app in a folder of its own, and files travel."""
    found = dict(flat)
    for key in READ_FROM:
        if path := found.get(key):
            found[key] = str(Path(str(path)).expanduser().absolute())
    return found
