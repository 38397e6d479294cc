"""RecommenderClient: a node's side of a round, as a Flower NumPyClient.

A NumPyClient's `fit` knows lists and not names, so the bridge in `client_app` passes `config["arrays-in"]` and
reads `metrics["arrays-out"]`, JSON lists of names. Asked for nothing special the client returns parameters, as
every stock Flower strategy expects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from logging import WARNING
from typing import Any

import numpy as np
from flwr.client import NumPyClient
from flwr.supercore import log
from numpy.typing import NDArray

from fedrec_app import __version__, node_data, outgoing
from fedrec_app.base_transfer import BaseStore
from fedrec_app.client_part import ClientPart
from fedrec_app.config import RunConfig, parse_options, validate_options
from fedrec_app.data.cohort import Cohort, Part
from fedrec_app.errors import FedrecError, unknown
from fedrec_app.evaluation.evaluate import evaluate_cohort
from fedrec_app.evaluation.metrics import finalise
from fedrec_app.evaluation.sums import MetricSums
from fedrec_app.models.adapted import Adapted, Base
from fedrec_app.models.base import Recommender, model_hash
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.node_settings import NodeSettings, OwnData
from fedrec_app.part_memory import PartMemory
from fedrec_app.privacy.node_accountant import NodeAccountant
from fedrec_app.private_fit import example_release, released, require_releasable, user_level, withheld
from fedrec_app.private_state import Parent, PrivateState, inherited
from fedrec_app.records import CONTROL, SCHEMA, STAT, Arrays, Ask, Said
from fedrec_app.training.example_level import fit_examples
from fedrec_app.training.node import fit_node
from fedrec_app.training.plan import FitPlan, FitSums
from fedrec_app.training.private_rows import with_optimizer_state
from fedrec_app.training.serving import scorer
from fedrec_app.training.users import fit_users
from strategies.base import RecStrategy
from strategies.registry import strategy_class

ARRAYS_IN, ARRAYS_OUT = "arrays-in", "arrays-out"


class RecommenderClient(NumPyClient):
    """The users of one node.

    Args:
        config: of the run as it holds on this node, with every "auto" resolved.
        node: what its operator told it.
    """

    def __init__(self, config: RunConfig, node: NodeSettings) -> None:
        self.config = config
        self.node = node
        self._kept = node_data.node_data(config, node.partition_id, node.num_partitions)
        self.cohort: Cohort = self._kept.cohort
        self.model: Recommender = self._kept.skeleton
        self._bases = BaseStore(node.state_dir, node.durable)

    def get_properties(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns who this node is: its partition, its numbers of users and examples, and what it holds."""
        return {
            Said.PARTITION: self.node.partition_id,
            "num-partitions": self.node.num_partitions,
            Said.NUM_USERS: int((self.cohort.train.lengths > 0).sum()),
            Said.NUM_EXAMPLES: 0 if self._private else len(self.cohort.train.items),
            Said.CATALOG: self._catalog_hash,
            Said.MODEL: model_hash(self.model),
            Said.COHORT_SIZE: len(self.cohort),
            Said.QUARANTINED: self._quarantine() * (not self._private),
            Said.VERSION: __version__,
            Said.SCHEMA: SCHEMA,
            **({Ask.BASE_HASH: base.digest} if (base := self._base(config)) else {}),
        }

    @property
    def _catalog_hash(self) -> str:
        return node_data.prepared(self.config.data).dataset.catalog.hash

    def require_catalog(self, asked: str) -> None:
        """Raises FedrecError where a message is about another catalog than this node has: rows would not be items.

        Args:
            asked: hash of the run's catalog; "" where the message does not say it.
        """
        if asked and asked != self._catalog_hash:
            raise FedrecError(f"this node's catalog is {self._catalog_hash[:12]}, the run's is {asked[:12]}")

    def keep_base(self, arrays: Arrays, config: Mapping[str, Any]) -> None:
        """Keeps the base of an adapted model that came with a roll-call.

        Raises:
            FedrecError: it is not one of this run's model, or not the one that `config` names.
        """
        if not isinstance(self.model, Adapted):
            raise FedrecError(f"a base was sent, and model {self.model.name!r} of this run has no adapters")
        self._bases.keep(arrays, str(config.get(Ask.BASE_HASH, "")), node_data.seeded_base(self.config))

    def _base(self, config: Mapping[str, Any]) -> Base | None:
        """Returns the base that a message names, or that of the seed where none is named and the run starts from it;
        None where the node does not have it, or the model is not adapted."""
        if not isinstance(self.model, Adapted):
            return None
        own = node_data.seeded_base(self.config)
        return self._bases.find(str(config.get(Ask.BASE_HASH, "" if self._starts_elsewhere else own.digest)), own)

    @property
    def _starts_elsewhere(self) -> bool:
        return bool(self.config.model.init_from or self.config.checkpoint.continue_from)

    def _model(self, shared: Arrays, rows: Arrays, config: Mapping[str, Any]) -> Recommender:
        """Returns the model of a message, to be written to."""
        base = self._base(config)
        if base is None and isinstance(self.model, Adapted):
            raise FedrecError(f"this node does not have base {str(config[Ask.BASE_HASH])[:12]} of the adapters")
        return self._kept.model(shared, rows, base)

    def statistics(self, config: Mapping[str, Any]) -> Arrays:
        """Returns the additive statistics that are asked for, none where fewer users than `privacy.min-cohort` train
        or where privacy is asked for.

        "stat/item-counts": (num_items,) training interactions of each item.

        Args:
            config: keys of `records.Ask`.

        Raises:
            FedrecError: there is no such statistic.
        """
        asked = [name for name in str(config.get(Ask.STATISTICS, "")).split(",") if name]
        if bad := [name for name in asked if name != "item-counts"]:
            raise FedrecError(unknown("statistic", bad[0], ["item-counts"]))
        users = int((self.cohort.train.lengths > 0).sum())
        if not asked or self._private or 0 < users < self.config.privacy.min_cohort:
            return {}
        counts = np.bincount(self.cohort.train.items, minlength=self.cohort.num_items)
        return {STAT + "item-counts": counts.astype(np.int64)}

    def _quarantine(self) -> int:
        """Returns how many rows of the node's data were set aside; which ones, and why, is written beside its state.

        Of data that all nodes read the first one tells.
        """
        if self.node.partition_id and not isinstance(self.config.data, OwnData):
            return 0
        quarantine = node_data.prepared(self.config.data).dataset.quarantine
        if len(quarantine):
            self.node.state_dir.mkdir(parents=True, exist_ok=True)
            path = self.node.state_dir / f"quarantine-{self.node.partition_id}.csv"
            path.touch(mode=0o600)  # it quotes rows
            quarantine.write(path)
            many = "" if self._private else f"{len(quarantine)} "  # logs leave the node
            log(WARNING, "%srows of this node's data are set aside: %s says which, and why", many, path)
        return len(quarantine)

    def get_parameters(self, config: Mapping[str, Any]) -> list[NDArray]:
        """Returns the shared parameters that a run with this seed starts from, where it does not start from a file."""
        catalog = node_data.prepared(self.config.data).dataset.catalog
        model = node_data.adapted(node_data.initial_model(self.config, catalog), self.config)
        return [model.get_parameter(name).detach().numpy() for name in model.shared_names()]

    def fit(self, parameters: list[NDArray], config: Mapping[str, Any]) -> tuple[list[NDArray], int, dict[str, Any]]:
        """Returns what training gave: arrays, the number of examples, and metrics with the arrays' names.

        Args:
            parameters: shared parameters, in the order of `config["arrays-in"]` (the model's order without it).
            config: keys of `records.Ask`; with `update = "delta"` weighted sums of deltas come back, else parameters.

        Raises:
            FedrecError: the parameters do not fit the model.
        """
        if isinstance(self.model, ClosedForm):
            return self._sums_over_users(self.model, config)
        shared = self._shared(parameters, config)
        server_round = int(config.get(Ask.ROUND, 1))
        wants_delta = config.get(Ask.UPDATE) == "delta"
        plan = replace(
            FitPlan.of(self.config.train, self.config.seed, server_round, self.config.num_server_rounds),
            weighting=str(config.get(Ask.WEIGHTING, "examples")),
            proximal_mu=float(config.get(Ask.PROXIMAL_MU, 0.0)),
            part=self._part(parameters, config) if wants_delta else None,
        )
        if self.config.privacy.unit == "user":
            plan = user_level(plan, self.config.privacy, config)
        rows = self._rows(config, server_round - 1)
        self.model = self._model(shared, rows, config)
        if self.config.privacy.unit == "example":
            sums = self._fit_examples(shared, rows, plan, config)
        elif plan.unit == "user":
            sums = fit_users(self.model, self.cohort, shared, rows, plan)
        else:
            sums = fit_node(self.model, self.cohort, shared, rows, plan, self.node.partition_id)
        if sums.num_not_finite:
            log(WARNING, "deltas of %s users were not finite and add nothing", sums.num_not_finite)
        if rows and not self.model.solves_private:
            self._state(config).save(server_round, self.cohort.keys, rows, _rounds_to_keep(config))
        if plan.part is not None and plan.part.has_controls and not sums.controls:
            sums.controls = {name: np.zeros_like(array) for name, array in shared.items()}  # nobody trained
        if plan.part is not None:
            kept = [int(config.get(Ask.MEMORY_ROUND, 0)), *_rounds_to_keep(config)]
            self._memory(config).save(server_round, plan.part.memory, kept)
        # Which rows changed, and how many bytes they take, is not for everybody.
        tables = [] if self._private else self.model.row_names()
        arrays = outgoing.deltas(sums, tables) if wants_delta else outgoing.parameters(shared, sums)
        metrics: dict[str, Any] = {
            Said.NUM_EXAMPLES: int(sums.num_examples),
            Said.NUM_USERS: int(sums.num_users),
            Said.WEIGHT: float(sums.weight),
            # A stock strategy averages this by examples; ours adds it up.
            Said.LOSS: float(sums.loss if wants_delta else sums.loss / max(sums.num_examples, 1)),
            Said.ROUND: server_round,
            ARRAYS_OUT: json.dumps(list(arrays)),
            **({name: sums.scalars.get(name, 0.0) for name in plan.part.scalars} if plan.part else {}),
        }
        if self.config.privacy.unit == "user":
            metrics = withheld(metrics, sums, config)
        return list(arrays.values()), int(metrics[Said.NUM_EXAMPLES]), metrics

    def _fit_examples(self, shared: Arrays, rows: Arrays, plan: FitPlan, config: Mapping[str, Any]) -> FitSums:
        """Returns the sums of a fit in which no single example shows, charged to the node's own ledger."""
        node, privacy, release = self.node, self.config.privacy, example_release(self.config)
        begun = bool(self._state(config).rounds())
        # The node keeps to the target itself, in this lineage, whatever a server goes on asking for.
        most = release.count * self.config.num_server_rounds if privacy.target_epsilon else 0
        accountant = NodeAccountant(node.state_dir, _lineage(config), node.partition_id, begun, most)
        return fit_examples(self.model, self.cohort, shared, rows, plan, release, float(privacy.clip_norm), accountant)

    @property
    def _private(self) -> bool:
        return self.config.privacy.unit != "none"

    def _sums_over_users(
        self, model: ClosedForm, config: Mapping[str, Any]
    ) -> tuple[list[NDArray], int, dict[str, Any]]:
        """Returns "stat/<name>" arrays, as `fit` does.

        Raises:
            FedrecError: they were not asked for, or they are of too few users to leave the node.
        """
        if config.get(Ask.UPDATE) != "statistics":
            raise FedrecError(f"model {model.name!r} is solved and not trained: only statistics can be asked for")
        users, least = int((self.cohort.train.lengths > 0).sum()), self.config.privacy.min_cohort
        if 0 < users < least:
            raise FedrecError(f"statistics of {users} users stay here: privacy.min-cohort is {least}")
        arrays = {STAT + name: array for name, array in model.statistics(self.cohort).items()}
        examples = len(self.cohort.train.items)
        return list(arrays.values()), examples, {
            Said.NUM_EXAMPLES: examples, Said.NUM_USERS: users, Said.WEIGHT: float(users), Said.LOSS: 0.0,
            Said.ROUND: int(config.get(Ask.ROUND, 1)), ARRAYS_OUT: json.dumps(list(arrays)),
        }  # fmt: skip

    def evaluate(self, parameters: list[NDArray], config: Mapping[str, Any]) -> tuple[float, int, dict[str, Any]]:
        """Returns (1 - `evaluate.metric`, number of users evaluated, means over them); arguments as for `judge`."""
        sums = self.judge(parameters, config)
        means = {name: float(value) for name, value in finalise(sums).items() if isinstance(value, (int, float))}
        return 1.0 - means.get(self.config.evaluate.metric, 0.0), sums.num_users, means

    def judge(self, parameters: list[NDArray], config: Mapping[str, Any]) -> MetricSums:
        """Returns the metrics of the node's users, summed.

        Args:
            parameters: shared parameters, in the order of `config["arrays-in"]`.
            config: keys of `records.Ask`: which part is predicted, with the private state of which round, and whether
                there are bootstrap rows; if so, as many as the run's own settings say.

        Raises:
            FedrecError: the parameters do not fit the model, or metrics of this part stay here.
        """
        part: Part = "test" if config.get(Ask.PART) == "test" else "validation"
        require_releasable(self.config, part)
        shared = self._shared(parameters, config)
        server_round = int(config.get(Ask.ROUND, 1))
        rows = self._rows(config, int(config.get(Ask.PRIVATE_ROUND, server_round)))
        self.model = self._model(shared, rows, config)
        users = np.flatnonzero(self.cohort.held_out(part).lengths > 0)
        plan = FitPlan.to_serve(self.config.train, self.config.seed, server_round)
        score_block = scorer(
            self.model, shared, rows, self.cohort.before(part), users, plan, int(self.config.evaluate.fold_in_epochs),
            f"fold-in-{part}",
        )  # fmt: skip
        bootstrap = self.config.evaluate.bootstrap
        sums = evaluate_cohort(
            score_block, self.cohort, part, self.config.evaluate.ks, self.config.data.seed,
            bootstrap if int(config.get(Ask.BOOTSTRAP, 0)) > 0 else 0,
            candidates=node_data.candidates(
                self.config.data, self.node.partition_id, self.node.num_partitions, bootstrap
            ),
        )  # fmt: skip
        return released(sums, self.config)

    def _shared(self, parameters: list[NDArray], config: Mapping[str, Any]) -> Arrays:
        """Returns the shared parameters of a message by name, in the model's order."""
        shapes = self._kept.shared_shapes
        received = dict(zip(json.loads(config[ARRAYS_IN]) if ARRAYS_IN in config else shapes, parameters, strict=True))
        for name, shape in shapes.items():
            if name not in received:
                raise FedrecError(f"the message has no parameter {name!r}: it has {', '.join(sorted(received))}")
            if received[name].shape != shape:
                raise FedrecError(f"parameter {name!r} has shape {received[name].shape}, the model's is {shape}")
        return {name: np.asarray(received[name], dtype=np.float32, order="C") for name in shapes}

    def _rows(self, config: Mapping[str, Any], at_round: int) -> Arrays:
        """Returns the private rows that go with a round, with the optimiser's state, to be changed in place."""
        rows, optimizer = self._kept.rows(), str(self.config.train.optimizer)
        if rows and not self.model.solves_private:
            if parent := config.get(Ask.PARENT):
                rows = with_optimizer_state(rows, optimizer)
                rows = inherited(self.node.state_dir, Parent.parse(str(parent)), self.cohort.keys, rows)
            rows = self._state(config).load(at_round, self.cohort.keys, rows)
        return with_optimizer_state(rows, optimizer)

    def _part(self, parameters: list[NDArray], config: Mapping[str, Any]) -> ClientPart | None:
        """Returns what the run's strategy changes in local training."""
        found = strategy_class(self.config.strategy.name)
        if not issubclass(found, RecStrategy) or found.client_part is None:
            return None
        part = found.client_part
        options = parse_options(self.config.strategy.options, "strategy.options")
        received = dict(zip(json.loads(config[ARRAYS_IN]), parameters, strict=True)) if part.has_controls else {}
        shapes = self._kept.shared_shapes
        controls = {name: received.get(CONTROL + name) for name in shapes} if part.has_controls else {}
        for name, control in controls.items():
            if control is None or control.shape != shapes[name]:
                raise FedrecError(f"the message has no {CONTROL + name} of shape {shapes[name]}")
        last_used = int(config.get(Ask.MEMORY_ROUND, 0))
        return part(
            validate_options(found.Options, options, f"strategy {found.name!r}"),
            {name: np.asarray(control, dtype=np.float32) for name, control in controls.items()},
            self._memory(config).load(last_used) if part.remembers() else {},
        )

    def _memory(self, config: Mapping[str, Any]) -> PartMemory:
        return PartMemory(self.node.state_dir, _lineage(config), self.node.partition_id, self.node.durable)

    def _state(self, config: Mapping[str, Any]) -> PrivateState:
        return PrivateState(self.node.state_dir, _lineage(config), self.node.partition_id, self.node.durable)


def _rounds_to_keep(config: Mapping[str, Any]) -> list[int]:
    named = config.get(Ask.KEEP_ROUND, 0)
    return [int(server_round) for server_round in (named if isinstance(named, list) else [named])]


def _lineage(config: Mapping[str, Any]) -> str:
    return str(config.get(Ask.LINEAGE, "default"))
