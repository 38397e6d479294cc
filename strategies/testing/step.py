"""Checks of the step: where it goes, and what it does with numbers that float32 cannot hold."""

from __future__ import annotations

import warnings

import numpy as np

from fedrec_app.conformance import check, giving, require
from strategies.testing.harness import Make, Run, fresh, fresh_params, misfit, not_finite, through_flower
from strategies.testing.nodes import PARAMS, drawn, honest, level, without_change

_TINY = 2.0**-6
_LARGE, _MOST = 1e30, 3e38
"""Both can be sent in float32; divided by a weight of 1/64, only the first can still be held."""


@check
def check_follows_delta(make: Make) -> None:
    """Where all nodes send the same delta, the first step does not go the other way (`follows_delta = False`: may)."""
    given = [drawn(2, weight) for weight in (1.0, 2.0, 1.0, 4.0, 2.0, 1.0)]
    # Against a round of zeros, so that decay and seeded noise do not count.
    moved, still = through_flower(make, given), through_flower(make, [without_change(u, u.weight) for u in given])
    for name in PARAMS:
        step, delta = moved[name].astype(np.float64) - still[name], given[0].delta(name)
        along = float(np.vdot(step, delta))
        opposed = along < -1e-6 * float(np.linalg.norm(step) * np.linalg.norm(delta))
        found = f"{name!r} moves the other way: a delta points where parameters are to go, it is no gradient"
        require(found if opposed else "", "the same delta from six nodes")


@check
def check_overflow(make: Make) -> None:
    """A step beyond float32 is left as it is: infinite or NaN, so that the run skips the round."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        large = Run(make, [honest(level(label, _TINY, _LARGE * _TINY)) for label in range(6)]).round(may_skip=True)
        bounded = max(float(np.abs(array).max(initial=0.0)) for array in large.values()) < _LARGE / 10
        run = Run(make, [honest(level(label, _TINY, _MOST)) for label in range(6)])
        found = run.round(may_skip=True)
        require(not_finite(found), "deltas of 2e40")
        if bounded or misfit(found):
            return  # what does not overflow, and wider numbers than parameters have, which another check finds
        why = "np.nan_to_num or a bound hides from the run that parameters are lost"
        problem = "" if run.metrics.get("skipped") else f"the round is not skipped: {why}"
        require(problem, "deltas of 2e40, which float32 cannot hold")
        delta = {name: np.full(param.shape, np.nan) for name, param in PARAMS.items()}
        with giving("a delta of NaN to server_step"):
            stepped = fresh(make).server_step(fresh_params(), delta, 1)
        hidden = [name for name, array in stepped.items() if array.size and np.isfinite(array).all()]
        require(f"{hidden[0]!r} is finite: {why}" if hidden else "", "a delta of NaN to server_step")
