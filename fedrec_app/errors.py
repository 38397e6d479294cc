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
    return f"unknown {kind} {value!r}: one of {', '.join(names)}{did_you_mean(value, names)}"


def did_you_mean(value: str, names: Iterable[str], inside: str = "") -> str:
    """Returns ` (did you mean 'ml-100k'?)`, or "" where no name is like the value.

    Args:
        value: the value found.
        names: every value that would have been right.
        inside: what stands before the name in the hint, for example "package.module:".
    """
    near = nearest(value, names)
    return f" (did you mean {inside + near!r}?)" if near else ""


def nearest(value: str, names: Iterable[str]) -> str:
    """Returns the name that is most like a value, or "" where none is like it."""
    return next(iter(difflib.get_close_matches(value, names, n=1, cutoff=0.5)), "")
