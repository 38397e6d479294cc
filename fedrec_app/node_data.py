"""What a worker process keeps between messages: data, cohorts, what is drawn for them, and models without parameters.

Everything here is immutable: a model, which training and scoring write to, is made anew for each message. What is kept
of a node grows with its users and not with the catalog, so that a thousand one-user nodes in one process need no
thousand item tables.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cached_property, update_wrapper
from logging import WARNING
from threading import RLock
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from flwr.supercore import log

from fedrec_app import own_data
from fedrec_app.config import DataConfig, RunConfig
from fedrec_app.data import sources
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cleaning import Rules, clean
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.partition import Prepared
from fedrec_app.data.schema import Dataset
from fedrec_app.errors import ConfigError
from fedrec_app.evaluation.candidates import Candidates
from fedrec_app.models.adapted import Adapted, Base
from fedrec_app.models.base import Recommender, bind, initial_private, initialise, with_parameters
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.models.registry import make_model
from fedrec_app.node_settings import OwnData
from fedrec_app.records import Arrays

MAX_BYTES = 1 << 28
"""Of the results of one function that are kept."""
_OBJECTS = 1 << 13
"""Bytes of the Python objects around the arrays of a result, about."""

Result = TypeVar("Result")


class Kept(Generic[Result]):
    """A function whose results are kept, as `functools.lru_cache` does, but by weight and not by number.

    Threads that ask for the same thing at once get the same one, made once.

    Args:
        function: of positional, hashable arguments.
        limit: where results weigh more together, those that nobody asked for for the longest time go; the newest stays.
        weigh: returns the weight of a result.
    """

    def __init__(self, function: Callable[..., Result], limit: float, weigh: Callable[[Result], float]) -> None:
        update_wrapper(self, function)
        self._function, self._limit, self._weigh = function, limit, weigh
        self._results: OrderedDict[Hashable, tuple[Result, float]] = OrderedDict()
        self._total = 0.0
        self._lock = RLock()

    def __call__(self, *key: Hashable) -> Result:
        """Returns what the function returns for these arguments."""
        with self._lock:
            if (found := self._results.get(key)) is not None:
                self._results.move_to_end(key)
                return found[0]
            result = self._function(*key)
            self._results[key] = result, self._weigh(result)
            self._total += self._results[key][1]
            while self._total > self._limit and len(self._results) > 1:
                self._total -= self._results.popitem(last=False)[1][1]
            return result

    def cache_clear(self) -> None:
        """Forgets every result."""
        with self._lock:
            self._results.clear()
            self._total = 0.0


def num_bytes(value: Any) -> int:
    """Returns the memory of the arrays and tensors that a value, a dataclass or a model for instance, is made of."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return 0 if isinstance(value, torch.Tensor) and value.is_meta else value.nbytes
    if isinstance(value, torch.nn.Module) or is_dataclass(value):
        value = vars(value)
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(num_bytes, parts))


def _a_few(function: Callable[..., Result]) -> Kept[Result]:
    return Kept(function, 2, lambda result: 1)


def _by_bytes(function: Callable[..., Result]) -> Kept[Result]:
    return Kept(function, MAX_BYTES, lambda result: num_bytes(result) + _OBJECTS)


@_a_few
def prepared(config: DataConfig) -> Prepared:
    """Returns the data set of a configuration, split: loaded once a process.

    Raises:
        FedrecError: no such data set, or the data does not hold what is needed.
    """
    rules = Rules(config.max_interactions, config.session_gap, config.k_core, config.min_interactions)
    if isinstance(config, OwnData):
        dataset = own_data.load(config, rules)
    else:
        dataset = clean(sources.load_whole(*config.source), rules)
    _require_columns(dataset, config)
    return Prepared.of(dataset, config.protocol, config.seed)


def _require_columns(dataset: Dataset, config: DataConfig) -> None:
    """Refuses data without a column that every node of the run must have."""
    there = list(map(str, dataset.interactions.table.columns))
    for name in filter(None, (name.strip() for name in config.requires.split(","))):
        if name not in there and dataset.num_users:
            raise ConfigError(f"data.requires names column {name!r}, this node's data has {', '.join(there)}")


@_a_few
def catalog(config: DataConfig) -> Catalog:
    """Returns the catalog of a configuration: all that the server needs to know of the data."""
    if config.k_core:  # which items that leaves, only the interactions tell
        return prepared(config).dataset.catalog
    return sources.load_catalog(*config.source)


@_by_bytes
def cohort(config: DataConfig, node: int | None, num_nodes: int) -> Cohort:
    """Returns the users of one node; of all nodes where `node` is None. Data that a node alone has is all its own."""
    if isinstance(config, OwnData):
        return prepared(config).cohort()
    return prepared(config).cohort(node, num_nodes, config.partition, config.seed)


@_by_bytes
def candidates(config: DataConfig, node: int | None, num_nodes: int, num_bootstrap: int) -> Candidates:
    """Returns the evaluation draws of a node's users."""
    return Candidates.of(cohort(config, node, num_nodes), config.seed, num_bootstrap)


def unbound_model(config: RunConfig) -> Recommender:
    """Returns the model of a run, not bound yet.

    Raises:
        ConfigError: there is no such model, or it cannot train as the run asks.
    """
    model = make_model(config.model)
    if model.couples_users and config.train.unit == "user":
        raise ConfigError(f'model {config.model.name!r} couples users: it needs train.unit = "node", not "user"')
    if isinstance(model, ClosedForm) and (config.train.adapter_rank or config.model.init_from):
        key, off = ("train.adapter-rank", "0") if config.train.adapter_rank else ("model.init-from", '""')
        raise ConfigError(
            f"model {config.model.name!r} is solved in closed form, from nothing but the data: set {key} = {off}"
        )
    return model


def initial_model(config: RunConfig, catalog: Catalog) -> Recommender:
    """Returns the plain model of a run, bound without users, as the run's seed starts it.

    Raises:
        ConfigError: as `unbound_model`.
    """
    return initialise(unbound_model(config), catalog, None, config.seed)


def adapted(model: Recommender, config: RunConfig) -> Recommender:
    """Returns the model that a run trains: this one, or, with `train.adapter-rank`, with adapters around it as it is.

    Raises:
        ConfigError: it has nothing to adapt.
    """
    rank = config.train.adapter_rank
    return Adapted(model, Base.of(model, rank, config.seed)) if rank else model


@_a_few
def seeded_base(config: RunConfig) -> Base:
    """Returns the base of adapters around the model that the run's seed starts.

    Raises:
        ConfigError: as `unbound_model` and `adapted`.
    """
    model = initial_model(config, prepared(config.data).dataset.catalog)
    return Base.of(model, config.train.adapter_rank, config.seed)


@dataclass(frozen=True)
class NodeData:
    """What a run needs of a node in every message.

    Attributes:
        cohort: its users.
        skeleton: its model, bound, on the device "meta": without parameters, which would weigh what the catalog does.
        initial_rows: the private rows that its users start with, by name.
    """

    cohort: Cohort
    skeleton: Recommender
    initial_rows: Arrays

    @cached_property
    def shared_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each shared parameter by name, in the model's order."""
        return {name: tuple(self.skeleton.get_parameter(name).shape) for name in self.skeleton.shared_names()}

    def model(self, shared: Arrays, rows: Arrays, base: Base | None = None) -> Recommender:
        """Returns a model to write to, whose parameters are these arrays: what is done to one is done to the other.

        Args:
            shared: float32, by name.
            rows: private rows, float32, by name; what else is among them is left out.
            base: of an adapted model, where it is not the one that the seed starts.
        """
        values = {name: torch.from_numpy(array) for name, array in {**shared, **rows}.items()}
        model = with_parameters(self.skeleton, values)
        if isinstance(model, Adapted) and base is not None:
            model.base = base
        return model

    def rows(self) -> Arrays:
        """Returns initial rows to write to."""
        return {name: array.copy() for name, array in self.initial_rows.items()}


@_a_few
def _say_unordered(model: str, config: DataConfig) -> None:
    """Says, once a process, that a model of sequences meets data without an order."""
    text = "data %s has no timestamps, and model %s learns from the order of histories: here it is that of the file"
    log(WARNING, text, config.name, model)


@_by_bytes
def node_data(config: RunConfig, node: int, num_nodes: int) -> NodeData:
    """Returns what a run needs of a node.

    Raises:
        ConfigError: as `unbound_model`.
    """
    users = cohort(config.data, node, num_nodes)
    model = bind(unbound_model(config), prepared(config.data).dataset.catalog, users, config.seed)
    if model.sampling == "sequence" and not users.ordered:
        _say_unordered(config.model.name, config.data)
    rows = initial_private(model, users.keys, config.seed)
    if config.train.adapter_rank:
        model = Adapted(model, seeded_base(config))
    without_values = {name: parameter.to("meta") for name, parameter in model.named_parameters()}
    return NodeData(users, with_parameters(model, without_values), rows)
