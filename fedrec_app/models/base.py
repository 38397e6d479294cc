"""The contract of a recommender.

class Popularity(Recommender):                      # one shared number an item
    name, sampling = "popularity-bias", "pointwise"

    def bind(self, catalog, cohort):
        self.item_bias = nn.Parameter(torch.zeros(len(catalog)))

    def row_names(self):
        return ["item_bias"]

    def loss(self, batch):
        return pointwise_loss(self.item_bias[batch["items"]], batch)

    def encode(self, histories, users):
        return {"num_users": torch.tensor(len(histories))}

    def score(self, state, items):
        return self.item_bias[items].expand(int(state["num_users"]), -1)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from fedrec_app import splitmix
from fedrec_app.compiled import njit
from fedrec_app.config import Scalar
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.sequence_rules import SequenceRules
from fedrec_app.seeding import stream_base, torch_seed

Batch = dict[str, Tensor]
UserState = dict[str, Tensor]
Sampling = Literal["pointwise", "sequence"]


class ModelOptions(BaseModel):
    """Options of a model; unknown ones are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Factorization:
    """A model that is the dot product of two embeddings and nothing else.

    Attributes:
        user: name of the private parameter, (num_users, d).
        item: name of the shared parameter, (num_items, d).
        unobserved_weight: of all items in the all-items loss (see models/mf.py); None: the loss is `pointwise_loss`.
        regularization: of the all-items loss.
    """

    user: str
    item: str
    unobserved_weight: float | None = None
    regularization: float = 0.0


class Recommender(nn.Module):
    """A torch model whose parameters are shared, or private with one row a user.

    Class attributes:
        sampling: the batches that `loss` is given. "pointwise": "user" (B,) rows of private parameters, "items" (B,
            n), "labels" (B, n) 1 or 0, "weights" (B, n) 0 where padded, "share" (B,) how much of its user's
            positives a unit holds. "sequence": whole histories, see `fedrec_app.training.sequences`; the model has
            `max_length`, how many items are read, `crop`, the share of epochs with a history cut at random, and
            `sequence_rules`.
        whole_catalog: the loss reads every row of the item tables, not only those of the items in a batch; or it looks
            items up in something that `row_names` does not list, such as their features.
        solves_private: `solve_private` gives private rows in closed form; they are then solved anew and never stored.
        couples_users: a user's loss depends on other users of the node; refused with `train.unit = "user"`.
        factorization: says that the model is one that compiled loops can train.
        recipe: setting -> the model's own value, for every setting left at "auto".
        private_recipe: what goes over the recipe under user-level privacy.
        Options: the schema of `model.options`.
        api_version: the `API_VERSION` that a plug-in was written for.

    Args:
        embedding_dim: width of embeddings.
        options: an instance of `Options`.
    """

    name: ClassVar[str] = ""
    summary_line: ClassVar[str] = ""
    api_version: ClassVar[int | None] = None
    sampling: ClassVar[Sampling] = "pointwise"
    whole_catalog: bool = False
    solves_private: bool = False
    factorization: Factorization | None = None
    couples_users: ClassVar[bool] = False
    max_length: int = 0
    crop: float = 0.0
    sequence_rules: SequenceRules = SequenceRules()
    recipe: ClassVar[Mapping[str, Scalar]] = {}
    private_recipe: ClassVar[Mapping[str, Scalar]] = {}
    Options: ClassVar[type[ModelOptions]] = ModelOptions

    def __init__(self, embedding_dim: int, options: Any) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.options = options

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        """Makes the parameters, sized for the catalog and the users of a node (none on the server)."""
        raise NotImplementedError

    def private_names(self) -> list[str]:
        """Returns parameters with one row a user; they never leave the node."""
        return []

    def shared_names(self) -> list[str]:
        """Returns every other parameter, in a fixed order."""
        private = set(self.private_names())
        return [name for name, _ in self.named_parameters() if name not in private]

    def row_names(self) -> list[str]:
        """Returns shared parameters with one row an item of the catalog.

        Without `whole_catalog`, engines cut them to the items that they meet and number items in batches anew.
        """
        return []

    def private_std(self) -> float:
        """Returns the standard deviation that private rows start with."""
        return 0.01

    def forward(self, batch: Batch) -> Tensor:
        """Returns `loss(batch)`: what `torch.func.functional_call` calls."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> Tensor:
        """Returns (num_units,) the mean loss of each unit of a batch: a user, or an example."""
        raise NotImplementedError

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        """Returns what `score` needs to know of users.

        Args:
            histories: what each user did, oldest first.
            users: (num_users,) their rows in the private parameters.
        """
        raise NotImplementedError

    def score(self, state: UserState, items: Tensor) -> Tensor:
        """Returns (num_users, num_items) scores, higher is better.

        Args:
            state: what `encode` returned.
            items: (num_items,) positions in the catalog.
        """
        raise NotImplementedError

    def solve_private(self, histories: Histories, serving: bool) -> dict[str, Tensor]:
        """Returns private rows in closed form for the shared parameters as they are.

        Args:
            histories: what each user did, oldest first.
            serving: the rows are to predict what comes next, not to train shared parameters with.
        """
        raise NotImplementedError

    def recency(self) -> float:
        """Returns how much more recent items weigh when private rows are fitted to serve: the exponent of (1 +
        steps back)^-recency."""
        return 0.0


def pointwise_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Returns (B,) the weighted mean binary cross-entropy of each unit.

    Args:
        logits: (B, n) scores before the sigmoid.
        batch: a "pointwise" batch.
    """
    each = nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"], reduction="none")
    return (each * batch["weights"]).sum(-1) / batch["weights"].sum(-1).clamp(min=1.0)


def initialise(model: Recommender, catalog: Catalog, cohort: Cohort | None, seed: int) -> Recommender:
    """Returns the model bound, with shared parameters drawn from the seed and private rows from (seed, user)."""
    bind(model, catalog, cohort, seed)
    if cohort is not None:
        rows = initial_private(model, cohort.keys, seed)
        with torch.no_grad():
            for name, value in rows.items():
                model.get_parameter(name).copy_(torch.from_numpy(value))
    return model


def bind(model: Recommender, catalog: Catalog, cohort: Cohort | None, seed: int) -> Recommender:
    """Returns the model bound, with whatever it draws drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it walks every device's generator, which costs more than small models do.
        torch.default_generator.manual_seed(torch_seed(seed, "shared-parameters"))
        model.bind(catalog, cohort)
    return model


def initial_private(model: Recommender, keys: NDArray[np.uint64], seed: int) -> dict[str, NDArray[np.float32]]:
    """Returns the private rows that users start with, the same wherever they are placed.

    Args:
        model: bound.
        keys: (num_users,) keys of users.
        seed: the run's.
    """
    rows = {}
    for name in model.private_names():
        shape = model.get_parameter(name).shape[1:]
        base = stream_base(seed, "private-parameters", name)
        numbers = np.empty((len(keys), shape.numel()), dtype=np.float32)
        _draw_normal(base, keys, model.private_std(), numbers)
        rows[name] = numbers.reshape(len(keys), *shape)
    return rows


@njit(cache=True, nogil=True)
def _draw_normal(base: np.uint64, keys: NDArray[np.uint64], std: float, numbers: NDArray[np.float32]) -> None:
    """Fills (num_users, n) normal numbers, a row from each user's stream (Box & Muller, Ann. Math. Stat., 1958)."""
    for user in range(len(keys)):
        state = splitmix.stream_start(base, 0, keys[user])
        for n in range(numbers.shape[1]):
            state += splitmix.GOLDEN
            radius = math.sqrt(-2.0 * math.log(1.0 - splitmix.uniform(state)))
            state += splitmix.GOLDEN
            numbers[user, n] = std * radius * math.cos(2.0 * math.pi * splitmix.uniform(state))


def with_parameters(model: Recommender, values: Mapping[str, Tensor]) -> Recommender:
    """Returns a copy of a bound model with these parameters and with buffers of its own.

    Args:
        model: not changed; its other attributes are shared with the copy.
        values: every parameter, by name, and perhaps more; used as they are: what is done to the copy is done to them.
    """
    own: dict[int, Any] = {id(buffer): buffer.clone() for buffer in model.buffers()}
    for name, parameter in model.named_parameters():
        own[id(parameter)] = nn.Parameter(values[name], parameter.requires_grad)
    modules = list(model.modules())
    own |= {id(module): object.__new__(type(module)) for module in modules}
    # By identity, so that what the model has under two names stays one thing.
    for module in modules:
        state = dict(vars(module))
        for kind in ("_parameters", "_buffers", "_modules"):
            state[kind] = {name: own.get(id(member)) for name, member in state[kind].items()}
        vars(own[id(module)]).update(state)
    return own[id(model)]


def model_hash(model: Recommender) -> str:
    """Returns the identity of the shared parameters: names, shapes and dtypes."""
    described = [
        [name, list(model.get_parameter(name).shape), str(model.get_parameter(name).dtype)]
        for name in model.shared_names()
    ]
    return hashlib.sha256(json.dumps([model.name, described]).encode()).hexdigest()
