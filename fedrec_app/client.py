"""RecommenderClient: a node's side of a round, as a Flower NumPyClient.

A NumPyClient's `fit` knows lists and not names, so the bridge in `client_app` passes `config["arrays-in"]` and
reads `metrics["arrays-out"]`, JSON lists of names. Asked for nothing special the client returns parameters, as
every stock Flower strategy expects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.client import NumPyClient
from numpy.typing import NDArray
from safetensors.numpy import save

from fedrec_app import __version__, node_data
from fedrec_app.config import RunConfig
from fedrec_app.data.cohort import Cohort, Part
from fedrec_app.errors import ConfigError, FedrecError, unknown
from fedrec_app.evaluation.evaluate import evaluate_cohort
from fedrec_app.evaluation.metrics import finalise
from fedrec_app.evaluation.sums import MetricSums
from fedrec_app.models.base import Recommender, initialise, model_hash
from fedrec_app.models.registry import make_model
from fedrec_app.private_state import PrivateState
from fedrec_app.records import COUNT, DELTA, EVAL, STAT, Arrays, Ask, Said
from fedrec_app.training.node import fit_node
from fedrec_app.training.plan import FitPlan, FitSums
from fedrec_app.training.private_rows import with_optimizer_state
from fedrec_app.training.serving import scorer
from fedrec_app.training.users import fit_users

ARRAYS_IN, ARRAYS_OUT, ARRAYS_BYTES = "arrays-in", "arrays-out", "arrays-bytes"


@dataclass(frozen=True)
class Node:
    """Where this client runs.

    Attributes:
        partition_id: which part of the users it holds.
        num_partitions: how many parts there are.
        state_dir: where private state is kept.
        durable: whether private state must survive a power cut.
    """

    partition_id: int
    num_partitions: int
    state_dir: Path
    durable: bool = True


class RecommenderClient(NumPyClient):
    """The users of one node.

    Args:
        config: of the run, with every "auto" resolved.
        node: where this client runs.
    """

    def __init__(self, config: RunConfig, node: Node) -> None:
        self.config = config
        self.node = node
        self.cohort: Cohort = node_data.cohort(self.config.data, node.partition_id, node.num_partitions)
        self.catalog = node_data.prepared(self.config.data).dataset.catalog
        self.model: Recommender = make_model(self.config.model)
        if self.model.couples_users and self.config.train.unit == "user":
            raise ConfigError(
                f'model {self.config.model.name!r} couples users, so it needs train.unit = "node", not "user"'
            )
        initialise(self.model, self.catalog, self.cohort, self.config.seed)

    def get_properties(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns who this node is: its partition, its numbers of users and examples, and what it holds.

        Statistics that are asked for come along ("stat/item-counts": (num_items,) training interactions of each
        item) unless the cohort is smaller than `privacy.min-cohort`.
        """
        properties: dict[str, Any] = {
            Said.PARTITION: self.node.partition_id,
            "num-partitions": self.node.num_partitions,
            Said.NUM_USERS: int((self.cohort.train.lengths > 0).sum()),
            Said.NUM_EXAMPLES: len(self.cohort.train.items),
            Said.CATALOG: self.catalog.hash,
            Said.MODEL: model_hash(self.model),
            Said.COHORT_SIZE: len(self.cohort),
            Said.QUARANTINED: self._quarantine(),
            Said.VERSION: __version__,
        }
        asked = [name for name in str(config.get(Ask.STATISTICS, "")).split(",") if name]
        if bad := [name for name in asked if name != "item-counts"]:
            raise FedrecError(unknown("statistic", bad[0], ["item-counts"]))
        users = properties[Said.NUM_USERS]
        if asked and (users == 0 or users >= self.config.privacy.min_cohort):
            counts = np.bincount(self.cohort.train.items, minlength=len(self.catalog)).astype(np.int64)
            properties[ARRAYS_BYTES] = save({STAT + "item-counts": counts})
        return properties

    def _quarantine(self) -> int:
        """Returns how many rows of the node's data were set aside; which ones, and why, is written beside its state."""
        quarantine = node_data.prepared(self.config.data).dataset.quarantine
        if len(quarantine):
            self.node.state_dir.mkdir(parents=True, exist_ok=True)
            quarantine.write(self.node.state_dir / f"quarantine-{self.node.partition_id}.csv")
        return len(quarantine)

    def get_parameters(self, config: Mapping[str, Any]) -> list[NDArray]:
        """Returns the shared parameters that a run with this seed starts from."""
        return [self.model.get_parameter(name).detach().numpy() for name in self.model.shared_names()]

    def fit(self, parameters: list[NDArray], config: Mapping[str, Any]) -> tuple[list[NDArray], int, dict[str, Any]]:
        """Returns what training gave: arrays, the number of examples, and metrics with the arrays' names.

        Args:
            parameters: shared parameters, in the order of `config["arrays-in"]` (the model's order without it).
            config: keys of `records.Ask`; with `update = "delta"` weighted sums of deltas come back, else parameters.

        Raises:
            FedrecError: the parameters do not fit the model.
        """
        shared = self._shared(parameters, config)
        server_round = int(config.get(Ask.ROUND, 1))
        wants_delta = config.get(Ask.UPDATE) == "delta"
        plan = replace(
            FitPlan.of(self.config.train, self.config.seed, server_round),
            weighting=str(config.get(Ask.WEIGHTING, "examples")),
            proximal_mu=float(config.get(Ask.PROXIMAL_MU, 0.0)),
        )
        rows, state, keys = self._private(config, server_round - 1)
        if plan.unit == "user":
            sums = fit_users(self.model, self.cohort, shared, rows, plan)
        else:
            sums = fit_node(self.model, self.cohort, shared, rows, plan, self.node.partition_id)
        if rows and not self.model.solves_private:
            state.save(server_round, keys, rows, keep=[int(config.get(Ask.KEEP_ROUND, 0))])
        arrays = _deltas(sums) if wants_delta else _parameters(shared, sums)
        metrics: dict[str, Any] = {
            Said.NUM_EXAMPLES: int(sums.num_examples),
            Said.NUM_USERS: int(sums.num_users),
            Said.WEIGHT: float(sums.weight),
            # A stock strategy averages this by examples; ours adds it up.
            Said.LOSS: float(sums.loss if wants_delta else sums.loss / max(sums.num_examples, 1)),
            Said.ROUND: server_round,
            ARRAYS_OUT: json.dumps(list(arrays)),
        }
        return list(arrays.values()), int(sums.num_examples), metrics

    def evaluate(self, parameters: list[NDArray], config: Mapping[str, Any]) -> tuple[float, int, dict[str, Any]]:
        """Returns (1 - NDCG@10, number of users evaluated, metrics): means, or with `sums` the sums as "arrays-bytes".

        Args:
            parameters: shared parameters, in the order of `config["arrays-in"]`.
            config: keys of `records.Ask`: which part is predicted, with the private state of which round.
        """
        shared = self._shared(parameters, config)
        part: Part = "test" if config.get(Ask.PART) == "test" else "validation"
        server_round = int(config.get(Ask.ROUND, 1))
        rows, _, _ = self._private(config, int(config.get(Ask.PRIVATE_ROUND, server_round)))
        sums = self._judge(shared, rows, part, self._bootstrap(config), server_round)
        means = finalise(sums)
        numbers = {name: value for name, value in means.items() if isinstance(value, (int, float))}
        loss = 1.0 - float(numbers.get(self.config.evaluate.metric, 0.0))
        if config.get(Ask.SUMS):
            arrays = {EVAL + name: array for name, array in sums.to_arrays().items()}
            return loss, sums.num_users, {Said.ROUND: server_round, ARRAYS_BYTES: save(arrays)}
        return loss, sums.num_users, {name: float(value) for name, value in numbers.items()}

    def _bootstrap(self, config: Mapping[str, Any]) -> int:
        """Returns how many bootstrap rows are computed: all that the run's own settings allow, or none."""
        return self.config.evaluate.bootstrap if int(config.get(Ask.BOOTSTRAP, 0)) > 0 else 0

    def _judge(self, shared: Arrays, rows: Arrays, part: Part, num_bootstrap: int, server_round: int) -> MetricSums:
        past = self.cohort.before(part)
        users = np.flatnonzero(self.cohort.held_out(part).lengths > 0)
        plan, epochs = (
            FitPlan.of(self.config.train, self.config.seed, server_round),
            int(self.config.evaluate.fold_in_epochs),
        )
        score_block = scorer(self.model, shared, rows, past, users, plan, epochs, f"fold-in-{part}")
        drawn = node_data.candidates(self.config.data, self.node.partition_id, self.node.num_partitions, num_bootstrap)
        return evaluate_cohort(
            score_block, self.cohort, part, self.config.evaluate.ks, self.config.data.seed, num_bootstrap,
            candidates=drawn,
        )  # fmt: skip

    def _shared(self, parameters: list[NDArray], config: Mapping[str, Any]) -> Arrays:
        names = json.loads(config[ARRAYS_IN]) if ARRAYS_IN in config else self.model.shared_names()
        received = dict(zip(names, parameters, strict=True))
        for name in self.model.shared_names():
            if name not in received:
                raise FedrecError(f"the message has no parameter {name!r}: it has {', '.join(sorted(received))}")
            expected = tuple(self.model.get_parameter(name).shape)
            if received[name].shape != expected:
                raise FedrecError(f"parameter {name!r} has shape {received[name].shape}, the model's is {expected}")
        return {name: np.ascontiguousarray(received[name], dtype=np.float32) for name in self.model.shared_names()}

    def _private(self, config: Mapping[str, Any], at_round: int) -> tuple[Arrays, PrivateState, NDArray[np.uint64]]:
        state = PrivateState(
            self.node.state_dir, str(config.get(Ask.LINEAGE, "default")), self.node.partition_id, self.node.durable
        )
        keys = self.cohort.keys
        if not self.model.private_names():
            return {}, state, keys
        initial = {n: self.model.get_parameter(n).detach().numpy().copy() for n in self.model.private_names()}
        rows = state.load(at_round, keys, initial)
        return with_optimizer_state(rows, str(self.config.train.optimizer)), state, keys


def _deltas(sums: FitSums) -> Arrays:
    arrays = {DELTA + name: array for name, array in sums.delta.items()}
    arrays.update({COUNT + name: array for name, array in sums.count.items()})
    return _as_float32(arrays)


def _parameters(shared: Arrays, sums: FitSums) -> Arrays:
    weight = sums.weight if sums.weight > 0 else 1.0
    return _as_float32({name: shared[name] + delta / weight for name, delta in sums.delta.items()})


def _as_float32(arrays: Arrays) -> Arrays:
    with np.errstate(over="ignore"):  # a model that diverged: the server drops what is not finite, and says so
        return {name: array.astype(np.float32) for name, array in arrays.items()}
