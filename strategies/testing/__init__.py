"""The conformance kit: what every strategy must do, as functions that authors of strategies run.

    from strategies.testing import CHECKS, applicable, run_all

    @pytest.mark.parametrize("check", applicable(MyStrategy))
    def test_my_strategy_conforms(check):
        CHECKS[check](lambda: MyStrategy({"my_option": 3}))

    print(run_all(MyStrategy))                          # without pytest

A factory returns a new strategy at each call; the kit gives it nodes and settings of its own (`strategy.roster`,
`strategy.settings`). A strategy that moves the parameters although no node changed anything says so with the class
attribute `zero_is_identity = False`, one whose step may go against a delta that all nodes share with
`follows_delta = False`.
"""

from __future__ import annotations

import logging
from typing import Any

from fedrec_app.client_part import ClientPart
from fedrec_app.conformance import ConformanceError, Report, by_name, run
from strategies.base import RecStrategy
from strategies.testing.checks import (
    check_empty_rounds,
    check_grouping,
    check_inputs_unchanged,
    check_many_clients,
    check_names_shapes_dtypes,
    check_one_client,
    check_order,
    check_trained_rows,
    check_weights,
    check_zero_updates_change_nothing,
)
from strategies.testing.client_side import (
    check_client_controls,
    check_client_finish,
    check_client_gradient,
    check_client_weigh,
)
from strategies.testing.composed import check_composed
from strategies.testing.construction import check_constructor, check_unknown_option
from strategies.testing.harness import Check, Make, takes
from strategies.testing.hostile import check_hostile_replies
from strategies.testing.many_rounds import check_deterministic, check_sampling, check_state
from strategies.testing.step import check_follows_delta, check_overflow

__all__ = [
    "CHECKS", "ConformanceError", "Report", "applicable", "check_client_controls", "check_client_finish",
    "check_client_gradient", "check_client_weigh", "check_composed", "check_constructor", "check_deterministic",
    "check_empty_rounds", "check_follows_delta", "check_grouping", "check_hostile_replies", "check_inputs_unchanged",
    "check_many_clients", "check_names_shapes_dtypes", "check_one_client", "check_order", "check_overflow",
    "check_sampling", "check_state", "check_trained_rows", "check_unknown_option", "check_weights",
    "check_zero_updates_change_nothing", "run_all",
]  # fmt: skip


CHECKS: dict[str, Check] = by_name(
    check_constructor, check_unknown_option, check_client_controls, check_client_gradient, check_client_weigh,
    check_client_finish, check_names_shapes_dtypes, check_deterministic, check_inputs_unchanged,
    check_zero_updates_change_nothing, check_follows_delta, check_order, check_grouping, check_trained_rows,
    check_one_client, check_many_clients, check_empty_rounds, check_hostile_replies, check_overflow, check_weights,
    check_state, check_composed, check_sampling,
)  # fmt: skip
"""Every check by name."""
BASIC = ("client_controls",)
"""Without controls that fit, every honest reply is dropped."""
COMPARING = (
    "follows_delta", "order", "grouping", "trained_rows", "hostile_replies", "weights", "state", "composed",
)  # fmt: skip
"""Checks that compare rounds: they mean nothing where the same rounds differ already."""


def applicable(make: Make) -> list[str]:
    """Returns the checks that a strategy must pass, by what it says of itself.

    "grouping" is for `needs = "sums"`; "weights" for those that weigh (`weighted`, of the strategy or its aggregator)
    and have an option `weighting`; "zero_updates_change_nothing" is not for those with `zero_is_identity = False`, nor
    "follows_delta" for those with `follows_delta = False`. None of "order", "grouping" and "weights", which compare
    rounds of other replies, is for strategies that aggregate what comes first (`depends_on_arrival` and an `exchange`
    of their own). "client_..." are for strategies with a client part, and for what it overrides; "composed" for those
    whose aggregator or server optimiser is an option.

    Args:
        make: returns a new strategy at each call; a class whose options all have defaults will do.
    """
    strategy = make()
    first_come = strategy.depends_on_arrival and type(strategy).exchange is not RecStrategy.exchange
    part: Any = strategy.client_part
    fits = isinstance(part, type) and issubclass(part, ClientPart)
    left_out = {
        "order": first_come,
        "grouping": first_come or strategy.needs != "sums",
        "weights": first_come or not (strategy.weighted and hasattr(strategy.options, "weighting")),
        "zero_updates_change_nothing": not strategy.zero_is_identity,
        "follows_delta": not strategy.follows_delta,
        "composed": not (takes(strategy, "aggregator") or takes(strategy, "server_optimizer")),
        "client_controls": part is None,
        "client_gradient": not (fits and part.changes_gradients()),
        "client_weigh": not (fits and (part.weighs() or part.scalars)),
        "client_finish": not (fits and part.remembers()),
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
        return _run_all(make)
    finally:
        logger.disabled = before


def _run_all(make: Make) -> Report:
    try:
        names = applicable(make)
    except Exception:  # nothing else can be checked: that one says why
        return run(CHECKS, ["constructor", *(name for name in CHECKS if name != "constructor")], make, ["constructor"])
    after = names[names.index("names_shapes_dtypes") + 1 :]
    return run(CHECKS, names, make, BASIC, {"names_shapes_dtypes": after, "deterministic": COMPARING})
