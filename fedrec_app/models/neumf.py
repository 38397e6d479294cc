"""NeuMF: generalised matrix factorisation beside a multi-layer perceptron.

Neural Collaborative Filtering, He et al., WWW 2017, https://arxiv.org/abs/1708.05031 (section 3.4). User embeddings
are private; item embeddings and layers are shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import ClassVar, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from fedrec_app.config import Scalar
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch, ModelOptions, Recommender, UserState, pointwise_loss

MOST_ROWS_A_PAIR = 16
"""Up to so many rows of the table for each pair of a user, one matrix product over all rows is cheaper than gathering
the rows of the pairs."""

CACHED = 1 << 18
"""Activations of a layer that are held at a time when all pairs are scored on a processor: 1 MB."""


class NeuMF(Recommender):
    """Two private embeddings a user, one for the product and one for the perceptron."""

    name = "neumf"
    summary_line = "neural collaborative filtering: GMF and MLP, private user embeddings"

    recipe: ClassVar[Mapping[str, Scalar]] = {
        "model.embedding-dim": 16,
        "train.unit": "user",
        "train.local-epochs": 1,
        "train.batch-size": 0,
        "train.optimizer": "sgd",
        "train.learning-rate": 1.0,
        "train.private-learning-rate": 10.0,
        "train.private-epochs": 0,
        "train.num-negatives": 4,
        "train.weight-decay": 0.0,
        "evaluate.fold-in-epochs": 5,
        "strategy.name": "fedadam",
        "strategy.options": '{"learning_rate": 0.02, "weighting": "users", "tau": 1e-6}',
    }

    class Options(ModelOptions):
        """Options of neural collaborative filtering."""

        layers: tuple[int, ...] = Field(
            default=(32, 16, 8), description="widths of the perceptron's layers after its 2 d inputs"
        )
        init_std: float = Field(default=0.1, gt=0, description="standard deviation of new embeddings")
        recency: float = Field(
            default=1.0, ge=0, description="r: serving weighs items by (1 + steps back)^-r; 0 in data without time"
        )

        @field_validator("layers")
        @classmethod
        def _positive(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
            if not layers or min(layers) < 1:
                raise ValueError("at least one layer, each at least 1 wide, is expected")
            return layers

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        """Makes (num_items, d) item and (num_users, d) user embeddings, two of each, and the layers."""
        num_users = 0 if cohort is None else len(cohort)
        self._ordered = cohort is None or cohort.ordered
        d, std = self.embedding_dim, self.options.init_std
        self.item_gmf = nn.Parameter(torch.randn(len(catalog), d) * std)
        self.item_mlp = nn.Parameter(torch.randn(len(catalog), d) * std)
        self.item_bias = nn.Parameter(torch.zeros(len(catalog)))
        widths = [2 * d, *self.options.layers]
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.output = nn.Linear(d + widths[-1], 1)
        self.user_gmf = nn.Parameter(torch.zeros(num_users, d))
        self.user_mlp = nn.Parameter(torch.zeros(num_users, d))

    def private_names(self) -> list[str]:
        """Returns the user embeddings."""
        return ["user_gmf", "user_mlp"]

    def row_names(self) -> list[str]:
        """Returns the item embeddings and biases."""
        return ["item_gmf", "item_mlp", "item_bias"]

    def private_std(self) -> float:
        """Returns the standard deviation of new user embeddings."""
        return self.options.init_std

    def recency(self) -> float:
        """Returns the option, or 0 where the data has no time."""
        return self.options.recency if self._ordered else 0.0

    def loss(self, batch: Batch) -> Tensor:
        """Returns (num_units,) mean binary cross-entropy."""
        user = batch["user"]
        return pointwise_loss(self._logits(self.user_gmf[user], self.user_mlp[user], batch["items"]), batch)

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        """Returns the private rows: what users did is in them."""
        return {"gmf": self.user_gmf[users], "mlp": self.user_mlp[users]}

    def score(self, state: UserState, items: Tensor) -> Tensor:
        """Returns (num_users, num_items) logits.

        The logits of `_logits` for every pair, with the features of the perceptron first and the pairs last: its narrow
        layers are then products with few, long rows, and no item is looked up twice. Pairs are taken in tiles whose
        activations stay in the processor's cache.
        """
        d = self.embedding_dim
        first, *others = (cast(nn.Linear, layer) for layer in self.mlp)
        gmf, mlp, bias = (table.index_select(0, items) for table in (self.item_gmf, self.item_mlp, self.item_bias))
        of_users = torch.addmm(first.bias[:, None], first.weight[:, :d], state["mlp"].T)
        of_items = first.weight[:, d:] @ mlp.T
        weighted = state["gmf"] * self.output.weight[:, :d]
        scores = torch.addmm(bias + self.output.bias, weighted, gmf.T)
        widest = max(layer.out_features for layer in (first, *others))
        pairs = (CACHED if scores.is_cpu else 64 * CACHED) // widest
        for users, columns in _tiles(scores.shape[0], scores.shape[1], pairs):
            hidden = (of_users[:, users, None] + of_items[:, None, columns]).relu_().flatten(1)
            for layer in others:
                hidden = torch.addmm(layer.bias[:, None], layer.weight, hidden).relu_()
            tile = scores[users, columns]
            tile += (self.output.weight[0, d:] @ hidden).view(tile.shape)
        return scores

    def _logits(self, gmf: Tensor, mlp: Tensor, items: Tensor) -> Tensor:
        """Returns (B, n) logits of users (B, d) with items (B, n).

        The first layer is split into its user and its item half, so that the item half runs once a row of the table
        and not once a pair; the output layer likewise, so that nothing is concatenated.
        """
        d = self.embedding_dim
        first, *others = (cast(nn.Linear, layer) for layer in self.mlp)
        of_user = nn.functional.linear(mlp, first.weight[:, :d], first.bias)
        of_items = nn.functional.linear(self.item_mlp, first.weight[:, d:])
        # In place only what is no view: autograd copies the whole of a view's base.
        hidden = (nn.functional.embedding(items, of_items) + of_user[:, None, :]).relu_().flatten(0, 1)
        for layer in others:
            hidden = layer(hidden).relu_()
        weighted = gmf * self.output.weight[:, :d]
        if len(self.item_gmf) <= MOST_ROWS_A_PAIR * items.shape[1]:
            product = (weighted @ self.item_gmf.T + self.item_bias).gather(1, items)
        else:
            mine = nn.functional.embedding(items, self.item_gmf)
            product = (mine @ weighted[:, :, None])[..., 0] + self.item_bias[items]
        return product + (hidden @ self.output.weight[0, d:]).view(items.shape) + self.output.bias


def _tiles(num_users: int, num_items: int, pairs: int) -> Iterator[tuple[slice, slice]]:
    """Yields users and items that together are all pairs, at most `pairs` of them at a time, but at least one."""
    width = max(min(num_items, pairs), 1)
    height = max(pairs // width, 1)
    for top in range(0, num_users, height):
        for left in range(0, num_items, width):
            yield slice(top, top + height), slice(left, left + width)
