"""`fedrec model`: what models there are, and whether one keeps the contract."""

from __future__ import annotations

from typing import Any

import typer

from fedrec_app.cli_check import check_model
from fedrec_app.cli_plugins import add_list
from fedrec_app.plugins import Registry

model_commands = typer.Typer(no_args_is_help=True, help="Models: list, check.")
model_commands.command("check")(check_model)


def _models() -> Registry[Any]:
    from fedrec_app.models.registry import MODELS

    return MODELS


add_list(model_commands, "models", _models)
