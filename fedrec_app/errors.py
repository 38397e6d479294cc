"""Errors that name the thing, the value found, what is allowed and the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedrecError(Exception):
    """A problem that the person who runs fedrec can act on; shown without a traceback."""


class ConfigError(FedrecError):
    """A setting that is unknown, malformed, or does not go with another one."""


class DataError(FedrecError):
    """Data that is missing, unreadable, or does not hold what was asked for."""


class StateError(FedrecError):
    """A file that fedrec wrote earlier and that is missing, damaged or of another run."""


def unknown(kind: str, value: str, allowed: Iterable[str]) -> str:
    """Returns `unknown dataset 'ml100k': one of csv, ml-100k (did you mean 'ml-100k'?)`.

    Args:
        kind: what the value names, for example "dataset".
        value: the value found.
        allowed: every value that would have been right.
    """
    names = sorted(allowed)
    nearest = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return f"unknown {kind} {value!r}: one of {', '.join(names)}{hint}"
