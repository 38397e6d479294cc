"""What a check of a run's files found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at.
        state: "ok", "note" (nothing is wrong, but something could not be compared) or "failed".
        text: what was found.
        line: of the audit log, from 1; 0 where it is about another file.
    """

    check: str
    state: str
    text: str
    line: int = 0

    def to_json(self) -> dict[str, Any]:
        """Returns it as a JSON object."""
        return asdict(self)
