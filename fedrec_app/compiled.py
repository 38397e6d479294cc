"""numba's `njit`, with machine code that is kept once for a user and named by all sources that are compiled.

Numba names a function's machine code by the path and the time of its file. Flower unpacks the app anew for every run,
so each run would compile for seconds what the last one compiled; and of a function numba looks at its own file, not at
those of the functions that it inlines, so that after a change of one file a mixture of old and new code would run on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core.caching import UserWideCacheLocator

__all__ = ["njit"]

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fedrec_app", "strategies")


@cache
def version() -> str:
    """Returns the identity of all compiled sources, by their bytes."""
    sources = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    digest = hashlib.blake2b(digest_size=8)
    for source in sources:
        if b"import njit" in (text := source.read_bytes()):
            digest.update(f"{source.relative_to(ROOT)} {len(text)} ".encode() + text)
    return digest.hexdigest()


class BySources(UserWideCacheLocator):
    """A place for the machine code of this package's functions: `<cache>/fedrec/numba-<version>/<folder of the file>`,
    <cache> being $XDG_CACHE_HOME or ~/.cache."""

    def __init__(self, py_func: Callable[..., Any], py_file: str) -> None:
        self._py_file = py_file
        self._lineno = py_func.__code__.co_firstlineno
        kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(py_file).resolve().parent.relative_to(ROOT)
        self._cache_path = str(kept / "fedrec" / f"numba-{version()}" / folder)

    def get_source_stamp(self) -> str:
        """Returns what numba compares with what it compiled."""
        return version()

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> BySources | None:
        """Returns the place, or None for functions of others and where nothing can be written."""
        if not any(Path(py_file).resolve().is_relative_to(ROOT / name) for name in PACKAGES):
            return None
        try:
            return super().from_function(py_func, py_file)
        except RuntimeError:  # there is no home
            return None


_OF_OTHERS = (
    "UserProvidedCacheLocator", "InTreeCacheLocator", "UserWideCacheLocator", "IPythonCacheLocator", "ZipCacheLocator"
)  # fmt: skip
# What NUMBA_CACHE_LOCATOR_CLASSES sets; the variable would reach child processes that have no fedrec.
config.CACHE_LOCATOR_CLASSES = ",".join([f"{__name__}.{BySources.__name__}", *_OF_OTHERS])  # type: ignore[attr-defined]
