"""Whether a run's privacy ledger is whole, and its figures tell no lower epsilon than it charged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrec_app.checkpoint import Checkpoint
from fedrec_app.errors import StateError
from fedrec_app.operation.finding import Finding
from fedrec_app.privacy.accounting import epsilon
from fedrec_app.privacy.ledger import LEDGER, SPENT_BEFORE, TEST_METRICS
from fedrec_app.privacy.ledger_lines import Chain, read_lines

_GRID = 0.02
"""Of epsilon: a run and this check compose the same events on grids that may differ."""


def check_ledger(
    folder: Path, rounds: Sequence[Mapping[str, Any]], told: float | None, newest: Checkpoint | None
) -> Iterator[Finding]:
    """Yields what is found of the ledger of a run with privacy; the file is only read.

    Args:
        folder: of the run.
        rounds: the lines of metrics.jsonl.
        told: epsilon in summary.json; None while there is none.
        newest: checkpoint; None where there is none.
    """
    path = folder / LEDGER
    if not path.is_file():
        if rounds or newest is not None:
            yield Finding(LEDGER, "failed", "it is lost: nobody knows what the run has released")
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    try:
        chain = read_lines(path, content[:end])
        if newest is not None and (known := newest.facts.get("ledger")):
            chain.require(path, int(known["length"]), str(known["digest"]))
    except (StateError, ValueError, KeyError, TypeError) as error:
        yield Finding(LEDGER, "failed", str(error))
        return
    counted = epsilon([charge.event for charge in chain.charges], float(chain.header["delta"]))
    if wrong := _too_few(chain, rounds) or _too_low(counted, rounds, told):
        yield Finding(LEDGER, "failed", wrong)
        return
    torn = "; a last line that a crash cut short counts when the run goes on" if content[end:] else ""
    yield Finding(
        LEDGER, "ok", f"{len(chain.charges)} charges, each bound to the one before: epsilon {counted:.4g}{torn}"
    )


def _too_few(chain: Chain, rounds: Sequence[Mapping[str, Any]]) -> str:
    charged = sum(charge.what.get("for") not in (SPENT_BEFORE, TEST_METRICS) for charge in chain.charges)
    released = sum(not record.get("train", {}).get("skipped") for record in rounds)
    return f"{charged} charges for {released} rounds that changed the parameters" if charged < released else ""


def _too_low(counted: float, rounds: Sequence[Mapping[str, Any]], told: float | None) -> str:
    """Returns where a figure does not go with the ledger: rounds may tell less, as later ones cost more."""
    said = [float(record["train"]["epsilon"]) for record in rounds if "epsilon" in record.get("train", {})]
    if said and max(said) > counted + _tolerance(counted):
        return f"a round told epsilon {max(said):.4g}, the ledger has {counted:.4g}: charges are missing"
    if told is not None and not math.isclose(told, counted, abs_tol=_tolerance(counted)):
        return f"summary.json tells epsilon {told:.4g}, the ledger has {counted:.4g}"
    return ""


def _tolerance(value: float) -> float:
    return max(_GRID, 2e-3 * value) if math.isfinite(value) else 0.0
