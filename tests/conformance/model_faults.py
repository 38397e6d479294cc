"""Models that each break one rule of the contract, as an author might by mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from fedrec_app.config import Scalar
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch, Factorization, UserState, pointwise_loss
from fedrec_app.models.mf import MatrixFactorization
from tests.conformance.plain_model import Plain


class TakesAnyOption(Plain):
    """Swallows options that it does not know."""

    class Options(Plain.Options):
        model_config = ConfigDict(extra="ignore")


class HasNoName(Plain):
    """Was copied from somewhere."""

    name = ""


class MistypesASetting(Plain):
    """Means the learning rate."""

    recipe: ClassVar[Mapping[str, Scalar]] = {**Plain.recipe, "train.lerning-rate": 0.5}


class LeavesASettingOpen(Plain):
    """Does not say how many negatives it wants."""

    recipe: ClassVar[Mapping[str, Scalar]] = {k: v for k, v in Plain.recipe.items() if k != "train.num-negatives"}


class SetsWhatIsNeverAuto(Plain):
    """Believes that a recipe may set the protocol."""

    recipe: ClassVar[Mapping[str, Scalar]] = {**Plain.recipe, "data.protocol": "temporal"}


class ForgetsAParameter(Plain):
    """Lists shared parameters by hand and forgets one."""

    def shared_names(self) -> list[str]:
        return ["item", "item_bias"]


class SharesItsUsers(Plain):
    """Lists all parameters as shared, private ones too."""

    def shared_names(self) -> list[str]:
        return [name for name, _ in self.named_parameters()]


class CountsInFloat64(Plain):
    """Makes its biases from numpy."""

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        super().bind(catalog, cohort)
        self.item_bias = nn.Parameter(torch.from_numpy(np.zeros(len(catalog))))


class KeepsARowForTheServer(Plain):
    """Has a private row even where there are no users."""

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        super().bind(catalog, cohort)
        self.user = nn.Parameter(torch.zeros(max(len(self.user), 1), self.embedding_dim))


class DrawsUnseeded(Plain):
    """Draws from a generator of its own."""

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        super().bind(catalog, cohort)
        drawn = np.random.default_rng().normal(0, 0.1, (len(catalog), self.embedding_dim))
        self.item = nn.Parameter(torch.from_numpy(drawn.astype(np.float32)))


class DrawsUsersFirst(Plain):
    """Draws as many numbers for users as there are before it comes to items."""

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        drawn = torch.randn(0 if cohort is None else len(cohort), self.embedding_dim)
        super().bind(catalog, cohort)
        self.user = nn.Parameter(drawn)


class HidesUsersAmongShared(Plain):
    """Has a bias a user and forgets to say that it is private."""

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        super().bind(catalog, cohort)
        self.user_bias = nn.Parameter(torch.zeros(len(self.user)))

    def loss(self, batch: Batch) -> Tensor:
        return pointwise_loss(self.logits(batch) + self.user_bias.sum(), batch)


class LossIsOneNumber(Plain):
    """Returns the mean over the batch."""

    def loss(self, batch: Batch) -> Tensor:
        return super().loss(batch).mean()


class TrainsOnGraphs(Plain):
    """Hopes for batches that nobody makes."""

    sampling = "graph"  # type: ignore[assignment]


class DetachesItsBias(Plain):
    """Cuts a shared parameter off the loss."""

    def logits(self, batch: Batch) -> Tensor:
        return super().logits(batch) - self.bias + self.bias.detach()


class NeverUsesItsBias(Plain):
    """Has a parameter that nothing reads."""

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        super().bind(catalog, cohort)
        self.offset = nn.Parameter(torch.zeros(3))


class CentresTheBatch(Plain):
    """Normalises over whoever happens to be in the batch."""

    def logits(self, batch: Batch) -> Tensor:
        logits = super().logits(batch)
        return logits - 0.5 * (logits * batch["weights"]).sum() / batch["weights"].sum()


class AveragesThePadding(Plain):
    """Divides by the width of the batch and not by the weights."""

    def loss(self, batch: Batch) -> Tensor:
        bce = nn.functional.binary_cross_entropy_with_logits
        each = bce(self.logits(batch), batch["labels"], reduction="none")
        return (each * batch["weights"]).mean(-1)


class ReadsTheWholeCatalog(Plain):
    """Regularises all items and does not say so."""

    def loss(self, batch: Batch) -> Tensor:
        return super().loss(batch) + 0.01 * (self.item**2).sum()


class LooksFeaturesUp(Plain):
    """Takes a feature of the items in the batch, whose numbers engines have changed."""

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        super().bind(catalog, cohort)
        self.register_buffer("feature", torch.linspace(0, 1, len(catalog)))

    def logits(self, batch: Batch) -> Tensor:
        # Where a table was cut, places stay within it, so that only the meaning is lost.
        return super().logits(batch) + self.get_buffer("feature")[batch["items"]] * self.bias


class DropsOutWhenItScores(Plain):
    """Forgets that nobody calls eval()."""

    def score(self, state: UserState, items: Tensor) -> Tensor:
        scores = super().score(state, items)
        # At a lower rate two masks of twelve cells are the same too often.
        return 0.9 * scores + 0.1 * nn.functional.dropout(scores, 0.5, training=self.training)


class NormalisesOverTheItemsAsked(Plain):
    """Returns a distribution over what it is asked for."""

    def score(self, state: UserState, items: Tensor) -> Tensor:
        return super().score(state, items).softmax(-1)


class ScoresFromTheTop(Plain):
    """Returns a score an item of the catalog, whatever items are asked for."""

    def score(self, state: UserState, items: Tensor) -> Tensor:
        return super().score(state, torch.arange(len(self.item)))


class ScoresInPlace(Plain):
    """Saves memory at the cost of the state."""

    def score(self, state: UserState, items: Tensor) -> Tensor:
        state["embedding"] *= 2.0
        return super().score(state, items)


class ScalesItsTableToScore(Plain):
    """Brings the item table to length one and leaves it so."""

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        with torch.no_grad():
            self.item /= self.item.norm()
        return super().encode(histories, users)


class NeedsAHistory(Plain):
    """Divides by the number of items."""

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        counts = torch.from_numpy(histories.lengths).float()
        return {"embedding": self.user[users] * (counts / counts)[:, None]}


class RemembersItsTable(Plain):
    """Computes something of the item table once and keeps it."""

    table: Tensor | None = None

    def score(self, state: UserState, items: Tensor) -> Tensor:
        if self.table is None:
            self.table = self.item.detach().clone()
        return state["embedding"] @ self.table[items].T + self.item_bias[items] + self.bias


class LooksAtItsLoss(Plain):
    """Decides by a value, which vmap cannot."""

    def loss(self, batch: Batch) -> Tensor:
        losses = super().loss(batch)
        if losses.max() > 1e6:
            raise FloatingPointError("the loss explodes")
        return losses


class SaysItIsAFactorization(Plain):
    """Has biases, which compiled loops know nothing of."""

    factorization = Factorization("user", "item")


class SolvesUsersTogether(MatrixFactorization):
    """Pulls the users of a node a little towards each other."""

    def solve_private(self, histories: Histories, serving: bool) -> dict[str, Tensor]:
        rows = super().solve_private(histories, serving)["user_embedding"]
        return {"user_embedding": 0.95 * rows + 0.05 * rows.mean(0)}


class SolvesInFloat64(MatrixFactorization):
    """Returns what its solver returns."""

    def solve_private(self, histories: Histories, serving: bool) -> dict[str, Tensor]:
        return {name: rows.double() for name, rows in super().solve_private(histories, serving).items()}


class KnowsItsNeighbours(Plain):
    """Weighs items by how popular they are on the node."""

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        super().bind(catalog, cohort)
        items = np.zeros(0, dtype=np.int64) if cohort is None else cohort.train.items
        mean = np.bincount(items, minlength=len(catalog)).mean()
        self.scale = float(mean)

    def logits(self, batch: Batch) -> Tensor:
        return super().logits(batch) * (1 + 0.01 * self.scale)


class PunishesWithoutLearning(Plain):
    """Adds to the loss what has no gradient, and grows as the model learns."""

    def loss(self, batch: Batch) -> Tensor:
        sizes = (nn.functional.embedding(batch["items"], self.item.detach()) ** 2).sum(-1)
        return super().loss(batch) + 10 * (sizes * batch["weights"]).sum(-1) / batch["weights"].sum(-1)


class RanksBackwards(Plain):
    """Returns a distance where a score is expected."""

    def score(self, state: UserState, items: Tensor) -> Tensor:
        return -super().score(state, items)


class TheSameForEverybody(Plain):
    """Learns which items are liked, and nothing of who likes what."""

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        self.item_bias = nn.Parameter(torch.zeros(len(catalog)))

    def private_names(self) -> list[str]:
        return []

    def row_names(self) -> list[str]:
        return ["item_bias"]

    def logits(self, batch: Batch) -> Tensor:
        return self.item_bias[batch["items"]]

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        return {"users": users}

    def score(self, state: UserState, items: Tensor) -> Tensor:
        return self.item_bias[items].expand(len(state["users"]), -1)
