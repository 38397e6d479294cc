"""What several tests of federations share."""

from __future__ import annotations

import pytest

from fedrec_app import report


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves take longer to draw than small models to train."""
    monkeypatch.setattr(report, "_pictures", lambda *_: [])
