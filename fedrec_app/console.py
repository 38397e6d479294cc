"""What commands say beside their result."""

from __future__ import annotations

import re
import time

from rich.console import Console

_stderr = Console(stderr=True)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def say(text: str) -> None:
    """Prints a line to standard error as it is: unwrapped, and whatever brackets it has."""
    _stderr.print(text, markup=False, highlight=False, soft_wrap=True)


def stamped(text: str) -> None:
    """Prints a line to standard error as `say` does, after the time of day."""
    say(f"{time.strftime('%H:%M:%S')} {text}")
    _stderr.file.flush()


def uncoloured(text: str) -> str:
    """Returns a text without the codes that make a terminal colour it."""
    return _COLOUR.sub("", text)
