"""NeuMF: generalised matrix factorisation beside a multi-layer perceptron.

Neural Collaborative Filtering, He et al., WWW 2017, https://arxiv.org/abs/1708.05031 (section 3.4). User embeddings
are private; item embeddings and layers are shared.
"""

from __future__ import annotations

from collections.abc import Mapping
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
        """layers: widths of the perceptron after its 2 d inputs; init_std of embeddings; recency, see
        `Recommender.recency`."""

        layers: tuple[int, ...] = (32, 16, 8)
        init_std: float = Field(default=0.1, gt=0)
        recency: float = Field(default=1.0, ge=0)

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
        """Returns (num_users, num_items) logits."""
        each = items.expand(len(state["gmf"]), -1)
        return self._logits(state["gmf"], state["mlp"], each)

    def _logits(self, gmf: Tensor, mlp: Tensor, items: Tensor) -> Tensor:
        """Returns (B, n) logits of users (B, d) with items (B, n).

        The first layer is split into its user and its item half, so that the item half runs once a row of the table
        and not once a pair; the output layer likewise, so that nothing is concatenated.
        """
        d = self.embedding_dim
        first, *others = (cast(nn.Linear, layer) for layer in self.mlp)
        of_user = nn.functional.linear(mlp, first.weight[:, :d], first.bias)
        of_items = nn.functional.linear(self.item_mlp, first.weight[:, d:])
        hidden = torch.relu(of_user[:, None, :] + of_items[items])
        for layer in others:
            hidden = torch.relu(layer(hidden))
        product = (self.item_gmf[items] @ (gmf * self.output.weight[:, :d])[:, :, None])[..., 0]
        return product + hidden @ self.output.weight[0, d:] + self.output.bias + self.item_bias[items]
