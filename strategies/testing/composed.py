"""The check of strategies whose aggregator or server optimiser users choose."""

from __future__ import annotations

from collections.abc import Sequence

from fedrec_app.conformance import ConformanceError, check, require
from strategies.testing.checks import (
    check_empty_rounds,
    check_inputs_unchanged,
    check_names_shapes_dtypes,
    check_order,
    check_trained_rows,
)
from strategies.testing.harness import Check, Make, difference, takes, through_flower, variant
from strategies.testing.many_rounds import check_state
from strategies.testing.nodes import PARAMS, drawn

_AGAIN: Sequence[Check] = (
    check_names_shapes_dtypes, check_inputs_unchanged, check_order, check_trained_rows, check_empty_rounds, check_state,
)  # fmt: skip


@check
def check_composed(make: Make) -> None:
    """Another aggregator and another server optimiser have an effect, and the rules hold with them too."""
    strategy = make()
    # Counts by row are for the mean alone, and what is aggregated first is no matter of order.
    if takes(strategy, "aggregator") and strategy.weighting != "rows" and not strategy.depends_on_arrival:
        other = "mean" if strategy.aggregator.name == "median" else "median"
        changed = variant(make, aggregator=other)
        _require_effect(make, changed, f"the option aggregator = {other!r}", "self.aggregator, super().aggregate")
        for again in _AGAIN:
            try:
                again(changed)
            except ConformanceError as error:
                if _fails(again, make):
                    continue  # which that check says by itself
                require(error.found, f"aggregator = {other!r} and, for {error.check}, {error.given}")
    if takes(strategy, "server_optimizer"):
        other = "sgd" if strategy.server_optimizer.name == "adam" else "adam"
        changed = variant(make, server_optimizer=other)
        used = "self.server_optimizer, super().server_step"
        _require_effect(make, changed, f"the option server_optimizer = {other!r}", used)


def _fails(again: Check, make: Make) -> bool:
    try:
        again(make)
    except ConformanceError:
        return True
    return False


def _require_effect(make: Make, changed: Make, given: str, used: str) -> None:
    updates = [drawn(label) for label in range(6)]
    before, after = through_flower(make, updates), through_flower(changed, updates)
    moves = difference(before, PARAMS, exact=True)
    without = f"it changes nothing: use {used}, or take the option away"
    require(without if moves and not difference(after, before, exact=True) else "", given)
