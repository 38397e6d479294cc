"""Every built-in strategy passes the kit, with several options."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

import strategies.testing
from strategies.base import RecStrategy
from strategies.options import MeanOptions, Weighting
from strategies.registry import BUILT_IN, strategy_class
from strategies.testing import CHECKS, applicable, run_all

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "fedavg": [{"learning_rate": 0.5}],
    "fedadam": [
        {"learning_rate": 0.1, "beta_1": 0.0, "beta_2": 0.0, "tau": 1e-3},
        {"learning_rate": 1.0, "beta_1": 0.5, "tau": 1e-8, "bias_correction": False},
    ],
    "fedbuff": [
        {"buffer_size": 3},
        {"buffer_size": 4, "staleness_exponent": 0.0},
        {"server_optimizer": {"name": "adam", "learning_rate": 0.1}},
    ],
}
"""What is tried besides the defaults, which are tried with every weighting."""


def built_in(name: str) -> type[RecStrategy]:
    found = strategy_class(name)
    assert issubclass(found, RecStrategy)
    return found


def cases() -> list[Any]:
    result = []
    for name in BUILT_IN:
        averages = issubclass(built_in(name).Options, MeanOptions)
        options = [{"weighting": w} for w in get_args(Weighting)] if averages else [{}]
        for chosen in [*options, *OPTIONS.get(name, [])]:
            described = " ".join(f"{key}={value}" for key, value in chosen.items()) or "defaults"
            result += [pytest.param(name, chosen, c, id=f"{name} {described} {c}") for c in applicable(built_in(name))]
    return result


@pytest.mark.parametrize(("name", "options", "check"), cases())
def test_a_built_in_strategy_conforms(name: str, options: dict[str, Any], check: str) -> None:
    CHECKS[check](lambda: built_in(name)(options))


def test_every_check_that_a_class_does_not_exclude_applies() -> None:
    class Individual(RecStrategy):
        needs = "individual"
        Options = strategies.base.StrategyOptions
        zero_is_identity = False

    assert applicable(RecStrategy) == list(CHECKS)
    assert set(CHECKS) - set(applicable(Individual)) == {"grouping", "weights", "zero_updates_change_nothing"}


def test_a_report_names_every_check_that_applies() -> None:
    make: Callable[[], RecStrategy] = lambda: built_in("fedavg")({"learning_rate": 0.5})  # noqa: E731
    report = run_all(make)
    assert list(report.results) == list(CHECKS)
    assert report.passed, str(report)
    assert str(report).splitlines()[0] == "passed  names_shapes_dtypes"


def test_the_kit_does_not_need_pytest() -> None:
    for path in Path(strategies.testing.__file__).parent.glob("*.py"):
        imports = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {alias.name for node in imports for alias in node.names} | {
            getattr(node, "module", "") for node in imports
        }
        assert not any(str(name).startswith(("pytest", "_pytest", "tests")) for name in names), path
