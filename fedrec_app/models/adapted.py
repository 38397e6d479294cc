"""Low-rank adapters around any model: large matrices stay as they started, and a small factor of each one trains.

LoRA: Low-Rank Adaptation of Large Language Models, Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685, in the
variant that suits a federation: of the two factors of an update one is fixed and the other, zero at first, trains
(FFA-LoRA: Improving LoRA in Privacy-preserving Federated Learning, Sun et al., ICLR 2024,
https://arxiv.org/abs/2403.12313). The mean of products is then the product with the mean, so the server averages what
nodes have learned; with two trained factors it does not. Here the fixed factor is orthonormal besides: a gradient step
on the trained one is the plain step projected onto r directions, and norms of updates are norms of the weights' change,
so learning rates, clipping and robust rules mean what they mean for the plain model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.errors import ConfigError
from fedrec_app.models.base import Batch, Recommender, UserState, model_hash
from fedrec_app.records import Arrays
from fedrec_app.seeding import rng

SMALLEST = 1024
"""Numbers that a matrix has at least to be adapted: less is not worth what low rank costs."""
FACTOR = ".factor"
_START, _DIRECTIONS = "start/", "directions/"
_DECLARED = (
    "name", "summary_line", "api_version", "sampling", "whole_catalog", "solves_private", "couples_users", "max_length",
    "crop", "sequence_rules", "recipe",
)  # fmt: skip
"""What the plain model says of itself and the adapted one says too; not `factorization`: it is none."""


class Base:
    """What stays of an adapted model as it was: where its matrices start, and the directions in which they may move.

    The same for every node and round, and never changed, so all models of a process share one.

    Args:
        start: (rows, columns) float32 W0, by parameter name.
        directions: (r, columns) orthonormal rows for a matrix at least as tall as wide, which is W0 + factor @
            directions; (rows, r) orthonormal columns for a wide one, W0 + directions @ factor. The longer side trains,
            so that a factor of full rank could reach any matrix.
    """

    def __init__(self, start: Arrays, directions: Arrays) -> None:
        self.start, self.directions = start, directions
        self._on: dict[tuple[torch.device, torch.dtype], dict[str, tuple[Tensor, Tensor]]] = {}

    @classmethod
    def of(cls, model: Recommender, rank: int, seed: int) -> Base:
        """Returns the base of a model as it is: of every shared matrix that is larger than its factor of this rank.

        Args:
            model: bound; not changed.
            rank: r, of updates.
            seed: of the directions.

        Raises:
            ConfigError: the model has no such matrix.
        """
        matrices = _matrices(model)
        start = {name: value.numpy().copy() for name, value in matrices.items() if rank < min(value.shape)}
        if not start:
            most = max((min(value.shape) for value in matrices.values()), default=1) - 1
            allowed = f"0 to {most}" if most > 0 else f"0, as it has no matrix of {SMALLEST} numbers"
            raise ConfigError(
                f"train.adapter-rank is {rank}: no shared matrix of model {model.name!r} is larger than its factor; "
                f"allowed is {allowed}"
            )
        return cls(start, {name: _directions(value.shape, rank, seed, name) for name, value in start.items()})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], like: Base) -> Base:
        """Returns the base that `arrays` came from.

        Args:
            arrays: by name, from outside this process.
            like: a base of the same model, which says names and shapes.

        Raises:
            ValueError: these are not the arrays of such a base.
        """
        expected = like.arrays()
        if odd := sorted(set(arrays) ^ set(expected)):
            raise ValueError(f"{odd[0]!r} is {'missing' if odd[0] in expected else 'not expected'}")
        for name, array in expected.items():
            if arrays[name].shape != array.shape or arrays[name].dtype != array.dtype:
                found = f"{arrays[name].dtype} {arrays[name].shape}"
                raise ValueError(f"{name!r} is {found}, {array.dtype} {array.shape} is expected")
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name!r} has numbers that are not finite")
        return cls({n: arrays[_START + n] for n in like.start}, {n: arrays[_DIRECTIONS + n] for n in like.start})

    def arrays(self) -> Arrays:
        """Returns everything by name, as it travels."""
        start = {_START + name: array for name, array in self.start.items()}
        return {**start, **{_DIRECTIONS + name: array for name, array in self.directions.items()}}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, shapes and numbers: two nodes with the same digest mean the same by a factor."""
        found = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            found.update(f"{name} {array.shape}\n".encode())
            found.update(np.ascontiguousarray(array, dtype="<f4").data)
        return found.hexdigest()

    def factor_shape(self, name: str) -> tuple[int, int]:
        """Returns the shape of the factor of a parameter."""
        (rows, columns), rank = self.start[name].shape, min(self.directions[name].shape)
        return (rows, rank) if rows >= columns else (rank, columns)

    def moved(self, name: str, factor: Tensor) -> Tensor:
        """Returns the parameter as a factor leaves it."""
        where = factor.device, factor.dtype
        if where not in self._on:
            pairs = {key: (self.start[key], self.directions[key]) for key in self.start}
            self._on[where] = {
                key: (torch.from_numpy(start).to(*where), torch.from_numpy(fixed).to(*where))
                for key, (start, fixed) in pairs.items()
            }
        start, fixed = self._on[where][name]
        return torch.addmm(start, factor, fixed) if start.shape[0] >= start.shape[1] else start + fixed @ factor


def _matrices(model: Recommender) -> dict[str, Tensor]:
    """Returns the shared matrices that a factor could stand for; that of a table with a row an item has them too."""
    tables = model.row_names()
    found = {name: model.get_parameter(name).detach().cpu() for name in model.shared_names()}
    return {
        name: value
        for name, value in found.items()
        if value.ndim == 2
        and value.numel() >= SMALLEST
        and value.dtype == torch.float32
        and (name not in tables or value.shape[0] >= value.shape[1])
    }


def _directions(shape: tuple[int, ...], rank: int, seed: int, name: str) -> np.ndarray:
    # In float64, rounded once: machines whose linear algebra differs in the last bits find the same numbers.
    drawn = rng(seed, "adapter-directions", name).standard_normal((min(shape), rank))
    basis, triangle = np.linalg.qr(drawn)
    basis = (basis * np.sign(np.diag(triangle))).astype(np.float32)
    return np.ascontiguousarray(basis.T if shape[0] >= shape[1] else basis)


class Adapted(Recommender):
    """A model whose large matrices move in few directions: its parameters are their factors, and the small ones whole.

    Engines see an ordinary model. Item tables are never cut to the items at hand (`whole_catalog`), as what they start
    from is not among the parameters; compiled loops, which know plain tables, are not used.

    Args:
        inner: the plain model, bound, its small parameters where training starts; it is taken apart.
        base: of its large ones.

    Attributes:
        plain_hash: `model_hash` of the plain model.
        base: see `Base`; a copy made by `with_parameters` may be given another one.
    """

    def __init__(self, inner: Recommender, base: Base) -> None:
        super().__init__(inner.embedding_dim, inner.options)
        shared, tables = inner.shared_names(), inner.row_names()
        vars(self).update({key: getattr(inner, key) for key in _DECLARED if hasattr(inner, key)})
        self.whole_catalog = inner.whole_catalog or any(name in base.start for name in tables)
        self.plain_hash, self.base = model_hash(inner), base
        self._plain, self._private = shared, inner.private_names()
        self._rows = [self._trained(name) for name in tables]
        for name in [*shared, *self._private]:
            adapted = name in base.start
            value = nn.Parameter(torch.zeros(base.factor_shape(name))) if adapted else inner.get_parameter(name)
            _hang(self, self._trained(name), value)
        named = {id(value): name for name, value in inner.named_parameters()}
        self._places = [(*_split(name), named[id(value)]) for name, value in inner.named_parameters("", True, False)]
        self._inner = inner
        self._fill({})

    def _trained(self, name: str) -> str:
        return name + FACTOR if name in self.base.start else name

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        """Raises: what is adapted is a model that is bound."""
        raise TypeError("an adapted model is made of a model that is bound, it is not bound itself")

    def private_names(self) -> list[str]:
        """Returns the plain model's."""
        return list(self._private)

    def shared_names(self) -> list[str]:
        """Returns factors, and the parameters that train whole, in the plain model's order."""
        return [self._trained(name) for name in self._plain]

    def row_names(self) -> list[str]:
        """Returns those of `shared_names` that have one row an item."""
        return list(self._rows)

    def private_std(self) -> float:
        """Returns the plain model's."""
        return self._model.private_std()

    def recency(self) -> float:
        """Returns the plain model's."""
        return self._model.recency()

    def loss(self, batch: Batch) -> Tensor:
        """Returns the plain model's loss, of the parameters as the factors leave them."""
        with self._filled() as model:
            return model.loss(batch)

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        """Returns what the plain model does."""
        with self._filled(as_parameters=True) as model:
            return model.encode(histories, users)

    def score(self, state: UserState, items: Tensor) -> Tensor:
        """Returns what the plain model does."""
        with self._filled(as_parameters=True) as model:
            return model.score(state, items)

    def solve_private(self, histories: Histories, serving: bool) -> dict[str, Tensor]:
        """Returns what the plain model does."""
        with self._filled(as_parameters=True) as model:
            return model.solve_private(histories, serving)

    def merged(self, shared: Arrays) -> Arrays:
        """Returns the shared parameters of the plain model: what scores as these do.

        Args:
            shared: of this model, by name.
        """
        return {
            name: self.base.moved(name, torch.from_numpy(shared[self._trained(name)])).numpy()
            if name in self.base.start
            else shared[name]
            for name in self._plain
        }

    @property
    def _model(self) -> Recommender:
        return cast(Recommender, self._inner)

    @contextmanager
    def _filled(self, as_parameters: bool = False) -> Iterator[Recommender]:
        """Gives the plain model with its parameters as they are now, those of `functional_call` or `vmap` perhaps.

        Args:
            as_parameters: as leaves, which `get_parameter` wants and where gradients end.
        """
        values: dict[str, Tensor] = {}
        for name in [*self._plain, *self._private]:
            folder, leaf = _split(self._trained(name))
            value = cast(Tensor, self.get_submodule(folder)._parameters[leaf])
            moved = self.base.moved(name, value) if name in self.base.start else value
            values[name] = nn.Parameter(moved.detach(), False) if as_parameters else moved
        try:
            self._fill(values)
            yield self._model
        finally:
            self._fill({})

    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for folder, leaf, name in self._places:
            # Past nn.Module's own setter, which wants a Parameter: a leaf, where gradients would end.
            self._model.get_submodule(folder)._parameters[leaf] = values.get(name)  # type: ignore[assignment]


def _split(name: str) -> tuple[str, str]:
    folder, _, leaf = name.rpartition(".")
    return folder, leaf


def _hang(module: nn.Module, name: str, value: nn.Parameter) -> None:
    """Registers a parameter under a dotted name; what is between is made."""
    folder, leaf = _split(name)
    for part in filter(None, folder.split(".")):
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(leaf, value)


def plain_arrays(model: Recommender, shared: Arrays) -> Arrays:
    """Returns shared parameters as the plain model has them: merged, if the model is adapted."""
    return model.merged(shared) if isinstance(model, Adapted) else shared


def plain_hash(model: Recommender) -> str:
    """Returns `model_hash` of the plain model."""
    return model.plain_hash if isinstance(model, Adapted) else model_hash(model)
