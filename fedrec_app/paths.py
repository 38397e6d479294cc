"""Where runs are written."""

from __future__ import annotations

from pathlib import Path


def default_output_dir(output_dir: str) -> Path:
    """Returns the folder of all runs: the setting, or ~/.fedrec/outputs where it is empty (a bare `flwr run`).

    Flower runs an app from a folder of its own, so a relative path would be lost: it is taken from the home
        folder's .fedrec.
    """
    if not output_dir:
        return Path.home() / ".fedrec" / "outputs"
    path = Path(output_dir).expanduser()
    return path if path.is_absolute() else Path.home() / ".fedrec" / path
