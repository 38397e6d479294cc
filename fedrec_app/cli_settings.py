"""What commands share that take the settings of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from fedrec_app.config import RunConfig, Scalar

Preflight = Callable[[dict[str, Scalar]], RunConfig]
"""Checks settings, makes paths absolute, and prints what is not at its default."""
RunSettings = Annotated[
    list[str] | None, typer.Option("-c", "--run-config", help="Settings of the run, as for `fedrec simulate`.")
]
