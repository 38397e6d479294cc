"""A run whose releases are audited."""

from __future__ import annotations

from typing import Any

from fedrec_app.audits.audit import Audit
from fedrec_app.audits.canary import audit_releases, worlds_of_users
from fedrec_app.audits.claim import Claim
from fedrec_app.audits.releases import Releases, audited_strategy
from fedrec_app.audits.updates import UpdateSource
from fedrec_app.models.registry import resolved
from strategies.dp_fedavg import DPFedAvg
from tests.small import SMALL

SETTINGS: dict[str, Any] = {
    "data.options": SMALL, "model.options": '{"loss": "bce"}', "model.embedding-dim": 4, "train.num-negatives": 4,
    "num-server-rounds": 1,
    "strategy.name": "dp-fedavg", "strategy.options": "{}", "privacy.unit": "user", "privacy.delta": 1e-5,
    "privacy.noise-multiplier": 1.0811618, "privacy.clip-norm": 0.5, "privacy.metrics": "exact",
}  # fmt: skip
"""Epsilon 4 at delta 1e-5, in one release of all users."""


def prepared(**changes: Any) -> tuple[UpdateSource, Claim, DPFedAvg]:
    config = resolved({**SETTINGS, **{key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}})
    source = UpdateSource(config)
    claim = Claim.of_settings(config, source.users)
    strategy = audited_strategy(config, claim, source.model)
    assert isinstance(strategy, DPFedAvg)
    return source, claim, strategy


def releases_of(layers: int = 2, **changes: Any) -> Releases:
    _, claim, strategy = prepared(**changes)
    return Releases(strategy, claim, shapes_of(layers))


def shapes_of(layers: int) -> dict[str, tuple[int, ...]]:
    return {f"layer {at}": (4, 3) for at in range(layers)}


def audited(number: int = 2000, layers: int = 2, **changes: Any) -> Audit:
    """Returns the audit of the releases alone, of so many arrays."""
    releases = releases_of(layers, **changes)
    return Audit("user", releases.claim, audit_releases(worlds_of_users(releases), number))
