"""From what is known of a user to scores of all items, as one graph a model: what becomes an ONNX file.

A graph holds shared parameters alone. What a node knows of its users comes in: private rows, or histories.

    a factorisation    <name of the private parameter> (batch, d)
    neumf              user_gmf, user_mlp (batch, d)
    pfedrec            its private parameters (batch, ...), and has (batch, num_items) 1 where the user has the item
    sasrec             items (batch, L) positions in the catalog, right-aligned; present (batch, L) 1 where there is one
    ease, itemknn      history (batch, num_items) weights of the items of the history
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedrec_app.data.histories import Histories
from fedrec_app.errors import ConfigError
from fedrec_app.models.base import Recommender
from fedrec_app.models.item_item import ItemItem
from fedrec_app.models.neumf import NeuMF
from fedrec_app.models.pfedrec import PFedRec
from fedrec_app.models.sasrec import SasRec
from fedrec_app.records import Arrays

Feed = Callable[[Recommender, Histories, NDArray[np.int64]], Arrays]


@dataclass(frozen=True)
class Graph:
    """What an ONNX file of a model computes.

    Attributes:
        module: from its inputs, in the order of `inputs`, to (batch, num_items) scores.
        inputs: their names.
        feed: from a model with private rows, what users did, and their rows in the model (n,), to the inputs by name.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    feed: Feed


def graph_of(model: Recommender) -> Graph:
    """Returns the graph of a model.

    Args:
        model: bound to its catalog without users, its shared parameters in it.

    Raises:
        ConfigError: nobody has written one for this model.
    """
    if model.factorization is not None:
        user, item = model.factorization.user, model.factorization.item
        return Graph(_Product(model.get_parameter(item)), (user,), _rows)
    if isinstance(model, NeuMF):
        return Graph(_NeuMF(model), ("user_gmf", "user_mlp"), _rows)
    if isinstance(model, PFedRec):
        view = ["has"] if model.options.personal_view else []
        return Graph(_PFedRec(model), (*model.private_names(), *view), _rows_and_items)
    if isinstance(model, SasRec):
        return Graph(_SasRec(model), ("items", "present"), _last_items)
    if isinstance(model, ItemItem):
        return Graph(_ItemItem(model), ("history",), _weights)
    raise ConfigError(
        f"model {model.name!r} has no ONNX graph: factorisations, neumf, pfedrec, sasrec, ease and itemknn have one"
        + ("; its scores are the same for everybody" if not getattr(model, "personal", True) else "")
    )


class _Product(nn.Module):
    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.detach().T.contiguous())

    def forward(self, user: Tensor) -> Tensor:
        return user @ cast(Tensor, self.table)


class _NeuMF(nn.Module):
    """The logits of `NeuMF` for all pairs; what the first layer makes of the items is worked out once."""

    def __init__(self, model: NeuMF) -> None:
        super().__init__()
        d = model.embedding_dim
        first, *others = (cast(nn.Linear, layer) for layer in model.mlp)
        self.others = nn.ModuleList(others)
        with torch.no_grad():
            constants = {
                "of_items": model.item_mlp @ first.weight[:, d:].T,
                "of_users": first.weight[:, :d].T.contiguous(),
                "bias": first.bias,
                "items": (model.item_gmf * model.output.weight[:, :d]).T.contiguous(),
                "item_bias": model.item_bias + model.output.bias,
                "last": model.output.weight[0, d:],
            }
        for name, value in constants.items():
            self.register_buffer(name, value.detach().clone())

    def forward(self, gmf: Tensor, mlp: Tensor) -> Tensor:
        of_users = mlp @ cast(Tensor, self.of_users) + cast(Tensor, self.bias)
        hidden = (of_users[:, None, :] + cast(Tensor, self.of_items)[None]).relu()
        for layer in self.others:
            hidden = layer(hidden).relu()
        return gmf @ cast(Tensor, self.items) + cast(Tensor, self.item_bias) + hidden @ cast(Tensor, self.last)


class _PFedRec(nn.Module):
    """The scores of `PFedRec`, of the two ways that it has."""

    def __init__(self, model: PFedRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        model = self.model
        names = model.private_names()
        state = dict(zip(names, inputs, strict=False))
        table = model.item_embedding
        items = torch.arange(table.shape[0])
        if len(inputs) > len(names):
            has = inputs[-1] > 0
            count = has.to(table).sum(1)
            others = model.options.view_negatives * count / (has.shape[1] - count).clamp(min=1.0)
            state["has"] = has
            state["steps"] = model.options.view_learning_rate * torch.stack([torch.ones_like(others), others], dim=1)
        if model.options.hidden:
            return model._seen_through_a_layer(state, table, items)
        return model._seen_linearly(state, table, items)


class _SasRec(nn.Module):
    """The scores after the last item; zeros for who has none."""

    def __init__(self, model: SasRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, present: Tensor) -> Tensor:
        some, hidden = present[:, -1:], None
        if self.model.masked:
            pad = nn.functional.pad
            hidden = pad(0 * present, (0, 1), value=1.0)
            items, present = pad(items, (0, 1)), pad(present, (0, 1), value=1.0)
        states = self.model._states(items, present, hidden, None)[:, -1]
        return (states * some) @ self.model.item_embedding.T


class _ItemItem(nn.Module):
    """The scores of item-item models; of neighbours, only those are looked up."""

    def __init__(self, model: ItemItem) -> None:
        super().__init__()
        whole = model.num_kept == model.num_items
        weights = model.weights.detach()
        self.register_buffer("weights", weights.T.contiguous() if whole else weights.clone())
        self.register_buffer("neighbors", None if whole else model.neighbors.detach().long().reshape(-1))

    def forward(self, history: Tensor) -> Tensor:
        weights = cast(Tensor, self.weights)
        if self.neighbors is None:
            return history @ weights
        met = history.index_select(1, cast(Tensor, self.neighbors)).unflatten(1, weights.shape)
        return (met * weights).sum(-1)


def _rows(model: Recommender, histories: Histories, users: NDArray[np.int64]) -> Arrays:
    return {name: model.get_parameter(name).detach().numpy()[users] for name in model.private_names()}


def _rows_and_items(model: Recommender, histories: Histories, users: NDArray[np.int64]) -> Arrays:
    found = _rows(model, histories, users)
    if cast(PFedRec, model).options.personal_view:
        found["has"] = histories.matrix(len(cast(PFedRec, model).item_embedding)).astype(np.float32)
    return found


def _last_items(model: Recommender, histories: Histories, users: NDArray[np.int64]) -> Arrays:
    items = np.zeros((len(histories), model.max_length), dtype=np.int64)
    present = np.zeros(items.shape, dtype=np.float32)
    for user in range(len(histories)):
        last = histories[user][-model.max_length :]
        if len(last):
            items[user, -len(last) :], present[user, -len(last) :] = last, 1.0
    return {"items": items, "present": present}


def _weights(model: Recommender, histories: Histories, users: NDArray[np.int64]) -> Arrays:
    return {"history": model.encode(histories, torch.from_numpy(users))["history"].numpy()}
