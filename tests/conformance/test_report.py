"""What a kit says: what was given, where an error was raised, what follows from what, and each thing once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from fedrec_app.conformance import ConformanceError, Report, by_name, check, giving, require, run
from fedrec_app.records import Arrays
from strategies.base import RecStrategy
from strategies.testing import COMPARING, applicable, run_all
from strategies.update import Update
from tests.conformance import client_faults, faults, step_faults


class MisspellsAName(RecStrategy):
    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        delta = super().aggregate(updates, params)
        return {name: delta[name[:-1]] for name in params}


class ReturnsNothing(RecStrategy):
    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        return None  # type: ignore[return-value]


@check
def check_first(subject: list[int]) -> None:
    """Is there."""
    with giving("a list"), giving("its first place"):
        _ = subject[0]


@check
def check_second(subject: list[int]) -> None:
    """Is there as well."""
    require("it is empty" if not subject else "", "a list")
    _ = [][1]


@check
def check_third(subject: list[int]) -> None:
    """Is there too."""
    with giving("a list"):
        require("it is empty" if not subject else "", "another list")


TOY = by_name(check_first, check_second, check_third)
HERE = os.path.relpath(__file__)


def test_an_error_names_the_input_and_the_line_of_the_author() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_first([])
    line = Path(__file__).read_text().splitlines().index("        _ = subject[0]") + 1
    expected = f"first: given a list, its first place: IndexError: list index out of range at {HERE}:{line}"
    assert str(caught.value) == expected
    assert caught.value.raised
    with pytest.raises(ConformanceError, match=r"given input for 'Is there as well.': IndexError"):
        check_second([1])


def test_a_rule_that_is_broken_meanwhile_keeps_its_own_input() -> None:
    with pytest.raises(ConformanceError, match=r"^third: given another list: it is empty$") as caught:
        check_third([])
    assert not caught.value.raised


def test_failures_that_are_the_same_are_one_line() -> None:
    report = run(TOY, TOY, [])
    assert list(report.failed) == ["first", "second", "third"]
    assert report.same == {"third": "second"}
    assert [word for word, _ in report.lines()] == ["FAILED", "FAILED"]
    assert report.lines()[1] == ("FAILED", "second: given a list: it is empty (and the same in third)")


def test_what_follows_from_a_failure_is_not_run() -> None:
    report = run(TOY, TOY, [], without={"second": ["third", "first"]})
    assert (list(report.results), report.not_run) == (["first", "second"], ("third",))
    assert report.results["second"].endswith(": it is empty; what would fail for that alone is not run")
    assert str(report).splitlines()[-1] == "not run third"
    assert run(TOY, TOY, [], without={"first": ["second"]}).not_run == ()  # an error says nothing of what follows
    assert run(TOY, TOY, [], basic=["first"]).not_run == ("second", "third")


def test_a_report_without_failures_is_a_line_a_check() -> None:
    assert str(Report({"one": "", "other": ""})) == "passed  one\npassed  other"


def test_an_error_in_aggregate_is_one_line_with_its_place() -> None:
    report = run_all(MisspellsAName)
    (line,) = [text for word, text in report.lines() if word == "FAILED"]
    assert "given 6 updates to aggregate: KeyError: 'tabl' at " + HERE in line
    assert "(and the same in deterministic, inputs_unchanged, " in line
    assert report.not_run == ()
    assert len(report.failed) > 10


def test_an_aggregate_that_returns_nothing_is_told_what_is_expected() -> None:
    report = run_all(ReturnsNothing)
    expected = "the result of aggregate: it is None: a dict from parameter names to numpy arrays is expected"
    assert expected in report.failed["names_shapes_dtypes"]
    assert list(report.failed) == ["names_shapes_dtypes"]
    assert report.not_run[0] == "deterministic"


def test_without_determinism_what_compares_rounds_is_not_run() -> None:
    report = run_all(faults.Jitters)
    assert set(report.not_run) == set(COMPARING) & set(applicable(faults.Jitters))
    assert "; what would fail for that alone is not run" in report.failed["deterministic"]


def test_without_controls_nothing_else_is_run() -> None:
    report = run_all(client_faults.SendsNoControls)
    assert list(report.results)[-1] == "client_controls"
    assert "order" in report.not_run


def test_a_class_that_cannot_be_made_is_a_report_and_no_error() -> None:
    report = run_all(step_faults.NeedsAnOption)
    assert list(report.results) == ["constructor"]
    assert "order" in report.not_run

    def broken() -> RecStrategy:
        raise ZeroDivisionError("no such thing")

    assert f"the kit's factory: ZeroDivisionError: no such thing at {HERE}:" in run_all(broken).failed["constructor"]


def test_a_state_that_is_no_array_is_told_the_remedy() -> None:
    class KeepsAScalar(RecStrategy):
        def state(self) -> Arrays:
            return {"scale": np.float64(2.0)}  # type: ignore[dict-item]

        def load_state(self, state: Arrays) -> None:
            pass

    assert "'scale' is a float64, not a numpy array: np.asarray makes one" in run_all(KeepsAScalar).failed["state"]
