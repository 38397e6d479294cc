"""What models have in common that score an item by what goes with the items of a user's history."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from fedrec_app.compiled import njit
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import ModelOptions, UserState
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.models.cooccurrence import Cooccurrences, cooccurrences
from fedrec_app.records import Arrays

WHOLE = 4096
"""Up to so many items all weights are kept."""
AT_LEAST = 256
"""Weights kept of each item of a larger catalog, where the options do not say."""


class ItemItemOptions(ModelOptions):
    """Options of item-item models."""

    neighbors: int = Field(
        default=0, ge=0, description="k, weights kept of each item, the largest ones; 0: all up to 4096 items, then 256"
    )
    max_items: int = Field(
        default=8_000, ge=1, description="how many items have weights, the most popular ones; the others score 0"
    )
    recency: float = Field(
        default=0.0, ge=0, description="r: an item of the history weighs (1 + steps back)^-r; 0 in data without time"
    )


class ItemItem(ClosedForm):
    """Scores x B: x weighs the items of the user's history, column j of B what speaks for item j.

    Of each column the k weights that are largest in absolute value are kept. The shared parameters are, with all of
    them, "weights" (n, n), row j being column j of B; with fewer "neighbors" (n, k), the other items, whole numbers
    that float32 holds exactly, and "weights" (n, k).
    """

    def __init__(self, embedding_dim: int, options: Any) -> None:
        super().__init__(embedding_dim, options)
        self._ordered = True
        self._by_source: tuple[NDArray, NDArray, NDArray]
        self._made_of: tuple[Any, ...] = (None,) * 4

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        """Makes the weights, all zero."""
        self.num_items = len(catalog)
        self._ordered = cohort is None or cohort.ordered
        k = self.num_kept
        self.weights = nn.Parameter(torch.zeros(self.num_items, k))
        if k < self.num_items:
            self.neighbors = nn.Parameter(torch.zeros(self.num_items, k))

    @property
    def num_kept(self) -> int:
        """How many weights an item has."""
        wanted = self.options.neighbors or (self.num_items if self.num_items <= WHOLE else AT_LEAST)
        return min(wanted, self.num_items)

    def row_names(self) -> list[str]:
        """Returns all parameters."""
        return self.shared_names()

    def recency(self) -> float:
        """Returns the option, or 0 where the data has no time."""
        return self.options.recency if self._ordered else 0.0

    def statistics(self, cohort: Cohort) -> Arrays:
        """Returns how many users met both of two items; see `cooccurrence`."""
        return cooccurrences(cohort.train, cohort.num_items)

    def sums(self) -> ItemItemSums:
        """Returns an empty sum."""
        return ItemItemSums(self)

    def columns(self, gram: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns (m, m) B of the items that have weights; its diagonal does not matter.

        Args:
            gram: (m, m) how many users met both of two of them; may be overwritten.
        """
        raise NotImplementedError

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        """Returns x, (num_users, num_items)."""
        rows = histories.rows()
        back = histories.indptr[rows + 1] - 1 - np.arange(len(rows))
        x = np.zeros((len(histories), self.num_items), dtype=np.float32)
        x[rows, histories.items] = (1.0 + back) ** -self.recency()  # what was met twice weighs as the last time
        return {"history": torch.from_numpy(x).to(self.weights.device)}

    def score(self, state: UserState, items: Tensor) -> Tensor:
        """Returns (num_users, num_items) what the history speaks for each item."""
        x = state["history"]
        if self.num_kept == self.num_items:
            return x @ self.weights[items].T
        return (self._by_loops(x) if x.device.type == "cpu" else self._by_torch(x))[:, items]

    def _by_torch(self, x: Tensor) -> Tensor:
        n, k = self.weights.shape
        rows = torch.arange(n, device=x.device).repeat_interleave(k)
        places = torch.stack([rows, self.neighbors.detach().long().reshape(-1)])
        values = self.weights.detach().reshape(-1)
        return torch.sparse.mm(torch.sparse_coo_tensor(places, values, (n, n), check_invariants=True), x.T).T

    def _by_loops(self, x: Tensor) -> Tensor:
        made_of = (self.neighbors, self.neighbors._version, self.weights, self.weights._version)
        if not all(now is then for now, then in zip(made_of, self._made_of, strict=True)):
            self._by_source = _transposed(self.neighbors.detach().numpy(), self.weights.detach().numpy())
            self._made_of = made_of
        result = np.zeros(tuple(x.shape), dtype=np.float32)
        _add_rows(x.numpy(), *self._by_source, result)
        return torch.from_numpy(result)


class ItemItemSums:
    """The nodes' counts of pairs, and the weights that a model makes of them.

    Args:
        model: whose weights; bound to the catalog.
    """

    def __init__(self, model: ItemItem) -> None:
        self._model = model
        self._counts = Cooccurrences(model.num_items)

    def add(self, arrays: Arrays, num_users: int) -> None:
        """Adds what a node sent; see `Cooccurrences.add`."""
        self._counts.add(arrays, num_users)

    def kept(self) -> NDArray[np.int64]:
        """Returns the items that have weights: the most popular ones that anybody met, in the catalog's order."""
        popularity = self._counts.popularity()
        most = np.argsort(-popularity, kind="stable")[: self._model.options.max_items]
        return np.sort(most[popularity[most] > 0])

    def solve(self) -> Arrays:
        """Returns the shared parameters."""
        model, kept = self._model, self.kept()
        n, k = model.num_items, model.num_kept
        result: Arrays = {name: np.zeros((n, k), dtype=np.float32) for name in model.shared_names()}
        if not len(kept):
            return result
        columns = model.columns(self._counts.matrix(kept)).T  # row j: what speaks for item j
        np.fill_diagonal(columns, 0.0)
        if k == n:
            result["weights"][np.ix_(kept, kept)] = columns
            return result
        few = min(k, len(kept))
        for row, item in zip(columns, kept, strict=True):
            best = np.sort(np.argpartition(-np.abs(row), few - 1)[:few])
            result["neighbors"][item, :few] = kept[best]
            result["weights"][item, :few] = row[best]
        return result

    def remarks(self) -> list[str]:
        """Returns how many items have weights and how many each, where that is not all."""
        model, kept = self._model, self.kept()
        met = int((self._counts.popularity() > 0).sum())
        remarks = []
        if len(kept) < met:
            remarks.append(f"the {len(kept)} most popular of {met} items that somebody met have weights (max_items)")
        if model.num_kept < model.num_items:
            remarks.append(f"of each item the {model.num_kept} largest weights are kept (neighbors)")
        return remarks


def _transposed(neighbors: NDArray, weights: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Returns the weights by the item of the history: row i is targets and weights [starts[i]:starts[i + 1]]."""
    n, k = weights.shape
    targets, sources = np.repeat(np.arange(n, dtype=np.int32), k), neighbors.reshape(-1).astype(np.int32)
    values = weights.reshape(-1)
    there = np.flatnonzero(values)
    order = there[np.argsort(sources[there], kind="stable")]
    starts = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(sources[there], minlength=n), out=starts[1:])
    return starts, targets[order], values[order]


@njit(cache=True, nogil=True)
def _add_rows(x, starts, targets, values, result):  # type: ignore[no-untyped-def]
    for u in range(len(x)):
        for i in range(x.shape[1]):
            weight = x[u, i]
            if weight != 0:
                for at in range(starts[i], starts[i + 1]):
                    result[u, targets[at]] += weight * values[at]
