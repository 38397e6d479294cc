"""RecStrategy: the contract of a strategy.

class Halve(RecStrategy):
    name = "halve"

    def aggregate(self, updates, params):
        return {name: delta / 2 for name, delta in super().aggregate(updates, params).items()}
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any, ClassVar, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log
from pydantic import BaseModel, ConfigDict

from fedrec_app.config import validate_options
from fedrec_app.records import ARRAYS, CONFIG, Arrays, Ask, Said, from_record, to_record
from fedrec_app.seeding import rng
from strategies.aggregators import WeightedMean, Weighting
from strategies.evaluation import FederatedEvaluation
from strategies.optimizers import SGD, ServerOptimizer
from strategies.rollcall import Member, Roster, messages_to, sample
from strategies.rounds import Hooks, Progress, run_rounds
from strategies.update import MAX_UNITS, Expected, Intake, Update


class StrategyOptions(BaseModel):
    """Options of a strategy; unknown ones are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MeanOptions(StrategyOptions):
    """Options of strategies that average."""

    weighting: Weighting = "examples"


@dataclass(frozen=True)
class Settings:
    """What a run tells its strategy.

    Attributes:
        seed: of the draws of nodes.
        fraction_train: share of the nodes that train in a round.
        min_nodes: a round with fewer valid updates is skipped.
        row_names: parameters with a row an item; nodes may send some of their rows alone.
        unit: whether users or pooled nodes are the units that weights refer to.
    """

    seed: int = 0
    fraction_train: float = 1.0
    min_nodes: int = 1
    row_names: tuple[str, ...] = ()
    unit: Literal["user", "node"] = "user"


class RecStrategy(Strategy):
    """Sample -> send -> validate -> aggregate -> server step.

    Override `aggregate` for a new rule, `make_server_optimizer` or `server_step` for a new step. Everything that
    comes from nodes has been validated before either sees it.

    Args:
        options: a mapping or the class's own `Options`.
        settings: see `Settings`.
        roster: the nodes of the run; None: whoever answers a roll-call that checks nothing.

    Raises:
        ConfigError: an option is unknown or out of range.
    """

    name: ClassVar[str] = ""
    summary_line: ClassVar[str] = ""
    needs: ClassVar[Literal["sums", "individual"]] = "sums"
    Options: ClassVar[type[StrategyOptions]] = MeanOptions
    one_by_one: ClassVar[bool] = True  # replies are read once, as they come; stock strategies get a list

    def __init__(
        self, options: BaseModel | dict[str, Any] | None = None, settings: Settings = Settings(),
        roster: Roster | None = None,
    ) -> None:  # fmt: skip
        given = options.model_dump() if isinstance(options, BaseModel) else dict(options or {})
        self.options: Any = validate_options(self.Options, given, f"strategy {self.name!r}")
        self.settings = settings
        self.roster = roster
        self.aggregator: Any = WeightedMean()
        self.server_optimizer = self.make_server_optimizer()
        self.evaluation = FederatedEvaluation()
        self._params: Arrays = {}
        self._asked: list[Member] = []

    # What a strategy author overrides ------------------------------------------------------------------------------

    def make_server_optimizer(self) -> ServerOptimizer:
        """Returns the optimiser that `server_step` uses; plain averaging unless overridden."""
        return SGD(1.0)

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        """Returns the delta of this round by parameter name.

        Args:
            updates: valid updates, to be read once: as they arrive, so that one is there at a time (`UpdateSum` adds
                them up such that their order leaves no trace); with `needs = "individual"` in the order of partitions.
                Below the quorum, which is known only after the last one, what is returned is thrown away.
            params: the current parameters; not to be changed.
        """
        return self.aggregator(updates, params)

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        """Returns the next parameters, shapes and dtypes kept.

        Args:
            params: the current parameters; not to be changed.
            delta: what `aggregate` returned.
            server_round: the round, from 1.
        """
        return self.server_optimizer.step(params, delta)

    def state(self) -> Arrays:
        """Returns what the next round depends on besides the parameters, by name: a checkpoint keeps it."""
        return self.server_optimizer.state()

    def load_state(self, state: Arrays) -> None:
        """Continues from what `state` returned."""
        self.server_optimizer.load_state(state)

    # Flower's contract ---------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns one message for each sampled node: the parameters, and what we ask for."""
        self._params = from_record(arrays)
        members = self._members(grid)
        size = max(self.settings.min_nodes, round(self.settings.fraction_train * len(members)), 1)
        self._asked = sample(members, size, rng(self.settings.seed, "nodes", server_round))
        ask = ConfigRecord(dict(config))
        ask[Ask.ROUND] = server_round
        ask[Ask.UPDATE] = "delta"
        ask[Ask.WEIGHTING] = self.weighting
        content = RecordDict({ARRAYS: arrays, CONFIG: ask})
        return messages_to(self._asked, content, MessageType.TRAIN, str(server_round))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns the next parameters, or None when the quorum was missed, and the metrics of the round."""
        intake = Intake(self._expected(server_round))
        before = copy.deepcopy(self.state())
        delta = self._delta(intake, replies)
        metrics = MetricRecord({f"dropped/{reason}": count for reason, count in sorted(intake.dropped.items())})
        for detail in intake.details:
            log(WARNING, "round %s: dropped a reply, %s", server_round, detail)
        if delta is None or intake.num_updates < self.settings.min_nodes:
            why = f"{intake.num_updates} valid updates, at least {self.settings.min_nodes} are needed"
            return self._skipped(server_round, why, metrics, None if delta is None else before)
        for key in (Said.NUM_USERS, Said.NUM_EXAMPLES, Said.LOSS):
            metrics[key] = math.fsum(intake.scalars[key])
        metrics[Said.LOSS] /= max(float(metrics[Said.NUM_EXAMPLES]), 1.0)  # type: ignore[arg-type]
        metrics["num-updates"] = intake.num_updates
        with np.errstate(over="ignore"):
            params = self.server_step(self._params, delta, server_round)
        if not all(np.isfinite(array).all() for array in params.values()):
            return self._skipped(server_round, "the step leaves the range of the parameters", metrics, before)
        return to_record(params), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns one message for every node: evaluation is over all users."""
        return self.evaluation.configure(server_round, arrays, config, self._members(grid))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Returns the metrics over all users who have something held out."""
        return self.evaluation.aggregate(server_round, replies)

    def summary(self) -> None:
        """Logs what is about to run."""
        log(INFO, "\t├──> %s %s", self.name or type(self).__name__, self.options.model_dump())

    def start(  # type: ignore[override]
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Any = None,
        hooks: Hooks | None = None,
        evaluate_every: int = 1,
    ) -> Progress:
        """Runs the rounds; see `strategies.rounds.run_rounds`. `evaluate_fn` is Flower's evaluation on the server."""
        return run_rounds(
            self, grid, initial_arrays, num_rounds=num_rounds, timeout=timeout, train_config=train_config,
            evaluate_config=evaluate_config, evaluate_fn=evaluate_fn, hooks=hooks, evaluate_every=evaluate_every,
        )  # fmt: skip

    # -----------------------------------------------------------------------------------------------------------------

    @property
    def weighting(self) -> Weighting:
        """How nodes weight their units: the option of that name, or by examples."""
        return getattr(self.options, "weighting", "examples")

    def _members(self, grid: Grid) -> list[Member]:
        if self.roster is None:
            self.roster = Roster("", "")
        self.roster.refresh(grid)
        return self.roster.partitions()

    def _delta(self, intake: Intake, replies: Iterable[Message]) -> Arrays | None:
        """Returns what `aggregate` makes of the valid updates, or None where there are none, or too few to collect."""
        updates = intake.updates(replies)
        if self.needs == "individual":
            ordered = sorted(updates, key=lambda update: update.partition_id)
            enough = len(ordered) >= max(self.settings.min_nodes, 1)
            return self.aggregate(iter(ordered), self._params) if enough else None
        first = list(itertools.islice(updates, 1))
        if not first:
            return None
        delta = self.aggregate(_after(first, updates), self._params)
        for _ in updates:
            pass  # replies that the rule did not look at count as well
        return delta

    def _skipped(
        self, server_round: int, why: str, metrics: MetricRecord, state: Arrays | None
    ) -> tuple[None, MetricRecord]:
        log(WARNING, "round %s skipped: %s", server_round, why)
        if state is not None:
            self.load_state(state)
        metrics["skipped"] = 1
        return None, metrics

    def _expected(self, server_round: int) -> Expected:
        def most(member: Member) -> float:
            if self.weighting == "examples":
                return member.num_examples
            return 1 if self.weighting == "uniform" and self.settings.unit == "node" else member.num_users

        return Expected(
            self._params,
            self.settings.row_names,
            self.weighting == "rows",
            server_round,
            {member.node_id: member.partition_id for member in self._asked},
            {member.node_id: min(most(member), MAX_UNITS) for member in self._asked},
        )


def _after(first: list[Update], rest: Iterable[Update]) -> Iterator[Update]:
    """Yields what the list holds, and takes it out, before the rest: no update stays when it has been used."""
    yield first.pop()
    yield from rest
