"""Checks of what a strategy does from round to round: randomness, state, who trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from safetensors.numpy import load, save

from fedrec_app.conformance import check, giving, require
from strategies.testing.harness import Make, Run, difference, not_finite, takes, variant
from strategies.testing.nodes import drawn, honest, silent

_ROUNDS = (*range(1, 13), 25, 50, 100, 101, 1000)


@check
def check_deterministic(make: Make) -> None:
    """The same rounds twice give the same bits."""
    one, other = (Run(make, [honest(drawn(label)) for label in range(6)]) for _ in range(2))
    hint = "; draw from a generator seeded by the run's seed and the round, np.random.default_rng([seed, round])"
    for server_round in _ROUNDS:
        one.rounds = other.rounds = server_round - 1
        problem = difference(one.round(), other.round(), exact=True)
        require(problem and problem + hint, f"the same rounds twice, in round {server_round}")


@check
def check_state(make: Make) -> None:
    """A new strategy that loads the state goes on exactly as the old one would, by way of a safetensors file."""
    _check_state(make, "")
    if takes(make(), "server_optimizer"):
        for name in ("momentum", "adam"):
            _check_state(variant(make, server_optimizer=name), f" with server_optimizer {name!r}")


def _check_state(make: Make, how: str) -> None:
    rounds = [[honest(drawn(6 * number + node)) for node in range(6)] for number in range(4)]
    run, again, resumed = (Run(make, rounds[0]) for _ in range(3))
    for answers in rounds[:3]:
        run.round(answers)
        again.round(answers)
    with giving(f"three rounds{how}, state()"):
        state = run.strategy.state()
    strange = [f"{name!r} is a {type(a).__name__}" for name, a in state.items() if not isinstance(a, np.ndarray)]
    hint = ", not a numpy array: np.asarray makes one of it, of a 0-d array's arithmetic too"
    require(strange[0] + hint if strange else "", f"state(){how}")
    require(not_finite(state), f"state(){how} after three rounds")
    stored = load(save(state))
    require(difference(stored, state, exact=True), f"state(){how} in a safetensors file")
    with giving(f"what state(){how} returned, load_state() on a new strategy"):
        resumed.strategy.load_state(load(save(state)))
    resumed.params, resumed.rounds = run.params, run.rounds
    following = run.round(rounds[3])
    if difference(following, again.round(rounds[3]), exact=True):
        return  # the same run twice differs already, which check_deterministic is there to say
    problem = difference(resumed.round(rounds[3]), following, exact=True)
    lost = "; state() and load_state() must hand on what super() has too" if how else ""
    require(problem and problem + lost, f"load_state(){how} on a new strategy, then a round")
    require(difference(state, stored, exact=True), f"what state(){how} returned, after a further round")


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
