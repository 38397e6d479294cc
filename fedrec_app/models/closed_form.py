"""The contract of a model whose shared parameters are computed from sums over users: one round, no gradients.

class Counts(ClosedForm):                            # how often each item was met
    name = "counts"

    def statistics(self, cohort):
        return {"items": np.bincount(cohort.train.items, minlength=cohort.num_items)}

    def sums(self):
        return CountSums(self.num_items)             # add(arrays, num_users), solve()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from fedrec_app.config import Scalar
from fedrec_app.data.cohort import Cohort
from fedrec_app.models.base import Batch, Recommender
from fedrec_app.records import Arrays

RECIPE: Mapping[str, Scalar] = {
    "model.embedding-dim": 1,
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
    "strategy.name": "closed-form",
    "strategy.options": "{}",
}
"""Of settings that such a model does not look at any value will do."""


class Sums(Protocol):
    """What the server adds up of the nodes' statistics."""

    def add(self, arrays: Arrays, num_users: int) -> None:
        """Adds what a node sent.

        Args:
            arrays: by name, as `statistics` returned them; of a node that may lie.
            num_users: of the node.

        Raises:
            ValueError: these are no statistics of so many users; nothing was added.
        """
        ...

    def solve(self) -> Arrays:
        """Returns the shared parameters, float32, by name."""
        ...

    def remarks(self) -> list[str]:
        """Returns what whoever reads of the run should know, a line each: items left out, for instance."""
        ...


class ClosedForm(Recommender):
    """A model that is solved by the server and not trained."""

    recipe: ClassVar[Mapping[str, Scalar]] = RECIPE

    def statistics(self, cohort: Cohort) -> Arrays:
        """Returns sums over the users of a node, by name.

        They leave the node for `privacy.min-cohort` users or more only: of few users they *are* the histories.
        """
        raise NotImplementedError

    def sums(self) -> Sums:
        """Returns an empty sum, on the server."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """Raises: there is nothing to train."""
        raise TypeError(f"model {self.name!r} is solved in closed form and has no loss")
