"""Strategies that each break one rule, as an author might by mistake."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedrec_app.records import ARRAYS, DELTA, METRICS, Arrays, from_record, to_record
from strategies.adaptive import Adam
from strategies.aggregators import WeightedMean
from strategies.base import RecStrategy, StrategyOptions
from strategies.fedadam import FedAdam
from strategies.update import Update


class PromotesToFloat64(RecStrategy):
    """Forgets to go back to the parameters' dtype."""

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        return {name: param + np.asarray(delta[name], dtype=np.float64) for name, param in params.items()}


class DropsAParameter(RecStrategy):
    """Returns what was trained much, and loses the rest."""

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        stepped = super().server_step(params, delta, server_round)
        return {name: array for name, array in stepped.items() if name != "bias"}


class ScalesUpdatesInPlace(RecStrategy):
    """Saves memory at the cost of whoever else holds the updates."""

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        given = list(updates)
        weight = max(sum(update.weight for update in given), 1.0)
        for update in given:
            for name in params:
                update.arrays[DELTA + name] /= weight
        return {name: sum((update.delta(name) for update in given), np.zeros(p.shape)) for name, p in params.items()}

    @property
    def weighting(self) -> Any:
        return "examples"


class StepsInPlace(RecStrategy):
    """Writes into the parameters that it was given."""

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        for name, param in params.items():
            param += delta[name].astype(param.dtype)
        return params


class StepsTheDeltaInPlace(RecStrategy):
    """Scales the mean delta where it lies."""

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        for array in delta.values():
            array *= 0.5
        return super().server_step(params, delta, server_round)


class RunningAverage(RecStrategy):
    """Lets later updates count more than earlier ones."""

    needs = "individual"
    Options = StrategyOptions

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        result = {name: np.zeros(param.shape) for name, param in params.items()}
        for update in updates:
            for name in params:
                result[name] = 0.5 * result[name] + 0.5 * update.delta(name) / max(update.weight, 1.0)
        return result


class ClipsEachNode(RecStrategy):
    """Clips what single nodes sent while it says that sums are enough."""

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        clipped = []
        for update in updates:
            mean = update.delta("table") / max(update.weight, 1.0)
            factor = min(1.0, 1.0 / max(float(np.linalg.norm(mean)), 1e-12))
            arrays = {k: a * factor if k.startswith(DELTA) else a for k, a in update.arrays.items()}
            clipped.append(replace(update, arrays=arrays))
        return super().aggregate(clipped, params)


class AveragesRowsOverTheirSenders(RecStrategy):
    """Takes a row that did not come for one that the node did not train, though others sent rows of zeros."""

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        given = list(updates)
        mean = super().aggregate(given, params)
        senders = np.zeros(len(params["table"]))
        for update in given:
            rows = update.rows("table")
            senders[... if rows is None else rows] += update.weight
        mean["table"] *= sum(update.weight for update in given) / np.maximum(senders, 1.0)[:, None]
        return mean


class _ForgetfulAdam(Adam):
    def state(self) -> Arrays:
        return {name: array for name, array in super().state().items() if not name.startswith("second/")}


class LosesHalfOfItsState(FedAdam):
    """Keeps first moments in a checkpoint and forgets second ones."""

    def make_server_optimizer(self) -> Adam:
        return _ForgetfulAdam(self.options)


class KeepsMomentsAsNumbers(FedAdam):
    """Returns numbers of 0-d arrays, which no checkpoint can keep."""

    def state(self) -> Arrays:
        return {name: array if array.ndim else array.item() for name, array in super().state().items()}  # type: ignore[misc]

    def load_state(self, state: Arrays) -> None:
        super().load_state({name: np.asarray(array) for name, array in state.items()})


class TrustsEverybody(RecStrategy):
    """Reads replies itself and checks nothing."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        updates = [
            Update(from_record(reply.content[ARRAYS]), dict(reply.content[METRICS]))  # type: ignore[arg-type]
            for reply in replies
            if reply.has_content()
        ]
        if not updates:
            return None, MetricRecord({"skipped": 1})
        return to_record(self.server_step(self._params, self.aggregate(iter(updates), self._params), 1)), MetricRecord()


class RepairsNaN(RecStrategy):
    """Makes zeros of NaN and counts the node in."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        mended = list(replies)
        for reply in mended:
            if reply.has_content():
                arrays = from_record(reply.content.array_records[ARRAYS])
                repaired = {n: np.where(np.isnan(a), 0, a).astype(a.dtype).reshape(a.shape) for n, a in arrays.items()}
                reply.content[ARRAYS] = to_record(repaired)
        return super().aggregate_train(server_round, mended)


class IgnoresWeights(RecStrategy):
    """Averages the nodes' means, however many users are behind each."""

    needs = "individual"

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        kept = [update for update in updates if update.weight > 0]
        return {n: sum((u.delta(n) / u.weight for u in kept), np.zeros(p.shape)) / max(len(kept), 1)
                for n, p in params.items()}  # fmt: skip


class Jitters(RecStrategy):
    """Scales the delta by a factor from an unseeded generator."""

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        factor = 1 + 1e-6 * np.random.default_rng().uniform(0.5, 1.0)
        return {name: delta * factor for name, delta in super().aggregate(updates, params).items()}


class DrawsNodesUnseeded(RecStrategy):
    """Draws other nodes each time."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.settings = replace(self.settings, seed=int(np.random.default_rng().integers(1 << 30)))
        return super().configure_train(server_round, arrays, config, grid)


class DrawsNodesById(RecStrategy):
    """Orders nodes by Flower's random ids before it draws."""

    def _members(self, grid: Grid) -> Any:
        return sorted(super()._members(grid), key=lambda member: member.node_id)


class AlwaysTheSameNodes(RecStrategy):
    """Forgets the round."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages = list(super().configure_train(1, arrays, config, grid))
        for message in messages:
            message.content.config_records["config"]["server-round"] = server_round
        return messages


class Drifts(RecStrategy):
    """Decays the parameters at every step and does not say so."""

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        stepped = super().server_step(params, delta, server_round)
        return {name: (0.999 * array).astype(array.dtype) for name, array in stepped.items()}


class NeedsTwo(RecStrategy):
    """Cannot stand a single node."""

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        given = list(updates)
        if len(given) == 1:
            raise IndexError("list index out of range")
        return super().aggregate(given, params)


class OverflowsAtHundred(RecStrategy):
    """Counts nodes in a byte."""

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        given, mean = list(updates), WeightedMean()
        if len(given) > 64:
            return {name: np.full(param.shape, np.inf) for name, param in params.items()}
        return mean(given, params)


class TakesAnyOption(RecStrategy):
    """Swallows options that it does not know."""

    def __init__(self, options: Any = None, *rest: Any) -> None:
        known = {k: v for k, v in dict(options or {}).items() if k in self.Options.model_fields}
        super().__init__(known, *rest)
