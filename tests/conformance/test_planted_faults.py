"""The kit finds planted faults, each by the check that is meant for it and by no other."""

from __future__ import annotations

import pytest

from strategies.base import RecStrategy
from strategies.testing import CHECKS, ConformanceError, run_all
from tests.conformance import faults

FAULTS: dict[type[RecStrategy], tuple[set[str], str]] = {
    faults.PromotesToFloat64: ({"names_shapes_dtypes"}, r"result of server_step: 'table' is float64, not float32"),
    faults.DropsAParameter: ({"names_shapes_dtypes"}, r"the names are \['empty', 'scale', 'table'\]"),
    faults.ScalesUpdatesInPlace: ({"inputs_unchanged"}, r"update 0 afterwards: 'delta/"),
    faults.StepsInPlace: ({"inputs_unchanged"}, r"the parameters afterwards: '"),
    faults.StepsTheDeltaInPlace: ({"inputs_unchanged"}, r"the mean delta, after server_step: '"),
    faults.Drifts: ({"zero_updates_change_nothing", "empty_rounds"}, r"six updates of zeros"),
    faults.RunningAverage: ({"order"}, r"six updates, backwards: '"),
    faults.ClipsEachNode: ({"grouping"}, r"two of six updates added up"),
    faults.AveragesRowsOverTheirSenders: ({"trained_rows"}, r"six updates with trained rows alone, to .*: 'table'"),
    faults.NeedsTwo: ({"one_client"}, r"A single node is enough.*: IndexError: list index out of range"),
    faults.OverflowsAtHundred: ({"many_clients"}, r"given 100 replies: no parameters came back"),
    faults.TrustsEverybody: ({"hostile_replies"}, r"given NaN from one of six nodes .*: 'table' holds NaN"),
    faults.RepairsNaN: ({"hostile_replies"}, r"given NaN from one of six nodes: "),
    faults.IgnoresWeights: ({"weights"}, r"weight 3 in place of three clients of weight 1"),
    faults.LosesHalfOfItsState: ({"state"}, r"load_state\(\) on a new strategy, then a round: '"),
    faults.KeepsMomentsInLists: ({"state"}, r"is a \w+, not a numpy array"),
    faults.Jitters: ({"deterministic"}, r"the same rounds twice, in round"),
    faults.DrawsNodesUnseeded: ({"sampling"}, r"other node ids, six rounds: it asks partitions"),
    faults.DrawsNodesById: ({"sampling"}, r"other node ids, six rounds: it asks partitions"),
    faults.AlwaysTheSameNodes: ({"sampling"}, r"half of the nodes, six rounds: it always asks"),
    faults.TakesAnyOption: ({"unknown_option"}, r"the option no_such_option: it was accepted"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found_by_its_check_alone(fault: type[RecStrategy]) -> None:
    checks, message = FAULTS[fault]
    report = run_all(fault)
    assert set(report.failed) == checks, str(report)
    assert not report.passed
    for check in checks:
        with pytest.raises(ConformanceError) as caught:
            CHECKS[check](fault)
        assert caught.value.check == check
    first = next(iter(report.failed.values()))
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(first)


def test_every_check_finds_a_planted_fault() -> None:
    assert {check for checks, _ in FAULTS.values() for check in checks} == set(CHECKS)
