"""PFedRec: a score function of one's own, and a view of the items of one's own.

Dual Personalization on Federated Recommendation, Zhang, Long, Zhou, Yan, Zhang, Zhang & Yang, IJCAI 2023,
https://arxiv.org/abs/2301.08143. Item embeddings are shared. A user has no embedding: what is
private is his score function, a small network over the item embedding alone, linear in the paper.

A round is theirs where `train.private-epochs` is at least 1: the score function is fitted while the items stand still,
then the items, from what the server sent, while the score function stands still; the items travel.

To serve, a user moves his copy of the items towards what he did, the "personal view". It follows from the shared items,
his history and his score function, so nothing of the size of the catalog is kept. The paper takes these steps with
sampled negatives; here every item that he has not weighs as often as it would be drawn on average, so the view does not
depend on luck. A linear score function then moves by the same rule at each item that he has not, and keeps their order
as long as a step times |w|^2 is below 4: what the view changes is what a score means, and the items that he has.
"""

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

CACHED = 1 << 20
"""Activations of the hidden layer that are held at a time when all pairs are scored."""


class PFedRec(Recommender):
    """A private score function a user over shared item embeddings."""

    name = "pfedrec"
    summary_line = "dual personalisation: private score functions, personal view of shared items (IJCAI 2023)"

    recipe: ClassVar[Mapping[str, Scalar]] = {
        "model.embedding-dim": 32,
        "train.unit": "user",
        "train.local-epochs": 1,
        "train.batch-size": 0,
        "train.optimizer": "sgd",
        "train.learning-rate": 1.0,
        "train.private-learning-rate": 10.0,
        "train.private-epochs": 1,
        "train.num-negatives": 8,
        "train.weight-decay": 0.0,
        "evaluate.fold-in-epochs": 10,
        "strategy.name": "fedadam",
        "strategy.options": '{"learning_rate": 0.02, "weighting": "users", "tau": 1e-6}',
    }

    class Options(ModelOptions):
        """Options of the score function and of the personal view."""

        hidden: int = Field(
            default=0, ge=0, le=1024, description="h, width of the score function's hidden layer; 0: it is linear"
        )
        init_std: float = Field(
            default=0.03, gt=0, description="standard deviation of new items and of new linear score functions"
        )
        recency: float = Field(
            default=1.0, ge=0, description="r: serving weighs items by (1 + steps back)^-r; 0 in data without time"
        )
        personal_view: bool = Field(default=True, description="users serve from item embeddings of their own")
        view_epochs: int = Field(default=1, ge=1, le=100, description="steps from the shared items to the view")
        view_learning_rate: float = Field(default=0.1, gt=0, description="step of an item that the user has")
        view_negatives: float = Field(
            default=8.0, ge=0, description="what items that the user has not weigh together, times those that he has"
        )

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        """Makes (num_items, d) item embeddings and (num_users, ...) score functions."""
        users, d, h = 0 if cohort is None else len(cohort), self.embedding_dim, self.options.hidden
        self._ordered = cohort is None or cohort.ordered
        self.item_embedding = nn.Parameter(torch.randn(len(catalog), d) * self.options.init_std)
        if h:
            self.hidden_weight = nn.Parameter(torch.zeros(users, h, d))
            self.hidden_bias = nn.Parameter(torch.zeros(users, h))
        self.score_weight = nn.Parameter(torch.zeros(users, h or d))
        self.score_bias = nn.Parameter(torch.zeros(users))

    def private_names(self) -> list[str]:
        """Returns the parameters of the score functions."""
        hidden = ["hidden_weight", "hidden_bias"] if self.options.hidden else []
        return [*hidden, "score_weight", "score_bias"]

    def row_names(self) -> list[str]:
        """Returns the item embeddings."""
        return ["item_embedding"]

    def private_std(self) -> float:
        """Returns the standard deviation of new score functions; two layers as small as a linear one would learn from
        hardly anything."""
        return self.embedding_dim**-0.5 if self.options.hidden else self.options.init_std

    def recency(self) -> float:
        """Returns the option, or 0 where the data has no time."""
        return self.options.recency if self._ordered else 0.0

    def loss(self, batch: Batch) -> Tensor:
        """Returns (num_units,) mean binary cross-entropy."""
        user = batch["user"]
        inputs = nn.functional.embedding(batch["items"], self.item_embedding)
        if self.options.hidden:
            inputs = inputs @ self.hidden_weight[user].transpose(1, 2) + self.hidden_bias[user][:, None, :]
            inputs = inputs.relu()
        logits = (inputs @ self.score_weight[user][:, :, None])[..., 0] + self.score_bias[user][:, None]
        return pointwise_loss(logits, batch)

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        """Returns the score functions, and for the view "has" (num_users, num_items) what each user has and "steps"
        (num_users, 2) how far he moves an item that he has and one that he has not."""
        state = {name: self.get_parameter(name)[users] for name in self.private_names()}
        if self.options.personal_view:
            has = torch.from_numpy(histories.matrix(len(self.item_embedding))).to(self.item_embedding.device)
            count = has.sum(1, dtype=self.item_embedding.dtype)
            others = self.options.view_negatives * count / (has.shape[1] - count).clamp(min=1.0)
            state["has"] = has
            state["steps"] = self.options.view_learning_rate * torch.stack([torch.ones_like(others), others], dim=1)
        return state

    def score(self, state: UserState, items: Tensor) -> Tensor:
        """Returns (num_users, num_items) logits of the items in each user's view."""
        table = self.item_embedding.index_select(0, items)
        if not self.options.hidden:
            return self._seen_linearly(state, table, items)
        users = max(CACHED // max(len(items) * self.options.hidden, 1), 1)
        parts = zip(*(tensor.split(users) for tensor in state.values()), strict=True)
        blocks = [self._seen_through_a_layer(dict(zip(state, part, strict=True)), table, items) for part in parts]
        return torch.cat(blocks) if blocks else table.new_zeros(0, len(items))

    def _seen_linearly(self, state: UserState, table: Tensor, items: Tensor) -> Tensor:
        """Returns the scores; a step along w moves the score w . v + b by |w|^2 times as much."""
        weight = state["score_weight"]
        scores = torch.addmm(state["score_bias"][:, None], weight, table.T)
        if self.options.personal_view:
            has, steps = _cells(state, items)
            steps = steps * (weight**2).sum(1, keepdim=True)
            for _ in range(self.options.view_epochs):
                scores = scores - steps * (scores.sigmoid() - has)
        return scores

    def _seen_through_a_layer(self, state: UserState, table: Tensor, items: Tensor) -> Tensor:
        """Returns the scores; a step on v moves the hidden layer W v by W W' times its gradient, so no user's view of
        the items is ever laid out."""
        first, weight = state["hidden_weight"], state["score_weight"][:, None, :]
        before = table @ first.transpose(1, 2) + state["hidden_bias"][:, None, :]
        bias = state["score_bias"][:, None]
        if self.options.personal_view:
            has, steps = _cells(state, items)
            gram = first @ first.transpose(1, 2)
            for _ in range(self.options.view_epochs):
                scores = (before.relu() * weight).sum(-1) + bias
                slopes = steps * (scores.sigmoid() - has)
                before = before - slopes[:, :, None] * ((weight * (before > 0)) @ gram)
        return (before.relu() * weight).sum(-1) + bias


def _cells(state: UserState, items: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (num_users, num_items) labels and step sizes of these items."""
    has, steps = state["has"][:, items], state["steps"]
    return has.to(steps), torch.where(has, steps[:, :1], steps[:, 1:])
