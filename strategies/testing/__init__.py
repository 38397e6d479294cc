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
from collections.abc import Mapping
from dataclasses import dataclass

from strategies.base import MeanOptions, RecStrategy
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
from strategies.testing.harness import Check, ConformanceError, Make, name_of
from strategies.testing.hostile import check_hostile_replies

__all__ = [
    "CHECKS", "ConformanceError", "Report", "applicable", "check_deterministic", "check_empty_rounds", "check_grouping",
    "check_hostile_replies", "check_inputs_unchanged", "check_many_clients", "check_names_shapes_dtypes",
    "check_one_client", "check_order", "check_sampling", "check_state", "check_trained_rows", "check_unknown_option",
    "check_weights", "check_zero_updates_change_nothing", "run_all",
]  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What the kit found: for each check that applies "", or how the strategy failed it."""

    results: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return not self.failed

    @property
    def failed(self) -> dict[str, str]:
        """The checks that failed, with what was found."""
        return {name: message for name, message in self.results.items() if message}

    def __str__(self) -> str:
        return "\n".join(
            f"FAILED  {message}" if message else f"passed  {name}" for name, message in self.results.items()
        )


CHECKS: dict[str, Check] = {
    name_of(check): check
    for check in (
        check_names_shapes_dtypes, check_inputs_unchanged, check_zero_updates_change_nothing, check_order,
        check_grouping, check_trained_rows, check_one_client, check_many_clients, check_empty_rounds,
        check_hostile_replies, check_weights, check_state, check_deterministic, check_sampling, check_unknown_option,
    )
}  # fmt: skip
"""Every check by name."""


def applicable(strategy_class: type[RecStrategy]) -> list[str]:
    """Returns the checks that a strategy must pass, by what its class says of itself.

    "grouping" is for `needs = "sums"`, "weights" for those whose options have a weighting, and
    "zero_updates_change_nothing" is not for those with `zero_is_identity = False`.
    """
    left_out = {
        "grouping": strategy_class.needs != "sums",
        "weights": not issubclass(strategy_class.Options, MeanOptions),
        "zero_updates_change_nothing": not getattr(strategy_class, "zero_is_identity", True),
    }
    return [name for name in CHECKS if not left_out.get(name, False)]


def run_all(make: Make) -> Report:
    """Returns what each check that applies found; Flower's log of dropped replies stays silent.

    Args:
        make: returns a new strategy at each call; a class whose options all have defaults will do.
    """
    logger = logging.getLogger("flwr")
    before, logger.disabled = logger.disabled, True
    results = {}
    try:
        for name in applicable(type(make())):
            try:
                CHECKS[name](make)
            except ConformanceError as error:
                results[name] = str(error)
            else:
                results[name] = ""
    finally:
        logger.disabled = before
    return Report(results)
