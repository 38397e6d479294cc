"""What the checks are made of: a strategy in a federation, round by round, and what they compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from flwr.app import ConfigRecord, Message

from fedrec_app.conformance import giving, require
from fedrec_app.privacy.budget import Budget, Unwritten, UserLevel
from fedrec_app.records import Arrays, from_record, to_record
from strategies.base import RecStrategy
from strategies.testing.nodes import PARAMS, TABLE, Answer, Nodes, asked_for, honest
from strategies.update import Update

Make = Callable[[], RecStrategy]
Check = Callable[[Make], None]


def fresh(make: Make, **settings: Any) -> RecStrategy:
    """Returns a new strategy with the kit's settings, and these on top."""
    with giving("its options"):
        strategy = make()
    own = {"seed": 0, "fraction_train": 1.0, "min_nodes": 1, "row_names": (TABLE,), "unit": "user", **settings}
    if strategy.user_level:  # rules are about what lies under the noise; tests of the mechanism are about the noise
        own["privacy"] = UserLevel(1e9, num_users=100, budget=Budget(Unwritten(), delta=1e-5))
    strategy.settings = replace(strategy.settings, **own)
    strategy.roster = None
    return strategy


def variant(make: Make, **options: Any) -> Make:
    """Returns a factory of the same strategies with other options."""

    def make_variant() -> RecStrategy:
        strategy = make()
        return type(strategy)({**strategy.options.model_dump(), **options})

    return make_variant


def takes(strategy: RecStrategy, part: Literal["aggregator", "server_optimizer"]) -> bool:
    """Returns whether the option of that name decides on the part, which the class did not settle by itself."""
    maker = f"make_{part}"
    return hasattr(strategy.options, part) and getattr(type(strategy), maker) is getattr(RecStrategy, maker)


def fresh_params() -> Arrays:
    """Returns a copy of the parameters that every run of the kit starts from."""
    return {name: array.copy() for name, array in PARAMS.items()}


class Run:
    """A strategy in a federation, round by round.

    Args:
        make: the factory.
        answers: how each node answers.
        ids: of the nodes.
        settings: fields of `Settings` that differ from what the kit uses.
    """

    def __init__(
        self, make: Make, answers: Sequence[Answer], ids: Sequence[int] | None = None, **settings: Any
    ) -> None:
        self.strategy = fresh(make, **settings)
        self.nodes = Nodes(answers, ids, self.strategy.client_part)
        self.params = fresh_params()
        self.metrics: dict[str, Any] = {}
        self.rounds = 0

    def ask(self) -> list[Message]:
        """Returns the messages of the next round."""
        self.rounds += 1
        arrays = to_record(self.params)
        with giving(f"round {self.rounds} to configure_train"):
            return list(self.strategy.configure_train(self.rounds, arrays, ConfigRecord({}), self.nodes))

    def round(self, answers: Sequence[Answer] | None = None, may_skip: bool = False) -> Arrays:
        """Returns the parameters that a round gave, and goes on with them; those from before where it was skipped.

        Args:
            answers: how the nodes answer from now on.
            may_skip: the strategy may do without this round; otherwise that breaks the rule.
        """
        self.nodes.answers = list(answers or self.nodes.answers)
        replies = self.nodes.send_and_receive(self.ask())
        with giving(
            f"{len(replies)} repl{'y' if len(replies) == 1 else 'ies'} in round {self.rounds} to aggregate_train"
        ):
            arrays, metrics = self.strategy.aggregate_train(self.rounds, replies)
        self.metrics = dict(metrics or {})
        if arrays is not None:
            self.params = from_record(arrays)
        elif not may_skip:
            require(f"no parameters came back, metrics are {self.metrics}", f"{len(replies)} replies")
        elif not self.metrics.get("skipped"):
            require("no parameters came back, and metrics do not say 'skipped'", f"{len(replies)} replies")
        return self.params

    def dropped(self) -> int:
        """Returns how many replies the last round counted as dropped."""
        return sum(int(count) for key, count in self.metrics.items() if key.startswith("dropped/"))


def as_sent(strategy: RecStrategy, update: Update) -> Update:
    """Returns a copy of an update with what this strategy asks nodes for."""
    return asked_for(update, strategy.weighting, strategy.client_part, PARAMS)


def aggregated(strategy: RecStrategy, updates: Sequence[Update], params: Arrays) -> Arrays:
    """Returns the delta that a strategy makes of updates, which are what it asks nodes for."""
    with giving(f"{len(updates)} updates to aggregate"):
        delta: Any = strategy.aggregate(iter(updates), params)
    arrays = isinstance(delta, Mapping) and all(isinstance(d, np.ndarray | np.generic) for d in delta.values())
    wanted = "a dict from parameter names to numpy arrays is expected"
    require("" if arrays else f"it is {str(delta)[:60]}: {wanted}", f"{len(updates)} updates, the result of aggregate")
    return dict(delta)


def direct(make: Make, updates: Sequence[Update]) -> Arrays:
    """Returns the parameters of a first round through `aggregate` and `server_step` alone."""
    strategy, params = fresh(make), fresh_params()
    delta = aggregated(strategy, [as_sent(strategy, update) for update in updates], params)
    with giving(f"the delta of {len(updates)} updates to server_step"):
        return strategy.server_step(params, delta, 1)


def through_flower(make: Make, updates: Sequence[Update]) -> Arrays:
    """Returns the parameters of a first round with one node an update."""
    return Run(make, [honest(update) for update in updates]).round()


WAYS = {"aggregate and server_step": direct, "aggregate_train": through_flower}
"""The two ways through a strategy."""


def difference(found: Arrays, expected: Arrays, exact: bool = False, tolerance: float = 1e-5) -> str:
    """Returns how arrays that both have differ in value, or ""; names, shapes and dtypes are another check's."""
    tolerance = 0.0 if exact else tolerance
    for name in sorted(found.keys() & expected.keys()):
        one, other = np.ravel(found[name]), np.ravel(expected[name])
        if len(one) != len(other):
            return f"{name!r} has {len(one)} values, not {len(other)}"
        wrong = np.flatnonzero(~np.isclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True))
        if len(wrong):
            return f"{name!r} is {one[wrong[0]]!s} at {wrong[0]}, not {other[wrong[0]]!s}"
    return ""


def misfit(found: Arrays, dtypes: bool = True) -> str:
    """Returns how arrays differ from the kit's parameters in names, shapes or dtypes, or ""."""
    if found.keys() != PARAMS.keys():
        return f"the names are {sorted(found)}, not {sorted(PARAMS)}"
    for name, param in PARAMS.items():
        if np.shape(found[name]) != param.shape:
            return f"{name!r} has shape {np.shape(found[name])}, not {param.shape}"
        if dtypes and found[name].dtype != param.dtype:
            return f"{name!r} is {found[name].dtype}, not {param.dtype}"
    return ""


def not_finite(arrays: Arrays) -> str:
    """Returns which array holds NaN or infinity, or ""."""
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    return f"{bad[0]!r} holds NaN or infinity" if bad else ""
