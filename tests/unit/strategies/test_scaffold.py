from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedrec_app.errors import StateError
from fedrec_app.records import from_record
from strategies.rollcall import Member, Roster
from strategies.scaffold import Scaffold, ScaffoldPart
from strategies.settings import Settings
from tests.unit.strategies.given import after_round, arrays_of, asked, assert_arrays, update, with_controls
from tests.unit.strategies.replies import NODES, metrics, reply

PARAMS = {"p": np.array([1.0, 2.0], dtype=np.float32)}


def roster() -> Roster:
    """Three nodes with 1, 3 and 4 examples."""
    examples = {10: 1, 11: 3, 12: 4}
    return Roster("", "", members={n: Member(n, k, 3, 1, examples[n]) for n, k in NODES.items()})


def started(**settings: Any) -> Scaffold:
    return Scaffold({}, Settings(unit="node", **settings), roster())


def test_on_the_node_the_gradient_is_corrected() -> None:
    """g - c_i + c = 1 - 0.5 + 4 and 1 - 0 + 8; at first c_i is zero."""
    received = {"p": np.array([4.0, 8.0], dtype=np.float32)}
    grad = torch.tensor([1.0, 1.0])
    later = ScaffoldPart(None, received, {"p": np.array([0.5, 0.0], dtype=np.float32)})
    assert later.gradient("p", grad, grad, grad).tolist() == [4.5, 9.0]
    assert ScaffoldPart(None, received, {}).gradient("p", grad, grad, grad).tolist() == [5.0, 9.0]


def test_on_the_node_the_control_variate_follows_option_two() -> None:
    """From x to y = x + (1, -2) in K = 4 steps of rate 0.5: (x - y) / (K eta) = (-0.5, 1). With c = (4, 8) the change
    is -c + that = (-4.5, -7), and c_i = (0.5, 0) becomes (-4, -7); the first time, from zero, (-4.5, -7)."""
    received = {"p": np.array([4.0, 8.0], dtype=np.float32)}
    part = ScaffoldPart(None, received, {"p": np.array([0.5, 0.0], dtype=np.float32)})
    change, after = part.finish(arrays_of(p=[1.0, -2.0]), 4, 0.5)
    assert_arrays(change, p=[-4.5, -7.0])
    assert_arrays(after, p=[-4.0, -7.0])
    assert after["p"].dtype == np.float32
    _, after = ScaffoldPart(None, received, {}).finish(arrays_of(p=[1.0, -2.0]), 4, 0.5)
    assert_arrays(after, p=[-4.5, -7.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_fit_that_diverged_leaves_the_control_variate_as_it_was(bad: float) -> None:
    memory = {"p": np.array([0.5, 0.0], dtype=np.float32)}
    part = ScaffoldPart(None, {"p": np.zeros(2, dtype=np.float32)}, memory)
    change, after = part.finish(arrays_of(p=[1.0, bad]), 1, 1.0)
    assert not np.isfinite(change["p"]).all()  # which the server drops
    assert after is memory


def test_a_control_variate_of_another_model_is_named() -> None:
    part = ScaffoldPart(None, {"p": np.zeros(2, dtype=np.float32)}, {"p": np.zeros((3, 1), dtype=np.float32)})
    grad = torch.zeros(2)
    with pytest.raises(StateError, match=r"control variate of 'p'"):
        part.gradient("p", grad, grad, grad)


def test_two_rounds_on_the_server() -> None:
    """Three nodes with 1, 3 and 4 examples, of whom the first two train in round 1, and the last two in round 2.

    x moves by the mean over who trained, (1 * 4 + 3 * 8) / 4 = 7, then (3 * 2 - 4 * 5) / 7 = -2.
    c moves by the sum over who trained divided by all 8 examples: (1 * 2 + 3 * -6) / 8 = -2, then
    -2 + (3 * 4 + 4 * 3) / 8 = 1.
    """
    strategy = started()
    asked(strategy, PARAMS)
    one = [with_controls(update(1, 0, p=4.0), p=2.0), with_controls(update(3, 1, p=8.0), p=-6.0)]
    two = [with_controls(update(3, 1, p=2.0), p=4.0), with_controls(update(4, 2, p=-5.0), p=3.0)]
    after = after_round(strategy, arrays_of(p=1.0), one)
    assert_arrays(after, p=8.0)
    assert_arrays(strategy.state(), **{"control/p": -2.0})
    assert_arrays(after_round(strategy, after, two, 2), p=6.0)
    assert_arrays(strategy.state(), **{"control/p": 1.0})


def test_the_server_sends_its_control_variate_beside_the_parameters() -> None:
    strategy = started()
    (message, *_) = asked(strategy, PARAMS)
    sent = from_record(message.content.array_records["arrays"])
    assert_arrays(sent, **{"p": [1.0, 2.0], "control/p": [0.0, 0.0]})
    strategy.load_state({"control/p": np.array([0.5, -1.0])})
    (message, *_) = asked(strategy, PARAMS, 2)
    sent = from_record(message.content.array_records["arrays"])
    assert_arrays(sent, **{"p": [1.0, 2.0], "control/p": [0.5, -1.0]})
    assert sent["control/p"].dtype == np.float32


def answer(node: int, weight: float, delta: float, change: float, server_round: int = 1) -> Any:
    arrays = {"delta/p": np.full(2, weight * delta, np.float32), "control/p": np.full(2, weight * change, np.float32)}
    return reply(node, arrays, metrics(weight, server_round))


def test_a_round_below_the_quorum_leaves_the_control_variate_as_it_was() -> None:
    strategy = started(min_nodes=2)
    asked(strategy, PARAMS)
    strategy.aggregate_train(1, [answer(11, 3, 8.0, -6.0), answer(12, 4, 0.0, 1.0)])
    before = strategy.state()
    used = {"optimizer/memory-rounds": [[1, 1], [2, 1]]}
    assert_arrays(before, **{"control/p": [-1.75, -1.75]}, **used)  # (3 * -6 + 4) / 8
    asked(strategy, PARAMS)
    arrays, said = strategy.aggregate_train(1, [answer(12, 4, 1.0, 5.0)])
    assert (arrays, dict(said or {})["skipped"]) == (None, 1)
    assert_arrays(strategy.state(), **before)


def test_each_node_is_told_which_reply_of_its_own_was_used_last() -> None:
    def told(strategy: Scaffold, server_round: int) -> list[int]:
        return [m.content.config_records["config"]["memory-round"] for m in asked(strategy, PARAMS, server_round)]

    strategy = started(min_nodes=2)
    assert told(strategy, 1) == [0, 0, 0]
    strategy.aggregate_train(1, [answer(10, 1, 1.0, 1.0), answer(12, 4, 1.0, 1.0)])
    assert told(strategy, 2) == [1, 0, 1]
    strategy.aggregate_train(2, [answer(11, 3, 1.0, 1.0, 2)])  # below the quorum: nothing of it was used
    assert told(strategy, 3) == [1, 0, 1]
    late = answer(10, 1, 1.0, 1.0, server_round=2)
    strategy.aggregate_train(3, [late, answer(11, 3, 1.0, 1.0, 3), answer(12, 4, 1.0, 1.0, 3)])
    resumed = started()
    resumed.load_state(strategy.state())
    assert told(strategy, 4) == told(resumed, 4) == [1, 3, 3]


def test_a_reply_without_controls_is_dropped() -> None:
    strategy = started()
    asked(strategy, PARAMS)
    bare = reply(10, {"delta/p": np.ones(2, np.float32)}, metrics(1.0))
    _, said = strategy.aggregate_train(1, [bare, answer(11, 3, 1.0, 1.0)])
    assert dict(said or {})["dropped/missing-array"] == 1


def test_the_state_of_both_goes_on() -> None:
    options = {"server_optimizer": {"name": "momentum", "momentum": 0.5}}
    given = [with_controls(update(1, 0, p=2.0), p=8.0)]
    one, other = Scaffold(options, Settings(unit="node")), Scaffold(options, Settings(unit="node"))
    after = after_round(one, arrays_of(p=0.0), given)
    assert sorted(one.state()) == ["control/p", "optimizer/p"]
    other.load_state(one.state())
    assert_arrays(after_round(other, after, given), p=5.0)  # 2 + (1 + 2)
    assert_arrays(other.state(), **{"control/p": 16.0, "optimizer/p": 3.0})


def test_nodes_without_weight_move_nothing_whatever_they_send() -> None:
    strategy = Scaffold()
    liar = with_controls(update(1, 0, p=2.0), p=8.0)
    liar.scalars["weight"] = 0.0
    assert_arrays(after_round(strategy, arrays_of(p=1.0), [liar]), p=1.0)
    assert strategy.state() == {}


def test_its_options_have_names() -> None:
    assert Scaffold(options={"weighting": "users"}, settings=Settings(unit="node"), roster=None).weighting == "users"
