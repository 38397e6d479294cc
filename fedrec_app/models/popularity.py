"""Every user gets the items that most users met: what any personal model has to beat."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import UserState
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.records import Arrays

COUNTS = "counts"


class Popularity(ClosedForm):
    """One shared number an item: how many users met it."""

    name = "popularity"
    summary_line = "the same for everybody: items by how many users met them, in one round"
    personal = False

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        """Makes the counts, all zero."""
        self.popularity = nn.Parameter(torch.zeros(len(catalog)))

    def row_names(self) -> list[str]:
        """Returns the counts."""
        return ["popularity"]

    def statistics(self, cohort: Cohort) -> Arrays:
        """Returns (num_items,) how many users met each item, int64."""
        met = np.unique(cohort.train.rows() * cohort.num_items + cohort.train.items)
        return {COUNTS: np.bincount(met % cohort.num_items, minlength=cohort.num_items)}

    def sums(self) -> PopularitySums:
        """Returns an empty sum."""
        return PopularitySums(len(self.popularity))

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        """Returns how many users there are."""
        return {"num_users": torch.tensor(len(histories))}

    def score(self, state: UserState, items: Tensor) -> Tensor:
        """Returns (num_users, num_items) the counts."""
        return self.popularity[items].expand(int(state["num_users"]), -1)


class PopularitySums:
    """Users of each item.

    Args:
        num_items: of the catalog.
    """

    def __init__(self, num_items: int) -> None:
        self._counts: NDArray[np.int64] = np.zeros(num_items, dtype=np.int64)

    def add(self, arrays: Arrays, num_users: int) -> None:
        """Adds what a node sent.

        Raises:
            ValueError: these are no counts.
        """
        counts = arrays.get(COUNTS)
        if set(arrays) != {COUNTS} or counts is None or counts.shape != self._counts.shape or counts.dtype != np.int64:
            raise ValueError(f"{sorted(arrays)} where {COUNTS!r}, int64 of {self._counts.shape}, is expected")
        if counts.min(initial=0) < 0 or counts.max(initial=0) > num_users:
            raise ValueError(f"{COUNTS!r} is {counts.min()} to {counts.max()}: 0 to the {num_users} users is allowed")
        self._counts += counts

    def solve(self) -> Arrays:
        """Returns the shared parameter."""
        return {"popularity": self._counts.astype(np.float32)}

    def remarks(self) -> list[str]:
        """Returns nothing."""
        return []
