"""What a check of `fedrec doctor` says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of it.
        state: "ok", "note" (said, not judged), "warning" or "failed".
        found: what was found.
        advice: what to do, where it is not ok.
    """

    name: str
    state: str
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns it as a JSON object."""
        return asdict(self)
