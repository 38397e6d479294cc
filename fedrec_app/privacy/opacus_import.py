"""Opacus, without what its import does to the logs of the process."""

from __future__ import annotations

import logging
from functools import cache


@cache
def import_opacus() -> None:
    """Imports Opacus, and takes the handler away that it gives the root logger.

    With it every line of Flower's logger, which is fedrec's too, would be written a second time, and as plain text
    where logs are JSON and leave texts of errors out.
    """
    root = logging.getLogger()
    before = list(root.handlers)
    import opacus  # noqa: F401

    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
