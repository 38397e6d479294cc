"""A model of sequences that keeps the contract, and models that each break one rule of it, by mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedrec_app.config import Scalar
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch, Recommender, UserState
from fedrec_app.models.dropout import dropout
from fedrec_app.models.sequence_rules import SequenceRules


class Means(Recommender):
    """The mean of the items so far, and of their places, scores the next: nothing is wrong with it."""

    name = "means"
    sampling = "sequence"
    whole_catalog = True
    max_length = 6
    recipe: ClassVar[Mapping[str, Scalar]] = {
        "model.embedding-dim": 4,
        "train.unit": "user",
        "train.local-epochs": 1,
        "train.batch-size": 0,
        "train.optimizer": "sgd",
        "train.learning-rate": 1.0,
        "train.private-learning-rate": 1.0,
        "train.private-epochs": 0,
        "train.num-negatives": 0,
        "train.weight-decay": 0.0,
        "evaluate.fold-in-epochs": 0,
        "strategy.name": "fedadam",
        "strategy.options": '{"learning_rate": 0.1}',
    }

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        self.met = nn.Parameter(torch.randn(len(catalog), self.embedding_dim) * 0.1)
        self.next = nn.Parameter(torch.randn(len(catalog), self.embedding_dim) * 0.1)
        self.place = nn.Parameter(torch.zeros(self.max_length, self.embedding_dim))

    def row_names(self) -> list[str]:
        return ["met", "next"]

    def states(self, items: Tensor, present: Tensor, noise: Tensor | None) -> Tensor:
        cells = nn.functional.embedding(items, self.met) + self.places(items.shape[1])
        cells = dropout(cells, 0.1, noise, 0) * present[..., None]
        return self.sums(cells) / self.sums(present[..., None]).clamp(min=1.0)

    def places(self, width: int) -> Tensor:
        return self.place[-width:]

    def sums(self, cells: Tensor) -> Tensor:
        return cells.cumsum(1)

    def loss(self, batch: Batch) -> Tensor:
        logits = self.states(batch["items"], batch["present"], batch["noise"]) @ self.next.T
        each = nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none")
        return self.mean(each.view(batch["targets"].shape), batch)

    def mean(self, each: Tensor, batch: Batch) -> Tensor:
        return (each * batch["weights"]).sum(1) / batch["weights"].sum(1).clamp(min=1.0)

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        items = torch.zeros(len(histories), self.max_length, dtype=torch.int64)
        present = torch.zeros(len(histories), self.max_length)
        for user in range(len(histories)):
            last = self.read(histories[user])
            if len(last):
                items[user, -len(last) :] = torch.from_numpy(last)
                present[user, -len(last) :] = 1.0
        return {"state": self.states(items, present, None)[:, -1]}

    def read(self, history: np.ndarray) -> np.ndarray:
        return history[-self.max_length :].copy()

    def score(self, state: UserState, items: Tensor) -> Tensor:
        return state["state"] @ self.next[items].T


class HasNoLength(Means):
    """Does not say how many items it reads."""

    max_length = 0


class CropsTooOften(Means):
    """Takes the share of epochs for a percentage."""

    crop = 50.0


class CountsFromTheFront(Means):
    """Numbers places from the left, so that they move with whoever is beside."""

    def places(self, width: int) -> Tensor:
        return self.place[:width]


class AttendsThePadding(Means):
    """Forgets which cells are there."""

    def states(self, items: Tensor, present: Tensor, noise: Tensor | None) -> Tensor:
        return super().states(items, torch.ones_like(present), noise)


class AveragesTheWidth(Means):
    """Divides by the width of the batch."""

    def mean(self, each: Tensor, batch: Batch) -> Tensor:
        return (each * batch["weights"]).mean(1)


class LooksAhead(Means):
    """Takes the mean of all items for each of them."""

    def sums(self, cells: Tensor) -> Tensor:
        return cells.sum(1, keepdim=True).expand_as(cells)


class LearnsWhatItMayNot(Means):
    """Counts every target, those that weigh nothing too."""

    def mean(self, each: Tensor, batch: Batch) -> Tensor:
        return (each * batch["present"]).sum(1) / batch["present"].sum(1).clamp(min=1.0)


class ReadsTheFirst(Means):
    """Cuts a history at the wrong end."""

    def read(self, history: np.ndarray) -> np.ndarray:
        return history[: self.max_length].copy()


class NeedsTwoItems(Means):
    """Has a penalty that does not wait for something to learn."""

    def mean(self, each: Tensor, batch: Batch) -> Tensor:
        return super().mean(each, batch) + 1e-2 * (self.next**2).mean()


class DropsOutByChance(Means):
    """Draws what it leaves out from torch's generator."""

    def states(self, items: Tensor, present: Tensor, noise: Tensor | None) -> Tensor:
        return nn.functional.dropout(super().states(items, present, None), 0.3, training=noise is not None)


class Asks(Means):
    """Means with more rules: the sample in place of the catalog, and items that are hidden."""

    whole_catalog = False
    sequence_rules = SequenceRules(mask=0.9, mask_share=0.4, reorder=0.5, negatives=4)

    def loss(self, batch: Batch) -> Tensor:
        states = self.states(batch["items"], batch["present"] - batch["hidden"], batch["noise"])
        rows, others = (nn.functional.embedding(batch[name], self.next) for name in ("targets", "negatives"))
        logit = (states * rows).sum(-1, keepdim=True)
        logits = torch.cat([logit, states @ others.transpose(1, 2)], dim=-1)
        return self.mean(logits.logsumexp(-1) - logit[..., 0], batch)


class ReadsTheCatalog(Means):
    """Asks for a sample and reads every item all the same, which are cut away."""

    whole_catalog = False
    sequence_rules = SequenceRules(negatives=4)


class LooksUnderTheMask(Asks):
    """Reads what is hidden."""

    def loss(self, batch: Batch) -> Tensor:
        return super().loss({**batch, "hidden": torch.zeros_like(batch["hidden"])})


class FillsTheBlank(Means):
    """The mean of what is shown stands for what is hidden: nothing is wrong with it."""

    sequence_rules = SequenceRules(masked=True, mask_last=0.5)

    def states(self, items: Tensor, present: Tensor, noise: Tensor | None) -> Tensor:
        cells = dropout(nn.functional.embedding(items, self.met), 0.1, noise, 0) * present[..., None]
        mean = cells.sum(1, keepdim=True) / present.sum(1).clamp(min=1.0)[:, None, None]
        return mean + self.places(items.shape[1])

    def places(self, width: int) -> Tensor:
        return torch.cat([self.place, self.place[:1]])[-width:]

    def loss(self, batch: Batch) -> Tensor:
        return super().loss({**batch, "present": batch["present"] - batch["hidden"]})
