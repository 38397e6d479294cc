"""Whether a run's privacy ledger is whole and its own, and the figures go with what it charged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrec_app.checkpoint import Checkpoint
from fedrec_app.errors import FedrecError
from fedrec_app.operation.finding import Finding
from fedrec_app.privacy.accounting import epsilon, rdp_epsilon
from fedrec_app.privacy.ledger import LEDGER, SPENT_BEFORE, TEST_METRICS
from fedrec_app.privacy.ledger_lines import Chain, read_lines, torn_event

Record = Mapping[str, Any]
_GRID = 0.02
"""Of epsilon: a run and this check compose the same events on grids that may differ."""


def check_ledger(
    folder: Path, settings: Record, lineage: str, rounds: Sequence[Record], told: Record, newest: Checkpoint | None
) -> Iterator[Finding]:
    """Yields what is found of the ledger of a run with privacy whose nodes have been counted; the file is only read.

    Args:
        folder: of the run.
        settings: of the run when it began, by dotted key.
        lineage: of the run.
        rounds: the lines of metrics.jsonl.
        told: what summary.json says of privacy; {} while there is none.
        newest: checkpoint; None where there is none.
    """
    path = folder / LEDGER
    if not path.is_file():
        yield Finding(LEDGER, "failed", "it is lost: nobody knows what the run has released")
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    try:
        chain = read_lines(path, content[:end])
        if newest is not None and (known := newest.facts.get("ledger")):
            chain.require(path, int(known["length"]), str(known["digest"]))
        ending = _ending(path, chain, content[end:])
        delta, events = float(chain.header["delta"]), [charge.event for charge in chain.charges]
        # A run tells either bound of the same events: the tighter one where all that it planned has room on a grid.
        bounds = epsilon(events, delta), rdp_epsilon(events, delta)
    except (FedrecError, KeyError, TypeError, ValueError) as error:
        yield Finding(
            LEDGER, "failed", f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        )
        return
    if wrong := (
        _of_another_run(chain.header, settings, lineage, told)
        or _too_few(chain, rounds)
        or _other_figures(*bounds, rounds, told)
    ):
        yield Finding(LEDGER, "failed", wrong)
        return
    text = f"{len(chain.charges)} charges, each bound to the one before: epsilon {bounds[0]:.4g}"
    yield Finding(LEDGER, "ok", text + ending)


def _ending(path: Path, chain: Chain, torn: bytes) -> str:
    """Returns what is to be said of a last line that a crash cut short; "" where there is none.

    Raises:
        StateError: no crash leaves this.
    """
    if not torn:
        return ""
    counts = torn_event(path, chain, torn) is not None
    return f"; a crash cut the next one short, and it {'counts' if counts else 'is removed'} when the run goes on"


def _of_another_run(header: Record, settings: Record, lineage: str, told: Record) -> str:
    unit, noise = settings.get("privacy.unit"), _number(settings.get("privacy.noise-multiplier"))
    expected = {"lineage": lineage, "unit": unit, "delta": told.get("delta")}
    if unit == "user" and noise:  # else it follows from other settings
        expected["noise-multiplier"] = noise
    for name, value in expected.items():
        if value is not None and header.get(name) != value:
            return f"it is of another run: its {name} is {header.get(name)!r}, not {value!r}"
    return ""


def _too_few(chain: Chain, rounds: Sequence[Record]) -> str:
    own = [charge for charge in chain.charges if charge.what.get("for") not in (SPENT_BEFORE, TEST_METRICS)]
    charged = sum(charge.event.count > 0 for charge in own)
    released = sum(not _trained(record).get("skipped") for record in rounds)
    return f"{charged} charges for {released} rounds that changed the parameters" if charged < released else ""


def _other_figures(low: float, high: float, rounds: Sequence[Record], told: Record) -> str:
    """Returns which figure is none of the ledger's; rounds tell what was charged until then, and not more than all."""
    said = max((_number(_trained(record).get("epsilon")) or 0.0 for record in rounds), default=0.0)
    if said > high + _GRID:
        return f"a round told epsilon {said:.4g}, the ledger has {high:.4g} at most: charges are missing"
    total, by_renyi = _number(told.get("epsilon")), _number(told.get("epsilon_rdp"))
    if total is not None and not low - max(_GRID, 2e-3 * low) <= total <= high + _GRID:
        return f"summary.json tells epsilon {total:.4g}, the ledger has {low:.4g}"
    if by_renyi is not None and not math.isclose(by_renyi, high, rel_tol=1e-6):
        return f"summary.json tells an epsilon of {by_renyi:.4g} by Renyi divergences, the ledger has {high:.4g}"
    return ""


def _trained(record: Record) -> Record:
    found = record.get("train")
    return found if isinstance(found, Mapping) else {}


def _number(value: object) -> float | None:
    """Returns a number; None where there is none, as in place of one that is not finite."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
