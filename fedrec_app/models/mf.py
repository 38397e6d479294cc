"""Matrix factorisation: item embeddings are shared, user embeddings are private.

Losses: "bce", binary cross-entropy with sampled negatives (the loss of Neural Collaborative Filtering, He et al., WWW 2017); "all-items", the
weighted squared loss over every item of implicit ALS (Hu, Koren & Volinsky, ICDM 2008; Rendle et al., RecSys 2022,
https://arxiv.org/abs/2110.14037, eq. 2), whose private rows have a closed form.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch, ModelOptions, Recommender, UserState, pointwise_loss


class MatrixFactorization(Recommender):
    """Dot product of a private user embedding and a shared item embedding, plus a shared item bias."""

    name = "mf"
    summary_line = "matrix factorisation: private user and shared item embeddings"

    class Options(ModelOptions):
        """loss; item_bias; init_std of embeddings; unobserved_weight and regularization of the "all-items" loss."""

        loss: Literal["bce", "all-items"] = "bce"
        item_bias: bool = True
        init_std: float = Field(0.01, gt=0)
        unobserved_weight: float = Field(0.1, gt=0)
        regularization: float = Field(1.0, ge=0)

    def __init__(self, embedding_dim: int, options: Options) -> None:
        super().__init__(embedding_dim, options)
        self.sampling = "pointwise" if options.loss == "bce" else "all-items"

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        """Makes (num_items, d) item embeddings, (num_items,) biases and (num_users, d) user embeddings."""
        num_users = 0 if cohort is None else len(cohort)
        self.item_embedding = nn.Parameter(torch.randn(len(catalog), self.embedding_dim) * self.options.init_std)
        if self.options.item_bias:
            self.item_bias = nn.Parameter(torch.zeros(len(catalog)))
        self.user_embedding = nn.Parameter(torch.zeros(num_users, self.embedding_dim))

    def private_names(self) -> list[str]:
        """Returns the user embeddings."""
        return ["user_embedding"]

    def row_names(self) -> list[str]:
        """Returns the item embeddings, and the biases where there are some."""
        return ["item_embedding", "item_bias"] if self.options.item_bias else ["item_embedding"]

    def private_std(self) -> float:
        """Returns the standard deviation of new user embeddings."""
        return self.options.init_std

    def loss(self, batch: Batch) -> Tensor:
        """Returns (num_units,) losses; see the module."""
        users = self.user_embedding[batch["user"]]
        if self.options.loss == "bce":
            return pointwise_loss(self._logits(users, batch["items"]), batch)
        scores = users @ self.item_embedding.T + self._bias()
        positives = batch["positives"]
        squared = (positives * (1 - scores) ** 2).sum(-1) + self.options.unobserved_weight * (scores**2).sum(-1)
        norms = self.options.regularization * (users**2).sum(-1)
        return (squared + norms) / batch["examples"].clamp(min=1.0)

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        """Returns the private rows: what users did is in them."""
        return {"embedding": self.user_embedding[users]}

    def score(self, state: UserState, items: Tensor) -> Tensor:
        """Returns (num_users, num_items) logits."""
        return state["embedding"] @ self.item_embedding[items].T + self._bias()[items]

    def solve_private(self, histories: Histories) -> dict[str, Tensor] | None:
        """Returns the user embeddings that minimise the "all-items" loss: a ridge regression a user."""
        if self.options.loss == "bce":
            return None
        table, bias = self.item_embedding.detach(), self._bias().detach()
        weight, ridge = self.options.unobserved_weight, self.options.regularization
        d = self.embedding_dim
        shared_gram = weight * table.T @ table + ridge * torch.eye(d)
        shared_target = -weight * (table.T @ bias)
        rows = torch.from_numpy(histories.rows())
        items = torch.from_numpy(histories.items)
        mine = table[items]
        grams = torch.zeros(len(histories), d, d).index_add_(0, rows, mine[:, :, None] * mine[:, None, :])
        targets = torch.zeros(len(histories), d).index_add_(0, rows, mine * (1 - bias[items])[:, None])
        return {"user_embedding": torch.linalg.solve(grams + shared_gram, targets + shared_target)}

    def _logits(self, users: Tensor, items: Tensor) -> Tensor:
        return (self.item_embedding[items] @ users[:, :, None])[..., 0] + self._bias()[items]

    def _bias(self) -> Tensor:
        return self.item_bias if self.options.item_bias else torch.zeros(len(self.item_embedding))
