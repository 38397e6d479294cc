"""`fedrec data`: what data sets there are, fetching them, and what they look like."""

from __future__ import annotations

import typer

data_commands = typer.Typer(no_args_is_help=True, help="Data sets: list, prepare, stats.")
