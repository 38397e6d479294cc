"""fedrec: recommender systems trained where the data is, as a Flower app."""

import hashlib as _hashlib
import os as _os
from pathlib import Path as _Path

__version__ = "0.1.0"


def _cache_of_compiled_loops() -> str:
    """Returns a folder for numba's cache that is named by all compiled sources.

    Numba looks only at the file of a function and not at those of the functions that it inlines, so after a change of
    one file it would go on with a mixture of old and new code.
    """
    package = _Path(__file__).parent
    sources = sorted([*package.rglob("*.py"), *(package.parent / "strategies").rglob("*.py")])
    texts = [text for text in (source.read_bytes() for source in sources) if b"numba" in text]
    name = _hashlib.blake2b(b"\0".join(texts), digest_size=8).hexdigest()
    return str(package / "__pycache__" / f"numba-{name}")


# Before anything loads numba, which reads this once.
_os.environ.setdefault("NUMBA_CACHE_DIR", _cache_of_compiled_loops())
