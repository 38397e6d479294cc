"""What commands say beside their result."""

from __future__ import annotations

from rich.console import Console

_stderr = Console(stderr=True)


def say(text: str) -> None:
    """Prints a line to standard error as it is: unwrapped, and whatever brackets it has."""
    _stderr.print(text, markup=False, highlight=False, soft_wrap=True)
