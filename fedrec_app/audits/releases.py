"""The run's own strategy, asked for one release after another of what one node sends."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fedrec_app.audits.claim import Claim
from fedrec_app.config import RunConfig
from fedrec_app.errors import FedrecError
from fedrec_app.models.base import Recommender
from fedrec_app.privacy.budget import Budget, UserLevel
from fedrec_app.privacy.events import Gaussian
from fedrec_app.records import CONFIG, DELTA, Arrays, Ask, Said, from_record, to_record
from fedrec_app.run_strategy import strategy_of
from strategies.base import RecStrategy
from strategies.optimizers import SGD
from strategies.rollcall import Member, Roster
from strategies.testing.nodes import Nodes, enter_run, reply_to

_NODE = 1


class _Forgetful:
    """A book that is charged and forgets: an audit is no run, and its charges are nobody's."""

    events: Sequence[Gaussian] = ()

    def charge(self, event: Gaussian, what: Mapping[str, Any]) -> None:
        """Does nothing."""


class _Here(Roster):
    """A roster whose one node is there without being asked."""

    def refresh(self, grid: Grid) -> None:
        """Does nothing."""


class Releases:
    """Releases of a strategy with the settings of a run, each from the same start, and each made anew.

    A release goes all the way from the node's reply to the next parameters. The parameters are zero and the step is
    plain, so that what comes out is the released mean itself: what a server optimiser makes of it costs nothing.

    Args:
        strategy: of `audited_strategy`.
        claim: of the run.
        shapes: shape of each shared parameter.

    Attributes:
        clip_norm: C that the strategy asks nodes for.
    """

    def __init__(self, strategy: RecStrategy, claim: Claim, shapes: Mapping[str, tuple[int, ...]]) -> None:
        enter_run()
        self.claim, self.shapes = claim, dict(shapes)
        self._strategy = strategy
        self._params = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
        self._start = copy.deepcopy(strategy.state())
        grid = Nodes([])  # it has no node to send to: the audit answers in its place
        (self._message,) = strategy.configure_train(1, to_record(self._params), ConfigRecord({}), grid)
        asked = self._message.content.config_records[CONFIG]
        self.clip_norm = float(asked[Ask.CLIP_NORM])  # type: ignore[arg-type]
        self._counts = bool(asked.get(Ask.COUNT_UNCLIPPED))

    @property
    def expected(self) -> float:
        """q N, what a release divides sums by."""
        return self.claim.rounds.sampling_rate * self.claim.users

    def reply(self, sums: Arrays, users: int, centred: float = 0.0) -> Message:
        """Returns what the node sends: sums over its users, and more than an honest node would tell of them, which
        must make no difference.

        Args:
            sums: of deltas by shared parameter.
            users: who took part.
            centred: see `records.Said.CENTRED`.
        """
        said: dict[str, Any] = {
            Said.ROUND: 1, Said.NUM_USERS: users, Said.NUM_EXAMPLES: 10 * users, Said.WEIGHT: float(users),
            Said.LOSS: 0.0, **({Said.CENTRED: centred} if self._counts else {}),
        }  # fmt: skip
        arrays = {DELTA + name: array.astype(np.float32) for name, array in sums.items()}
        return reply_to(self._message, arrays, said)

    def of(self, reply: Message) -> Arrays:
        """Returns one release: the mean by shared parameter.

        Raises:
            FedrecError: the strategy released nothing.
        """
        self._strategy.load_state(copy.deepcopy(self._start))
        arrays, metrics = self._strategy.aggregate_train(1, iter([reply]))
        if not isinstance(arrays, ArrayRecord):
            raise FedrecError(f"strategy {self._strategy.name!r} released nothing in the audit: {dict(metrics or {})}")
        return from_record(arrays)


def audited_strategy(config: RunConfig, claim: Claim, model: Recommender) -> RecStrategy:
    """Returns the strategy of a run as the audit uses it: its own bound, noise, sampling rate and number of users, with
    one node that holds them all, a plain step, and nothing written down.

    Args:
        config: resolved, with `privacy.unit = "user"`.
        claim: of the run.
        model: of the run, bound.

    Raises:
        ConfigError: the strategy makes no sense in this run.
    """
    plain = config.strategy.model_copy(update={"min_nodes": 1, "schedule": "constant"})
    level = UserLevel(
        claim.clip_norm, claim.rounds.noise_multiplier, claim.rounds.sampling_rate, claim.users,
        Budget(_Forgetful(), claim.delta),
    )  # fmt: skip
    roster = _Here("", "", members={_NODE: Member(_NODE, 0, 1, claim.users, 0)})
    strategy = strategy_of(config.model_copy(update={"strategy": plain}), model, roster, level)
    if not isinstance(strategy, RecStrategy):
        raise FedrecError(f"strategy {config.strategy.name!r} is not of this package and cannot be audited")
    strategy.server_optimizer = SGD()
    return strategy
