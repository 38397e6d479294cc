"""The checks: each takes a factory of strategies and raises a ConformanceError where the strategy breaks its rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.app import ConfigRecord
from safetensors.numpy import load, save

from fedrec_app.conformance import check, require
from fedrec_app.errors import ConfigError
from fedrec_app.records import from_record, to_record
from strategies.testing.harness import (
    WAYS,
    Make,
    Run,
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
    trained_rows,
    whole,
    without_change,
)

_SOME = [drawn(label, weight) for label, weight in enumerate((1.0, 5.0, 2.0, 3.0, 1.0, 2.0))]


@check
def check_names_shapes_dtypes(make: Make) -> None:
    """Parameters keep their names, shapes and dtypes: 0-d, 1-d, 2-d and empty ones, float32 ones float32."""
    strategy = fresh(make)
    delta = strategy.aggregate(iter([as_sent(strategy, update) for update in _SOME]), PARAMS)
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
    delta = strategy.aggregate(iter(given), params)
    before = {name: np.array(array) for name, array in delta.items()}
    strategy.server_step(params, delta, 1)
    require(difference(params, PARAMS, exact=True), "six updates, the parameters afterwards")
    for number, (update, copy) in enumerate(zip(given, kept, strict=True)):
        require(difference(update.arrays, copy.arrays, exact=True), f"six updates, update {number} afterwards")
    require(difference(delta, before, exact=True), "the mean delta, after server_step")
    run = Run(make, [honest(update) for update in _SOME])
    record, config = to_record(PARAMS), ConfigRecord({"lineage": "a"})
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
    """The order in which updates are listed and replies arrive does not matter."""
    require(difference(direct(make, _SOME[::-1]), direct(make, _SOME)), "six updates, backwards")
    results = []
    for step in (1, -1):
        run = Run(make, [honest(update) for update in _SOME])
        arrays, _ = run.strategy.aggregate_train(1, run.nodes.send_and_receive(run.ask())[::step])
        results.append({} if arrays is None else from_record(arrays))
    require(difference(results[1], results[0]), "six replies, the last one first")


@check
def check_grouping(make: Make) -> None:
    """Two updates added up beforehand give what the two give apart (`needs = "sums"`)."""
    together = [added(_SOME[0], _SOME[2]), _SOME[1], *_SOME[3:]]
    for way, result in WAYS.items():
        require(difference(result(make, together), result(make, _SOME)), f"two of six updates added up, to {way}")


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
    good = [honest(update) for update in _SOME]
    empty = {
        "no reply": [silent] * len(_SOME),
        "only replies of weight zero": [honest(without_change(update, 0.0)) for update in _SOME],
    }
    for given, answers in empty.items():
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


@check
def check_state(make: Make) -> None:
    """A new strategy that loads the state goes on exactly as the old one would, by way of a safetensors file."""
    rounds = [[honest(drawn(6 * number + node)) for node in range(6)] for number in range(4)]
    run, again, resumed = (Run(make, rounds[0]) for _ in range(3))
    for answers in rounds[:3]:
        run.round(answers)
        again.round(answers)
    state = run.strategy.state()
    strange = [name for name, array in state.items() if not isinstance(array, np.ndarray)]
    require(f"{strange[0]!r} is a {type(state[strange[0]]).__name__}, not a numpy array" if strange else "", "state()")
    require(not_finite(state), "state() after three rounds")
    stored = load(save(state))
    require(difference(stored, state, exact=True), "state() in a safetensors file")
    resumed.strategy.load_state(load(save(state)))
    resumed.params, resumed.rounds = run.params, run.rounds
    following = run.round(rounds[3])
    if difference(following, again.round(rounds[3]), exact=True):
        return  # the same run twice differs already, which check_deterministic is there to say
    require(difference(resumed.round(rounds[3]), following, exact=True), "load_state() on a new strategy, then a round")
    require(difference(state, stored, exact=True), "what state() returned, after a further round")


@check
def check_deterministic(make: Make) -> None:
    """The same rounds twice give the same bits."""
    one, other = (Run(make, [honest(update) for update in _SOME]) for _ in range(2))
    for server_round in (1, 2, 3):
        require(difference(one.round(), other.round(), exact=True), f"the same rounds twice, in round {server_round}")


@check
def check_sampling(make: Make) -> None:
    """Which nodes train depends on the seed and the round, not on node ids."""
    size = 16
    some_ids, other_ids = list(range(900, 900 - size, -1)), list(range(1, 7 * size, 7))

    def asked(ids: Sequence[int], seed: int) -> list[list[int]]:
        run = Run(make, [silent] * size, ids, seed=seed, fraction_train=0.5)
        return [sorted(run.nodes.partitions[m.metadata.dst_node_id] for m in run.ask()) for _ in range(6)]

    picks, renamed, reseeded = asked(some_ids, 3), asked(other_ids, 3), asked(some_ids, 4)
    require(f"it asks partitions {renamed}, not {picks}" if renamed != picks else "", "other node ids, six rounds")
    if all(len(pick) == size for pick in picks):
        return
    require(f"it always asks {picks[0]}" if all(p == picks[0] for p in picks) else "", "half of the nodes, six rounds")
    require(f"it asks the same partitions {picks}" if reseeded == picks else "", "another seed, six rounds")


@check
def check_unknown_option(make: Make) -> None:
    """An option that the strategy does not have is refused by name."""
    try:
        type(make())({"no_such_option": 1})
    except ConfigError as error:
        require("" if "no_such_option" in str(error) else f"the error is {error}", "the option no_such_option")
        return
    require("it was accepted", "the option no_such_option")
