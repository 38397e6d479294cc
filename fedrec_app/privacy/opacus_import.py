"""Opacus, without what its import does to the logs of the process."""

from __future__ import annotations

import logging
from functools import cache

_ITS_DATES = "%m/%d/%Y %H:%M:%S"


@cache
def import_opacus() -> None:
    """Imports Opacus, and takes the handler away that it gives the root logger, whoever imported it first.

    With it every line of Flower's logger, which is fedrec's too, would be written a second time, and as plain text
    where logs are JSON and leave texts of errors out.
    """
    import opacus  # noqa: F401

    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler and handler.formatter and handler.formatter.datefmt == _ITS_DATES:
            root.removeHandler(handler)
