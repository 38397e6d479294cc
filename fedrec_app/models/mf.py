"""Matrix factorisation: item embeddings are shared, user embeddings are private.

Losses: "all-items", the weighted squared loss over every item of implicit ALS (Hu, Koren & Volinsky, ICDM 2008),
with the regularisation of Rendle et al., "Revisiting the Performance of iALS on Item Recommendation Benchmarks",
RecSys 2022, https://arxiv.org/abs/2110.14037, eq. 3 and 5; user embeddings have a closed form, so they are solved
anew each time and never stored. "bce", binary cross-entropy with sampled negatives (Neural Collaborative Filtering,
He et al., WWW 2017).

User embeddings that serve are fitted with weights (1 + steps back)^-recency, so what a user did last counts most;
item embeddings are trained with equal weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fedrec_app.config import Scalar
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories, recency_weights
from fedrec_app.models.base import Batch, Factorization, ModelOptions, Recommender, UserState, pointwise_loss
from fedrec_app.models.ridge import ridge_rows


class MatrixFactorization(Recommender):
    """Dot product of a private user embedding and a shared item embedding, nothing else."""

    name = "mf"
    summary_line = "matrix factorisation: private user and shared item embeddings"

    recipe: ClassVar[Mapping[str, Scalar]] = {
        "model.embedding-dim": 32,
        "train.unit": "user",
        "train.local-epochs": 1,
        "train.batch-size": 0,
        "train.optimizer": "sgd",
        "train.learning-rate": 1.0,
        "train.private-learning-rate": 5.0,
        "train.private-epochs": 0,
        "train.num-negatives": 0,
        "train.weight-decay": 0.0,
        "evaluate.fold-in-epochs": 15,
        "strategy.name": "fedadam",
        "strategy.options": '{"learning_rate": 0.03, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-8}',
    }

    # Where the noise is, few directions can be told from it: docs/privacy.md has what was tried.
    private_recipe: ClassVar[Mapping[str, Scalar]] = {
        "model.embedding-dim": 24,
        "privacy.clip-norm": 1e-3,
        "strategy.options": '{"server_optimizer": {"name": "subspace"}}',
    }

    class Options(ModelOptions):
        """Options of matrix factorisation."""

        loss: Literal["all-items", "bce"] = Field(
            default="all-items", description="all-items: squared, every item (iALS); bce: logistic, sampled negatives"
        )
        init_std: float = Field(default=0.02, gt=0, description="standard deviation of new embeddings")
        recency: float = Field(
            default=1.0, ge=0, description="r: serving weighs items by (1 + steps back)^-r; 0 in data without time"
        )
        unobserved_weight: float = Field(
            default=0.1, gt=0, description="alpha_0, weight of every item in the all-items loss; observed ones: 1 more"
        )
        regularization: float = Field(
            default=0.02, ge=0, description="lambda, L2 penalty on embeddings in the all-items loss"
        )

    def __init__(self, embedding_dim: int, options: Options) -> None:
        super().__init__(embedding_dim, options)
        self.whole_catalog = self.solves_private = options.loss == "all-items"
        everything = (options.unobserved_weight, options.regularization) if self.whole_catalog else ()
        self.factorization = Factorization("user_embedding", "item_embedding", *everything)
        self._ordered = True

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        """Makes (num_items, d) item embeddings and (num_users, d) user embeddings."""
        num_users = 0 if cohort is None else len(cohort)
        self._ordered = cohort is None or cohort.ordered
        self.item_embedding = nn.Parameter(torch.randn(len(catalog), self.embedding_dim) * self.options.init_std)
        self.user_embedding = nn.Parameter(torch.zeros(num_users, self.embedding_dim))

    def private_names(self) -> list[str]:
        """Returns the user embeddings."""
        return ["user_embedding"]

    def row_names(self) -> list[str]:
        """Returns the item embeddings."""
        return ["item_embedding"]

    def private_std(self) -> float:
        """Returns the standard deviation of new user embeddings."""
        return self.options.init_std

    def recency(self) -> float:
        """Returns the option, or 0 where the data has no time."""
        return self.options.recency if self._ordered else 0.0

    def loss(self, batch: Batch) -> Tensor:
        """Returns (num_units,) mean losses over the positives of each unit; see the module.

        For "all-items" the sum over a user's units is, with S his items, p his and v the items' embeddings, a the
        unobserved weight and l the regularisation, 1/2 [sum_S (1 - p.v)^2 + a sum_all (p.v)^2 + l sum_all (1[S] +
        a) (|v|^2 + |p|^2)].
        """
        users = self.user_embedding[batch["user"]]
        mine = nn.functional.embedding(batch["items"], self.item_embedding)
        logits = (mine @ users[:, :, None])[..., 0]
        if self.options.loss == "bce":
            return pointwise_loss(logits, batch)
        a, l2, num_items = self.options.unobserved_weight, self.options.regularization, len(self.item_embedding)
        positive = batch["weights"] * batch["labels"]
        count = positive.sum(-1)
        norms = (users**2).sum(-1)
        gram = self.item_embedding.T @ self.item_embedding
        observed = (positive * ((1 - logits) ** 2 + l2 * (mine**2).sum(-1))).sum(-1) + l2 * count * norms
        everywhere = ((users @ gram) * users).sum(-1) + l2 * (gram.diagonal().sum() + num_items * norms)
        return 0.5 * (observed + batch["share"] * a * everywhere) / count.clamp(min=1.0)

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        """Returns the private rows: what users did is in them."""
        return {"embedding": self.user_embedding[users]}

    def score(self, state: UserState, items: Tensor) -> Tensor:
        """Returns (num_users, num_items) logits."""
        return state["embedding"] @ self.item_embedding[items].T

    def solve_private(self, histories: Histories, serving: bool) -> dict[str, Tensor]:
        """Returns the user embeddings that minimise the "all-items" loss: a weighted ridge regression a user."""
        table = self.item_embedding.detach()
        a, l2 = self.options.unobserved_weight, self.options.regularization
        lengths = histories.lengths
        longest = int(lengths.max(initial=0))
        recency = self.recency() if serving else 0.0
        if table.device.type == "cpu" and l2 > 0:
            back = recency_weights(np.array([longest]), longest, recency)[0, ::-1]
            return {"user_embedding": torch.from_numpy(ridge_rows(table.numpy(), histories, back, a, l2))}
        weights = torch.from_numpy(recency_weights(lengths, longest, recency)).float().to(table.device)
        items = torch.from_numpy(histories.padded()).to(table.device)
        return {"user_embedding": _ridge_rows(table, items, weights, a, l2)}


def _ridge_rows(table: Tensor, items: Tensor, weights: Tensor, a: float, l2: float) -> Tensor:
    """Returns what `ridge_rows` returns, on any device and without regularisation too.

    Args:
        table: (num_items, d).
        items: (B, n) items of each user.
        weights: (B, n) theirs, 0 is padding.
        a: weight of all items.
        l2: regularisation.
    """
    mine = table[items]
    weighted = mine * weights[:, :, None]
    grams = weighted.transpose(1, 2) @ mine + a * table.T @ table
    ridge = l2 * (weights.sum(1) + a * len(table))
    grams = grams + ridge[:, None, None] * torch.eye(table.shape[1], device=table.device)
    return torch.linalg.solve(grams, weighted.sum(1))
