"""The kit finds planted faults, each by the check that is meant for it and by no other."""

from __future__ import annotations

import pytest

from strategies.base import RecStrategy
from strategies.testing import CHECKS, ConformanceError, run_all
from tests.conformance import client_faults, faults, step_faults

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
    faults.NeedsTwo: (
        {"one_client"},
        r"1 reply in round 1 to .*: IndexError: list .* at .*faults\.py:\d+",
    ),
    faults.OverflowsAtHundred: ({"many_clients"}, r"given 100 replies: no parameters came back"),
    faults.TrustsEverybody: ({"hostile_replies", "overflow"}, r"given NaN from one of six nodes .*: 'table' holds NaN"),
    faults.RepairsNaN: ({"hostile_replies"}, r"given NaN from one of six nodes: "),
    faults.IgnoresWeights: ({"weights"}, r"weight 3 in place of three clients of weight 1"),
    faults.LosesHalfOfItsState: ({"state"}, r"load_state\(\) on a new strategy, then a round: '"),
    faults.KeepsMomentsAsNumbers: ({"state"}, r"is a (int|float), not a numpy array: np.asarray makes one"),
    faults.Jitters: ({"deterministic"}, r"the same rounds twice, in round"),
    faults.DrawsNodesUnseeded: ({"sampling"}, r"other node ids, six rounds: it asks partitions"),
    faults.DrawsNodesById: ({"sampling"}, r"other node ids, six rounds: it asks partitions"),
    faults.AlwaysTheSameNodes: ({"sampling"}, r"half of the nodes, six rounds: it always asks"),
    faults.TakesAnyOption: ({"unknown_option"}, r"the option no_such_option: it was accepted"),
    step_faults.TakesOptionsAlone: (
        {"constructor"},
        r"__init__ takes \(options.*: it must be def __init__\(",
    ),
    step_faults.LosesItsSettings: ({"constructor"}, r"settings or roster got lost"),
    step_faults.NeedsAnOption: ({"constructor"}, r"the options \['strength'\]: they have no default"),
    step_faults.SumsInFloat32: ({"order", "grouping"}, r"whose largest cancel out .*, backwards: 'bias' is"),
    step_faults.DescendsTheDelta: ({"follows_delta"}, r"the same delta from six nodes: 'table' moves the other way"),
    step_faults.HidesAnOverflow: ({"overflow"}, r"deltas of 2e40, which .*: the round is not skipped: np.nan_to_num"),
    step_faults.HidesNaN: ({"overflow"}, r"a delta of NaN to server_step: 'table' is finite: np.nan_to_num"),
    step_faults.DividesByNoWeight: ({"empty_rounds"}, r"updates of weight zero, .*: divide by the weight only where"),
    step_faults.JittersLater: (
        {"deterministic"},
        r"rounds twice, in round 10: .*draw from a generator seeded",
    ),
    step_faults.IgnoresItsAggregator: ({"composed"}, r"aggregator = 'median': it changes nothing: use self.aggregator"),
    step_faults.IgnoresItsServerOptimizer: ({"composed"}, r"server_optimizer = 'adam': it changes nothing"),
    step_faults.ExpectsTheMean: ({"composed"}, r"aggregator = 'median' and, for order, six updates, backwards"),
    step_faults.LosesItsOptimizersState: (
        {"state"},
        r"load_state\(\) with server_optimizer 'momentum' on",
    ),
    client_faults.SendsNoControls: (
        {"client_controls"},
        r"none for 'bias', .*: has_controls = True, so",
    ),
    client_faults.SendsControlsToNobody: ({"client_controls"}, r"has has_controls = False: no node looks at them"),
    client_faults.MisspellsInTheGradient: (
        {"client_gradient"},
        r"of 'table': AttributeError: .*'nonsense' at",
    ),
    client_faults.MixesUsers: ({"client_gradient"}, r"'table', of 3 users and of one: it is .* element by element"),
    client_faults.MixesRows: ({"client_gradient"}, r"'table', some rows alone and all of them: it is"),
    client_faults.AddsToTheGradientInPlace: ({"client_gradient"}, r"it changes grad in place: return a new tensor"),
    client_faults.WidensTheGradient: ({"client_gradient"}, r"'table': it is torch.float64, not torch.float32"),
    client_faults.WeighsByNothing: ({"client_weigh"}, r"five units to weigh: AttributeError: .*'wieghts' at .*:\d+"),
    client_faults.ReturnsAnUndeclaredScalar: ({"client_weigh"}, r"scalars \['units'\], and the class declares .* \(\)"),
    client_faults.AddsUpNegativeNumbers: ({"client_weigh"}, r"five units to weigh, scalar 'change': it is negative"),
    client_faults.WeighsByShareOfTheGroup: (
        {"client_weigh"},
        r"some of five units: .*: a node weighs its users in",
    ),
    client_faults.AnswersWithoutControls: ({"client_finish"}, r"to finish, the controls: there is none for 'bias'"),
    client_faults.KeepsNumbersInItsMemory: ({"client_finish"}, r"the memory: 'norm' is a float, not a numpy array"),
    client_faults.TakesANameOfTheNode: (
        {"client_finish"},
        r"memory from the node's disk: it has \[\], not",
    ),
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
