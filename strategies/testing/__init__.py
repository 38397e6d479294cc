"""The conformance kit: what every strategy must do, as functions that authors of strategies run.

    from strategies.testing import CHECKS, applicable, run_all

    @pytest.mark.parametrize("check", applicable(MyStrategy))
    def test_my_strategy_conforms(check):
        CHECKS[check](lambda: MyStrategy({"my_option": 3}))

    print(run_all(MyStrategy))                          # without pytest

A factory returns a new strategy at each call; the kit gives it nodes and settings of its own (`strategy.roster`,
`strategy.settings`). A strategy that moves the parameters although no node changed anything says so with the class
attribute `zero_is_identity = False`.
"""

from __future__ import annotations

import logging

from fedrec_app.conformance import ConformanceError, Report, by_name, run
from strategies.base import RecStrategy
from strategies.testing.checks import (
    check_deterministic,
    check_empty_rounds,
    check_grouping,
    check_inputs_unchanged,
    check_many_clients,
    check_names_shapes_dtypes,
    check_one_client,
    check_order,
    check_sampling,
    check_state,
    check_trained_rows,
    check_unknown_option,
    check_weights,
    check_zero_updates_change_nothing,
)
from strategies.testing.harness import Check, Make
from strategies.testing.hostile import check_hostile_replies

__all__ = [
    "CHECKS", "ConformanceError", "Report", "applicable", "check_deterministic", "check_empty_rounds", "check_grouping",
    "check_hostile_replies", "check_inputs_unchanged", "check_many_clients", "check_names_shapes_dtypes",
    "check_one_client", "check_order", "check_sampling", "check_state", "check_trained_rows", "check_unknown_option",
    "check_weights", "check_zero_updates_change_nothing", "run_all",
]  # fmt: skip


CHECKS: dict[str, Check] = by_name(
    check_names_shapes_dtypes, check_inputs_unchanged, check_zero_updates_change_nothing, check_order, check_grouping,
    check_trained_rows, check_one_client, check_many_clients, check_empty_rounds, check_hostile_replies, check_weights,
    check_state, check_deterministic, check_sampling, check_unknown_option,
)  # fmt: skip
"""Every check by name."""


def applicable(make: Make) -> list[str]:
    """Returns the checks that a strategy must pass, by what it says of itself.

    "grouping" is for `needs = "sums"`; "weights" for those that weigh (`weighted`, of the strategy or its aggregator)
    and have an option `weighting`; "zero_updates_change_nothing" is not for those with `zero_is_identity = False`.
    None of "order", "grouping" and "weights", which compare rounds of other replies, is for strategies that aggregate
    what comes first (`depends_on_arrival` and an `exchange` of their own).

    Args:
        make: returns a new strategy at each call; a class whose options all have defaults will do.
    """
    strategy = make()
    first_come = strategy.depends_on_arrival and type(strategy).exchange is not RecStrategy.exchange
    left_out = {
        "order": first_come,
        "grouping": first_come or strategy.needs != "sums",
        "weights": first_come or not (strategy.weighted and hasattr(strategy.options, "weighting")),
        "zero_updates_change_nothing": not strategy.zero_is_identity,
    }
    return [name for name in CHECKS if not left_out.get(name, False)]


def run_all(make: Make) -> Report:
    """Returns what each check that applies found; Flower's log of dropped replies stays silent.

    Args:
        make: returns a new strategy at each call; a class whose options all have defaults will do.
    """
    logger = logging.getLogger("flwr")
    before, logger.disabled = logger.disabled, True
    try:
        return run(CHECKS, applicable(make), make)
    finally:
        logger.disabled = before
