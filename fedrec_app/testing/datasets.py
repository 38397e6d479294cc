"""The conformance kit of data sets: what every DataSource must do, as functions that authors run.

    from fedrec_app.testing.datasets import CHECKS, DataCase, applicable, run_all

    CASE = DataCase(Shop, path="tests/data/shop.csv", columns="item_id=article")

    @pytest.mark.parametrize("check", applicable(CASE))
    def test_the_shop_conforms(check):
        CHECKS[check](CASE)

    print(run_all(CASE))                                # without pytest

A case is a class with what it is loaded with: a small extract will do, best one with rows that are to be set aside.
"""

from __future__ import annotations

from fedrec_app.conformance import ConformanceError, Report, by_name, run
from fedrec_app.testing.data_case import DataCase
from fedrec_app.testing.data_checks import (
    check_catalog,
    check_columns,
    check_counts,
    check_description,
    check_deterministic,
    check_interactions,
    check_options,
    check_partitions,
    check_unreadable_path,
)

__all__ = ["BASIC", "CHECKS", "ConformanceError", "DataCase", "Report", "applicable", "run_all"]

CHECKS = by_name(
    check_description, check_options, check_deterministic, check_catalog, check_interactions, check_counts,
    check_partitions, check_unreadable_path, check_columns,
)  # fmt: skip
"""Every check by name."""

BASIC = ("description",)
"""Checks without which those that follow mean nothing: `run_all` ends with the first of them that fails."""


def applicable(case: DataCase) -> list[str]:
    """Returns the checks that a source must pass, by what it says of itself: "unreadable_path" is for those that take
    a path, "columns" for those that take a mapping of columns."""
    left_out = {"unreadable_path": not case.source.takes_path, "columns": not case.source.takes_columns}
    return [name for name in CHECKS if not left_out.get(name, False)]


def run_all(case: DataCase) -> Report:
    """Returns what each check that applies found.

    Args:
        case: the source and what it is loaded with.
    """
    return run(CHECKS, applicable(case), case, BASIC)
