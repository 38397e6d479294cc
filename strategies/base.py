"""RecStrategy: the contract of a strategy.

class Halve(RecStrategy):
    name = "halve"
    api_version = 1

    def aggregate(self, updates, params):
        return {name: delta / 2 for name, delta in super().aggregate(updates, params).items()}
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging import INFO, WARNING
from typing import Any, ClassVar, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log
from pydantic import BaseModel

from fedrec_app.client_part import ClientPart
from fedrec_app.config import validate_options
from fedrec_app.records import ARRAYS, CONFIG, CONTROL, Arrays, Ask, Said, from_record, to_record
from fedrec_app.seeding import rng
from strategies.aggregators import Aggregator
from strategies.compose import make_aggregator, make_server_optimizer
from strategies.evaluation import FederatedEvaluation
from strategies.memory import MemoryRounds
from strategies.optimizers import ServerOptimizer
from strategies.options import MeanOptions, StrategyOptions, Weighting
from strategies.rollcall import Member, Roster, messages_to, sample
from strategies.rounds import Exchange, Hooks, Progress, run_rounds
from strategies.settings import Settings
from strategies.step import by_name, scaled
from strategies.update import MAX_UNITS, Expected, Intake, Update


class RecStrategy(Strategy):
    """Sample -> send -> validate -> aggregate -> server step.

    Override `aggregate` for a new rule, `make_server_optimizer` or `server_step` for a new step, and name a
    `client_part` for what is new on the nodes. Everything that comes from nodes has been validated before any of them
    sees it.

    Args:
        options: a mapping or the class's own `Options`.
        settings: see `Settings`.
        roster: the nodes of the run; None: whoever answers a roll-call that checks nothing.

    Attributes:
        name, summary_line: what lists show.
        needs: "sums": any grouping of the same users gives the same; "individual": each node's update by itself.
        Options: schema of the options.
        weighted: a weight of 3 counts like three units of weight 1; as the aggregator says, unless the class says.
        zero_is_identity: nodes that changed nothing leave the parameters as they are in a first round.
        follows_delta: where all nodes send the same delta, the first step does not go the other way.
        depends_on_arrival: a round aggregates those updates that come first; such a strategy has an `exchange` of its
            own.
        client_part: what changes in local training.
        user_level: it adds the noise of user-level differential privacy itself; any other strategy is refused with
            `privacy.unit = "user"`.
        api_version: the `API_VERSION` that a plug-in was written for.

    Raises:
        ConfigError: an option is unknown or out of range.
    """

    name: ClassVar[str] = ""
    summary_line: ClassVar[str] = ""
    needs: Literal["sums", "individual"] = "sums"
    weighted: bool | None = None
    zero_is_identity: ClassVar[bool] = True
    follows_delta: ClassVar[bool] = True
    depends_on_arrival: ClassVar[bool] = False
    Options: ClassVar[type[StrategyOptions]] = MeanOptions
    client_part: ClassVar[type[ClientPart] | None] = None
    user_level: ClassVar[bool] = False
    api_version: ClassVar[int | None] = None
    one_by_one: ClassVar[bool] = True  # replies are read once, as they come; stock strategies get a list

    def __init__(
        self, options: BaseModel | dict[str, Any] | None = None, settings: Settings = Settings(),
        roster: Roster | None = None,
    ) -> None:  # fmt: skip
        given = options.model_dump() if isinstance(options, BaseModel) else dict(options or {})
        self.options: Any = validate_options(self.Options, given, f"strategy {self.name!r}")
        self.settings = settings
        self.roster = roster
        self.aggregator = self.make_aggregator()
        self.server_optimizer = self.make_server_optimizer()
        if self.needs == "sums":
            self.needs = self.aggregator.needs
        if self.weighted is None:
            self.weighted = self.aggregator.weighted
        self.evaluation = FederatedEvaluation()
        self._params: Arrays = {}
        self.rejected: dict[int, str] = {}  # of the last round: partition -> why its reply was dropped
        self._asked: list[Member] = []
        self._memory_rounds = MemoryRounds()

    # What a strategy author overrides ------------------------------------------------------------------------------

    def make_aggregator(self) -> Aggregator:
        """Returns the rule that `aggregate` uses: the option `aggregator`, else the weighted mean."""
        return make_aggregator(getattr(self.options, "aggregator", "mean"))

    def make_server_optimizer(self) -> ServerOptimizer:
        """Returns the optimiser that `server_step` uses: the option `server_optimizer`, else plain averaging."""
        return make_server_optimizer(getattr(self.options, "server_optimizer", "sgd"))

    def problem(self, num_nodes: int | None) -> str:
        """Returns why these options make no sense in this run, or "": such a run is refused before it starts.

        Args:
            num_nodes: how many nodes train in a round; None while nobody knows.
        """
        if self._remembers() and self.settings.unit != "node":
            return 'a user has no memory of earlier rounds: set train.unit="node"'
        if self.client_part is not None and self.client_part.sgd_only and self.settings.local_optimizer != "sgd":
            return f'it is derived for local SGD, not for {self.settings.local_optimizer!r}: set train.optimizer="sgd"'
        if self.weighting == "rows" and not self.aggregator.counts_rows:
            return f"weighting 'rows' counts who trained a row, which aggregator {self.aggregator.name!r} does not use"
        return "" if num_nodes is None else self.aggregator.problem(num_nodes)

    def stops(self, server_round: int) -> str:
        """Returns why this round and all later ones must not take place, or ""."""
        return ""

    def ask(self) -> dict[str, bool | int | float | str]:
        """Returns what the nodes are told besides what every strategy tells them, by the keys of `records.Ask`."""
        return {}

    def controls(self) -> Arrays:
        """Returns arrays that go to the nodes beside the parameters, by parameter name; see `ClientPart`."""
        return {}

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        """Returns the delta of this round by parameter name.

        Args:
            updates: valid updates, to be read once: as they arrive, so that one is there at a time (`UpdateSum` adds
                them up such that their order leaves no trace); with `needs = "individual"` in the order of partitions.
                Below the quorum, which is known only after the last one, what is returned is thrown away.
            params: the current parameters; not to be changed.
        """
        return self.aggregator(updates, params, self.settings.row_names)

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        """Returns the next parameters, shapes and dtypes kept; `strategy.schedule` scales the step that this takes.

        Args:
            params: the current parameters; not to be changed.
            delta: what `aggregate` returned.
            server_round: the round, from 1.
        """
        return self.server_optimizer.step(params, delta)

    def serve(self, arrays: ArrayRecord) -> ArrayRecord:
        """Returns the parameters as they are judged and released; training goes on from those given. What overrides
        this looks at the parameters alone, so that it costs no privacy."""
        if type(self.server_optimizer).serve is ServerOptimizer.serve:
            return arrays
        return to_record(self.server_optimizer.serve(from_record(arrays)))

    def state(self) -> Arrays:
        """Returns what the next round depends on besides the parameters, by name: a checkpoint keeps it.

        What overrides this adds to what it returns, and hands that back to `load_state`.
        """
        return {**self.server_optimizer.state(), **self._memory_rounds.state()}

    def load_state(self, state: Arrays) -> None:
        """Continues from what `state` returned."""
        self.server_optimizer.load_state(self._memory_rounds.load_state(state))

    # Flower's contract ---------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns one message for each sampled node: the parameters, and what we ask for."""
        self._params = from_record(arrays)
        members = self._members(grid)
        self._asked = self._choose(members, server_round)
        ask = ConfigRecord(dict(config))
        ask[Ask.ROUND] = server_round
        ask[Ask.UPDATE] = "delta"
        ask[Ask.WEIGHTING] = self.weighting
        for key, value in self.ask().items():
            ask[key] = value
        if controls := self.controls():
            arrays = to_record({**self._params, **{CONTROL + name: array for name, array in controls.items()}})
        content = RecordDict({ARRAYS: arrays, CONFIG: ask})
        messages = messages_to(self._asked, content, MessageType.TRAIN, str(server_round))
        if self._remembers():
            self._memory_rounds.tell(messages, self._asked)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns the next parameters, or None when the quorum was missed, and the metrics of the round."""
        intake = Intake(self._expected(server_round))
        before, self.rejected = copy.deepcopy(self.state()), intake.rejected
        with self._restoring(before):
            delta = self._delta(intake, replies)
        metrics = MetricRecord({f"dropped/{reason}": count for reason, count in sorted(intake.dropped.items())})
        for detail in intake.details:
            log(WARNING, "round %s: dropped a reply, %s", server_round, detail)
        if why := self._too_few(intake):
            return self._skipped(server_round, why, metrics, before)
        for key in (Said.NUM_USERS, Said.NUM_EXAMPLES, Said.LOSS):
            metrics[key] = math.fsum(intake.scalars[key])
        metrics[Said.LOSS] /= max(float(metrics[Said.NUM_EXAMPLES]), 1.0)  # type: ignore[arg-type]
        metrics["num-updates"] = len(intake.partitions)
        with self._restoring(before), np.errstate(over="ignore"):
            origin, factor = type(self).__name__, self.settings.schedule.factor(server_round, self.settings.num_rounds)
            delta = by_name(delta, self._params, f"{origin}.aggregate")
            params = by_name(self.server_step(self._params, delta, server_round), self._params, f"{origin}.server_step")
            params = scaled(self._params, params, factor)
        if not all(np.isfinite(array).all() for array in params.values()):
            return self._skipped(server_round, "the step leaves the range of the parameters", metrics, before)
        if self._remembers():
            self._memory_rounds.use(intake.partitions, server_round)
        return to_record(params), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns one message for every node: evaluation is over all users."""
        return self.evaluation.configure(server_round, arrays, config, self._members(grid))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Returns the metrics over all users who have something held out."""
        return self.evaluation.aggregate(server_round, replies)

    def exchange(self, grid: Grid, messages: Iterable[Message], timeout: float) -> Exchange:
        """Returns the messages of a round on their way; `aggregate_train` reads the replies."""
        return Exchange(grid, messages, timeout)

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

    @property
    def members(self) -> list[Member]:
        """The nodes of the run, in the order of partitions."""
        return [] if self.roster is None else self.roster.partitions()

    def expected_weight(self, member: Member) -> float:
        """Returns the weight of a node's update when all its users train."""
        if self.weighting == "examples":
            return member.num_examples
        return 1 if self.weighting == "uniform" and self.settings.unit == "node" else member.num_users

    def nodes_a_round(self) -> int | None:
        """Returns how many nodes train in a round, or None while nobody knows."""
        return None if self.roster is None else self._sample_size(len(self.roster.members))

    def _sample_size(self, num_members: int) -> int:
        return min(max(self.settings.min_nodes, round(self.settings.fraction_train * num_members), 1), num_members)

    def _remembers(self) -> bool:
        return self.client_part is not None and self.client_part.remembers()

    def _members(self, grid: Grid) -> list[Member]:
        if self.roster is None:
            self.roster = Roster("", "")
        self.roster.gather(grid, self.settings.min_nodes)
        return self.roster.partitions()

    def _choose(self, members: list[Member], server_round: int) -> list[Member]:
        """Returns who is asked to train, in the order of partitions."""
        return sample(members, self._sample_size(len(members)), rng(self.settings.seed, "nodes", server_round))

    def _take(self, updates: Iterator[Update]) -> Iterator[Update]:
        """Returns those of the valid updates that this round aggregates."""
        return updates

    def _delta(self, intake: Intake, replies: Iterable[Message]) -> Arrays | None:
        """Returns what `aggregate` makes of the valid updates, or None where there are none, or too few to collect."""
        updates = self._take(intake.updates(replies))
        if self.needs == "individual":
            ordered = sorted(updates, key=lambda update: update.partition_id)
            return None if self._too_few(intake) else self.aggregate(iter(ordered), self._params)
        first = list(itertools.islice(updates, 1))
        if not first:
            return None
        delta = self.aggregate(_after(first, updates), self._params)
        for _ in updates:
            pass  # replies that the rule did not look at count as well
        return delta

    @contextmanager
    def _restoring(self, state: Arrays) -> Iterator[None]:
        """Whatever is raised inside leaves the strategy as it was."""
        try:
            yield
        except Exception:
            self.load_state(state)
            raise

    def _too_few(self, intake: Intake) -> str:
        """Returns why these replies are not enough for a step, or ""."""
        least = max(self.settings.min_nodes, 1)
        if len(intake.partitions) < least:
            return f"{len(intake.partitions)} valid updates, at least {least} are needed"
        counting = sum(weight > 0 for weight in intake.scalars[Said.WEIGHT])
        return self.aggregator.too_few(counting) if self.needs == "individual" else ""

    def _skipped(self, server_round: int, why: str, metrics: MetricRecord, state: Arrays) -> tuple[None, MetricRecord]:
        log(WARNING, "round %s skipped: %s", server_round, why)
        self.load_state(state)
        metrics["skipped"] = 1
        return None, metrics

    def _expected(self, server_round: int) -> Expected:
        return Expected(
            self._params,
            self.settings.row_names,
            self.weighting == "rows",
            server_round,
            {member.node_id: member.partition_id for member in self._asked},
            {member.node_id: min(self.expected_weight(member), MAX_UNITS) for member in self._asked},
            scalars=self.client_part.scalars if self.client_part else (),
            controls=self.client_part is not None and self.client_part.has_controls,
        )


def _after(first: list[Update], rest: Iterable[Update]) -> Iterator[Update]:
    """Yields what the list holds, and takes it out, before the rest: no update stays when it has been used."""
    yield first.pop()
    yield from rest
