"""A model that keeps the contract, for faults to be planted in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedrec_app.config import Scalar
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch, ModelOptions, Recommender, UserState, pointwise_loss


class Plain(Recommender):
    """Users times items, with a bias an item and one for all: nothing is wrong with it."""

    name = "plain"
    recipe: ClassVar[Mapping[str, Scalar]] = {
        "model.embedding-dim": 4,
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
        "strategy.options": '{"learning_rate": 0.1}',
    }

    class Options(ModelOptions):
        """init_std of embeddings."""

        init_std: float = Field(default=0.1, gt=0)

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        self.item = nn.Parameter(torch.randn(len(catalog), self.embedding_dim) * self.options.init_std)
        self.item_bias = nn.Parameter(torch.zeros(len(catalog)))
        self.bias = nn.Parameter(torch.zeros(()))
        self.user = nn.Parameter(torch.zeros(0 if cohort is None else len(cohort), self.embedding_dim))

    def private_names(self) -> list[str]:
        return ["user"]

    def row_names(self) -> list[str]:
        return ["item", "item_bias"]

    def private_std(self) -> float:
        return self.options.init_std

    def logits(self, batch: Batch) -> Tensor:
        mine = nn.functional.embedding(batch["items"], self.item)
        return (mine @ self.user[batch["user"]][:, :, None])[..., 0] + self.item_bias[batch["items"]] + self.bias

    def loss(self, batch: Batch) -> Tensor:
        return pointwise_loss(self.logits(batch), batch)

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        return {"embedding": self.user[users]}

    def score(self, state: UserState, items: Tensor) -> Tensor:
        return state["embedding"] @ self.item[items].T + self.item_bias[items] + self.bias
