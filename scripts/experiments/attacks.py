"""What updates and releases give away: the attacks of `fedrec privacy audit` on ML-100K."""

from __future__ import annotations

from typing import Any

from experiments.page import short
from experiments.runs import Runs
from fedrec_app.audits.audit import COHORTS, RELEASED, Audit, audit
from fedrec_app.audits.item_recovery import POPULARITY
from fedrec_app.models.registry import resolved

RELEASES, USERS = 2000, 200
BCE = {"model.options": '{"loss": "bce"}'}
PRIVATE = {"privacy.unit": "user", "num-server-rounds": 20}
ROWS: dict[str, dict[str, Any]] = {
    "`mf`": {},
    "`mf`, bce, no negatives": {**BCE, "train.num-negatives": 0},
    "`mf`, bce, 4 negatives": {**BCE, "train.num-negatives": 4},
    "`neumf`": {"model.name": "neumf"},
    '`mf`, `privacy.unit="user"`, epsilon 8': {**PRIVATE, "privacy.target-epsilon": 8.0},
}
CLAIMS: dict[str, dict[str, Any]] = {
    "one round, epsilon 4": {**PRIVATE, "num-server-rounds": 1, "privacy.target-epsilon": 4.0},
    "20 rounds, epsilon 8": {**PRIVATE, "privacy.target-epsilon": 8.0},
    "20 rounds, epsilon 20": {**PRIVATE, "privacy.target-epsilon": 20.0},
}

NOTES = """\
F1 of naming a user's items from the first update of his node, by the best of five attacks (popularity, non-zero rows,
longest rows, sign and size of the leading singular vector), for nodes of so many users. Guessing by popularity alone
is the floor. Negative samples hide nothing: the singular vector tells them from what the user did. Under user-level
privacy the server still sees the sums in the first columns; what is released gives nothing beyond popularity.
"""


def attacks(runs: Runs, only: str = "") -> str:
    """Returns the section.

    Args:
        runs: for its data.
        only: rows whose name holds this text.
    """
    recovery = [
        "| model | " + " | ".join(f"{count} users" if count > 1 else "1 user" for count in COHORTS)
        + " | released | popularity |",
        "|---" * (len(COHORTS) + 3) + "|",
    ]  # fmt: skip
    for name, settings in ROWS.items():
        if only in name:
            recovery.append(_recovered(name, _audited(runs, settings)))
            print(recovery[-1], flush=True)
    claims = [
        "| run | epsilon claimed | shown | one release, claimed | shown | noise claimed, in C | measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, settings in CLAIMS.items():
        if only in name:
            claims.append(_claimed(name, _audited(runs, settings)))
            print(claims[-1], flush=True)
    return "\n".join([
        "## What an update gives away",
        "",
        "Made by `python scripts/reproduce.py attacks --data-dir DATA --out docs/privacy.md`, the attacks of "
        f"`fedrec privacy audit`; ML-100K, {USERS} users.",
        "",
        *recovery,
        "",
        NOTES,
        "## What the audit shows of the claim",
        "",
        f"{RELEASES} releases of the real strategy, half of them with a canary whose delta is three bounds long; lower "
        "bounds at 99.9 % confidence. A black box cannot show more from so few releases; half the noise, no clipping, "
        "clipping by layer, weights and denominators by arrival each exceed the claim (tests).",
        "",
        *claims,
        "",
    ])  # fmt: skip


def _audited(runs: Runs, settings: dict[str, Any]) -> Audit:
    return audit(resolved({**runs.data, **settings}), None, RELEASES, USERS, lambda what, done, total: None)


def _recovered(name: str, found: Audit) -> str:
    cells = [short(found.recovery[str(count)].best()) for count in COHORTS]
    released = short(found.recovery[RELEASED].best()) if RELEASED in found.recovery else ""
    popularity = short(found.recovery[str(COHORTS[0])].f1()[POPULARITY])
    return f"| {' | '.join([name, *cells, released, popularity])} |"


def _claimed(name: str, found: Audit) -> str:
    whole = found.to_json()
    release = whole["release"]
    low, high = whole["noise_multiplier_measured"]
    return (
        f"| {name} | {whole['claimed_epsilon']:.2f} | {whole['empirical_lower_bound']:.2f} | "
        f"{release['claimed_epsilon']:.2f} | {release['empirical_lower_bound']:.2f} | "
        f"{whole['noise_multiplier']:.3f} | {low:.3f}-{high:.3f} |"
    )
