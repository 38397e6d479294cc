"""Every built-in strategy passes the kit, with several options."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

import strategies.testing
from strategies.aggregators import WeightedMean
from strategies.base import RecStrategy
from strategies.options import MeanOptions, Weighting
from strategies.registry import BUILT_IN, strategy_class
from strategies.testing import CHECKS, applicable, run_all
from tests.conformance.step_faults import SumsInFloat64

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "fedavg": [{"learning_rate": 0.5}],
    "fedadam": [
        {"learning_rate": 0.1, "beta_1": 0.0, "beta_2": 0.0, "tau": 1e-3},
        {"learning_rate": 1.0, "beta_1": 0.5, "tau": 1e-8, "bias_correction": False},
    ],
    "dp-fedavg": [{"server_optimizer": {"name": "subspace", "momentum": 0.5}}],
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
        follows_delta = False

    client = {name for name in CHECKS if name.startswith("client_")}
    assert set(CHECKS) - set(applicable(RecStrategy)) == {*client, "composed"}
    assert set(applicable(RecStrategy)) - set(applicable(Individual)) == {
        "grouping", "weights", "zero_updates_change_nothing", "follows_delta"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("fedavg", {"composed"}),
        ("fedprox", {"composed"}),
        ("median", {"composed"}),
        ("qfedavg", {"composed", "client_controls", "client_weigh"}),
        ("scaffold", {"composed", "client_controls", "client_gradient", "client_finish"}),
    ],
)
def test_checks_follow_the_parts_that_a_strategy_is_made_of(name: str, more: set[str]) -> None:
    applied = set(applicable(built_in(name)))
    assert {check for check in applied if check == "composed" or check.startswith("client_")} == more


def test_a_strategy_that_settles_its_aggregator_has_no_choice_to_check() -> None:
    class Settled(built_in("fedadam")):  # type: ignore[misc]
        def make_aggregator(self) -> WeightedMean:
            return WeightedMean()

    assert "composed" in applicable(built_in("fedadam"))
    assert "composed" not in applicable(Settled)


def test_sums_in_float64_are_good_enough() -> None:
    report = run_all(SumsInFloat64)
    assert report.passed, str(report)


def test_a_report_names_every_check_that_applies() -> None:
    make: Callable[[], RecStrategy] = lambda: built_in("fedavg")({"learning_rate": 0.5})  # noqa: E731
    report = run_all(make)
    assert list(report.results) == applicable(make)
    assert report.passed, str(report)
    assert str(report).splitlines()[0] == "passed  constructor"


def test_the_kit_does_not_need_pytest() -> None:
    for path in Path(strategies.testing.__file__).parent.glob("*.py"):
        imports = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {alias.name for node in imports for alias in node.names} | {
            getattr(node, "module", "") for node in imports
        }
        assert not any(str(name).startswith(("pytest", "_pytest", "tests")) for name in names), path
