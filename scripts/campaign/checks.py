"""What must be true of a run that a fault struck."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from campaign.course import Course, summary_of
from campaign.faults import Fault
from campaign.place import Place
from fedrec_app.artifacts import RunFolder
from fedrec_app.operation.audit_check import verify
from fedrec_app.privacy.accounting import epsilon
from fedrec_app.privacy.ledger import LEDGER
from fedrec_app.privacy.ledger_lines import read_lines
from fedrec_app.private_state import PrivateState

TOLERANCE = 1e-5
OK = "ok"
_KEYS = "user-keys"


@dataclass(frozen=True)
class Reference:
    """What a run that nothing disturbed ends with.

    Attributes:
        records: its rounds.
        summary: of the run.
        state: by node: private rows of the best round, by name, with the users' keys.
    """

    records: list[dict[str, Any]]
    summary: Mapping[str, Any]
    state: list[dict[str, NDArray]] = field(default_factory=list)

    @classmethod
    def of(cls, course: Course, place: Place) -> Reference:
        """Returns what a run ended with."""
        assert course.folder is not None
        summary = summary_of(course)
        return cls(RunFolder(course.folder).read_metrics(), summary, _states(place, summary))


def check(course: Course, fault: Fault, reference: Reference, place: Place, rounds: int) -> dict[str, str]:
    """Returns what each check says: "ok", "-" where it does not apply, with why, or what is wrong.

    Args:
        course: of the run.
        fault: that struck it.
        reference: a run of the same settings that nothing disturbed.
        place: the deployment.
        rounds: that the run must have.
    """
    found = {"ended": OK if course.ended in ("completed", "resumed", "begun anew") else course.ended}
    summary = summary_of(course)
    if course.folder is None or summary.get("status") != "completed":
        return {**found, "ended": f"{found['ended']}; summary: {summary.get('status', 'none')}"}
    records = RunFolder(course.folder).read_metrics()
    found["rounds"] = _rounds(course, records, rounds)
    found["epsilon"] = _epsilon(course, summary) if fault.private else "- no privacy"
    found["private state"] = _noticed(fault, place) or _state(place, summary, reference)
    found["metrics"] = _metrics(fault, records, summary, reference)
    failed = "; ".join(finding.text for finding in verify(course.folder) if finding.state == "failed")
    found["audit"] = failed or OK
    if fault.alters_log:
        found["audit"] = OK if failed else "a line was altered, and nobody noticed"
    return found


def is_wrong(said: str) -> bool:
    """Returns whether a check failed."""
    return said != OK and not said.startswith("- ")


def spent(folder: Path) -> float:
    """Returns epsilon of everything in a run's ledger; 0 where it has none."""
    path = folder / LEDGER
    if not path.is_file():
        return 0.0
    chain = read_lines(path, path.read_bytes())
    return epsilon([charge.event for charge in chain.charges], float(chain.header["delta"]))


def _rounds(course: Course, records: list[dict[str, Any]], rounds: int) -> str:
    if (numbers := [record["round"] for record in records]) != list(range(1, rounds + 1)):
        return f"the run has rounds {numbers}"
    for checkpoint, before in course.before:
        if records[: len(before)] != before or len(before) != checkpoint:
            return f"rounds up to the checkpoint of round {checkpoint} are not what they were"
    return OK


def _epsilon(course: Course, summary: Mapping[str, Any]) -> str:
    assert course.folder is not None
    path = course.folder / LEDGER
    lines, said = path.read_bytes().splitlines(keepends=True), float(summary["privacy"]["epsilon"])
    if lost := [line for line in course.charged if line not in lines]:
        return f"{len(lost)} charges that were on the disk are gone"
    counted = spent(course.folder)
    if not math.isclose(counted, said, rel_tol=1e-9):
        return f"the ledger says {counted:.6f}, the summary {said:.6f}"
    most = max(float(record["train"]["epsilon"]) for record in course.seen)
    if said < most:
        return f"{said:.6f} after {most:.6f} was told"
    charges = [charge.what for charge in read_lines(path, path.read_bytes()).charges]
    charged = sum(what.get("for") != "test metrics" for what in charges)
    released = sum(not record["train"].get("skipped") for record in course.seen)
    return OK if charged >= released else f"{charged} charges for {released} rounds that were released"


def _state(place: Place, summary: Mapping[str, Any], reference: Reference) -> str:
    for node, (now, then) in enumerate(zip(_states(place, summary), reference.state, strict=True)):
        if missing := set(then[_KEYS].tolist()) - set(now.get(_KEYS, np.array([])).tolist()):
            return f"node {node} has lost the rows of {len(missing)} users"
        if not all(np.isfinite(rows).all() for name, rows in now.items() if name != _KEYS):
            return f"node {node} has rows that are not finite"
    return OK


def _noticed(fault: Fault, place: Place) -> str:
    """Returns that nobody saw the damage to private state, "" where somebody did or there was none."""
    node = place.loopback.supernodes[fault.node]
    if fault.target != "private state" or "is damaged" in node.logged():
        return ""
    return f"node {fault.node} worked with rows that were damaged ({fault.damage}), and did not say so"


def _states(place: Place, summary: Mapping[str, Any]) -> list[dict[str, NDArray]]:
    lineage, used = str(summary["lineage"]), int(summary["best_round"])
    nodes = range(len(place.links))
    return [dict(PrivateState(place.state_dir(node), lineage, node).newest(used) or {}) for node in nodes]


def _metrics(fault: Fault, records: list[dict[str, Any]], summary: Mapping[str, Any], reference: Reference) -> str:
    if fault.private:
        return "- noise is drawn anew"
    if fault.target == "private state":
        return "- rows of the round before were used"
    for record, undisturbed in zip(records, reference.records, strict=True):
        if _missed(record) or record["train"].get("num-updates") != undisturbed["train"].get("num-updates"):
            return f"- round {record['round']} went without an update: {_missed(record) or 'a node was away'}"
        if (record["validation"] or {}).get("num_users") != (undisturbed["validation"] or {}).get("num_users"):
            return f"- a node missed the evaluation of round {record['round']}"
        if difference := _difference(record["validation"], undisturbed["validation"]):
            return f"validation of round {record['round']}: {difference}"
    if summary["test"].get("num_users") != reference.summary["test"].get("num_users"):
        return "- a node missed the test"
    return _difference(summary["test"], reference.summary["test"]) or OK


def _missed(record: Mapping[str, Any]) -> str:
    return ", ".join(key.removeprefix("dropped/") for key in record["train"] if key.startswith("dropped/"))


def _difference(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    for key in sorted({*(one or {}), *(other or {})}):
        pair = (one or {}).get(key), (other or {}).get(key)
        if not all(isinstance(value, int | float) for value in pair):
            continue
        if not math.isclose(*pair, rel_tol=TOLERANCE, abs_tol=TOLERANCE):  # type: ignore[arg-type]
            return f"{key} is {pair[0]}, undisturbed {pair[1]}"
    return ""
