"""Checks of single rounds: each takes a factory of strategies and raises a ConformanceError where one breaks its
rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from flwr.app import ConfigRecord

from fedrec_app.conformance import check, giving, require
from fedrec_app.records import Arrays, from_record, to_record
from strategies.testing.harness import (
    WAYS,
    Make,
    Run,
    aggregated,
    as_sent,
    difference,
    direct,
    fresh,
    fresh_params,
    misfit,
    not_finite,
)
from strategies.testing.nodes import (
    PARAMS,
    added,
    drawn,
    honest,
    silent,
    times,
    trained_rows,
    whole,
    without_change,
)
from strategies.update import Update

_SOME = [drawn(label, weight) for label, weight in enumerate((1.0, 5.0, 2.0, 3.0, 1.0, 2.0))]
_UNEVEN = [
    replace(times(whole(drawn(label, weight)), factor), partition_id=number)
    for number, (label, weight, factor) in enumerate(
        (
            (0, 2.0, 2.0**15),
            (1, 1.0, 2.0**-10),
            (2, 4.0, 2.0**-3),
            (0, 8.0, -(2.0**13)),
            (3, 0.5, 2.0**-10),
            (4, 16.0, 2.0**-3),
        )
    )
]
_UNEVEN_SAID = "six updates of sizes 0.001, 0.1 and 30000, whose largest cancel out (add up in float64, see UpdateSum)"


@check
def check_names_shapes_dtypes(make: Make) -> None:
    """Parameters keep their names, shapes and dtypes: 0-d, 1-d, 2-d and empty ones, float32 ones float32."""
    strategy = fresh(make)
    delta = aggregated(strategy, [as_sent(strategy, update) for update in _SOME], PARAMS)
    require(misfit(delta, dtypes=False), "six updates, the result of aggregate")
    require(misfit(direct(make, _SOME)), "six updates, the result of server_step")
    run = Run(make, [honest(update) for update in _SOME])
    for server_round in (1, 2):
        require(misfit(run.round()), f"six replies, the result of aggregate_train in round {server_round}")


@check
def check_inputs_unchanged(make: Make) -> None:
    """What a strategy is given stays as it is: updates, parameters, deltas, messages and configuration."""
    strategy, params = fresh(make), fresh_params()
    given, kept = ([as_sent(strategy, update) for update in _SOME] for _ in range(2))
    delta = aggregated(strategy, given, params)
    before = {name: np.array(array) for name, array in delta.items()}
    with giving("the mean delta to server_step"):
        strategy.server_step(params, delta, 1)
    require(difference(params, PARAMS, exact=True), "six updates, the parameters afterwards")
    for number, (update, copy) in enumerate(zip(given, kept, strict=True)):
        require(difference(update.arrays, copy.arrays, exact=True), f"six updates, update {number} afterwards")
    require(difference(delta, before, exact=True), "the mean delta, after server_step")
    run = Run(make, [honest(update) for update in _SOME])
    record, config = to_record(PARAMS), ConfigRecord({"lineage": "a"})
    with giving("a round of six replies"):
        messages = list(run.strategy.configure_train(1, record, config, run.nodes))
        run.strategy.aggregate_train(1, run.nodes.send_and_receive(messages))
    require(difference(from_record(record), PARAMS, exact=True), "a record of parameters, after a round")
    require("" if dict(config) == {"lineage": "a"} else f"it is {dict(config)}", "a train config, after a round")


@check
def check_zero_updates_change_nothing(make: Make) -> None:
    """Nodes that changed nothing leave the parameters as they are in a first round."""
    for way, result in WAYS.items():
        found = result(make, [without_change(update, 2.0) for update in _SOME])
        require(difference(found, PARAMS, exact=True), f"six updates of zeros to {way}")


@check
def check_order(make: Make) -> None:
    """The order in which updates are listed and replies arrive does not matter, whatever their sizes."""
    for given, updates in {"six updates": _SOME, _UNEVEN_SAID: _UNEVEN}.items():
        require(difference(_delta(make, updates[::-1]), _delta(make, updates), tolerance=1e-7), f"{given}, backwards")
        require(difference(direct(make, updates[::-1]), direct(make, updates)), f"{given}, backwards")
        results = []
        for step in (1, -1):
            run = Run(make, [honest(update) for update in updates])
            replies = run.nodes.send_and_receive(run.ask())[::step]
            with giving(f"replies to {given}"):
                arrays, _ = run.strategy.aggregate_train(1, replies)
            results.append({} if arrays is None else from_record(arrays))
        require(difference(results[1], results[0]), f"{given}, as replies, the last one first")


@check
def check_grouping(make: Make) -> None:
    """Two updates added up beforehand give what the two give apart (`needs = "sums"`)."""
    together = [added(_SOME[0], _SOME[2]), _SOME[1], *_SOME[3:]]
    # Float32 adds up each of these pairs exactly, as a node with the users of both would have done.
    pairs = [added(_UNEVEN[at], _UNEVEN[at + 3]) for at in range(3)]
    for way, result in WAYS.items():
        require(difference(result(make, together), result(make, _SOME)), f"two of six updates added up, to {way}")
        require(difference(result(make, pairs), result(make, _UNEVEN)), f"{_UNEVEN_SAID}, in pairs, to {way}")


def _delta(make: Make, updates: Sequence[Update]) -> Arrays:
    strategy = fresh(make)
    return aggregated(strategy, [as_sent(strategy, update) for update in updates], PARAMS)


@check
def check_trained_rows(make: Make) -> None:
    """Updates with the trained rows of a table alone give what the same updates give with all its rows."""
    rows, tables = [trained_rows(update) for update in _SOME], [whole(update) for update in _SOME]
    for way, result in WAYS.items():
        require(difference(result(make, rows), result(make, tables)), f"six updates with trained rows alone, to {way}")


@check
def check_one_client(make: Make) -> None:
    """A single node is enough, or the round is skipped and said to be."""
    _check_clients(make, 1)


@check
def check_many_clients(make: Make) -> None:
    """A hundred nodes are fine."""
    _check_clients(make, 100)


def _check_clients(make: Make, count: int) -> None:
    run = Run(make, [honest(_SOME[node % len(_SOME)]) for node in range(count)])
    require(not_finite(run.round(may_skip=count == 1)), f"{count} nodes")
    require(f"it dropped honest replies, metrics are {run.metrics}" if run.dropped() else "", f"{count} nodes")


@check
def check_empty_rounds(make: Make) -> None:
    """Without replies or weight, parameters stay finite, in a first round as they were, and the run goes on."""
    good, nothing = [honest(update) for update in _SOME], [without_change(update, 0.0) for update in _SOME]
    with np.errstate(all="ignore"):
        delta = _delta(make, nothing)
    hint = ": divide by the weight only where it is positive"
    problem = not_finite(delta)
    require(problem and problem + hint, "only updates of weight zero, the result of aggregate")
    for given, answers in {
        "no reply": [silent] * len(_SOME),
        "only replies of weight zero": [honest(update) for update in nothing],
    }.items():
        first = Run(make, answers)
        arrays = first.round(may_skip=True)
        if first.strategy.zero_is_identity:
            require(difference(arrays, PARAMS, exact=True), f"{given} in the first round")
        later = Run(make, good)
        later.round()
        require(not_finite(later.round(answers, may_skip=True)), f"{given} in the second round")
        require(not_finite(later.round(good)), f"{given} in the second round and six replies in the third")


@check
def check_weights(make: Make) -> None:
    """A weight of 3 counts like three equal clients of weight 1 (strategies that average)."""
    heavy, light, other = drawn(0, 3.0), drawn(0, 1.0), drawn(1, 1.0)
    for way, result in WAYS.items():
        one, three = result(make, [heavy, other]), result(make, [light, light, light, other])
        require(difference(one, three), f"weight 3 in place of three clients of weight 1, to {way}")
