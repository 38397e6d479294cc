"""A model solved from sums over users that keeps the contract, for faults to be planted in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import UserState
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.records import Arrays


class Pairs(ClosedForm):
    """Similarities of items by who met two of them, and a bias by who met an item last."""

    name = "pairs"

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        self.num_items = len(catalog)
        self.similarity = nn.Parameter(torch.zeros(len(catalog), len(catalog)))
        self.bias = nn.Parameter(torch.zeros(len(catalog)))

    def row_names(self) -> list[str]:
        return ["similarity", "bias"]

    def statistics(self, cohort: Cohort) -> Arrays:
        late = np.zeros(cohort.num_items)
        for items in (cohort.train[user] for user in range(len(cohort))):
            late[items[-1:]] += 1 / max(len(items), 1)
        met = cohort.train.matrix(cohort.num_items).astype(np.int64)
        return {"met": met.T @ met, "late": late}

    def sums(self) -> PairSums:
        return PairSums(self.num_items)

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        return {"history": torch.from_numpy(histories.matrix(self.num_items).astype(np.float32))}

    def score(self, state: UserState, items: Tensor) -> Tensor:
        return state["history"] @ self.similarity[:, items] + 0.01 * self.bias[items]


class PairSums:
    """The two sums, and how many users they are of."""

    def __init__(self, num_items: int) -> None:
        self.met = np.zeros((num_items, num_items), dtype=np.int64)
        self.late = np.zeros(num_items)
        self.users = 0

    def add(self, arrays: Arrays, num_users: int) -> None:
        self.check(arrays, num_users)
        self.take(arrays, num_users)

    def check(self, arrays: Arrays, num_users: int) -> None:
        """Raises ValueError where these are no statistics of so many users."""
        if set(arrays) != {"met", "late"}:
            raise ValueError(f"{sorted(arrays)} are not the statistics")
        for name, total in (("met", self.met), ("late", self.late)):
            self.check_array(name, arrays[name], total, num_users)

    def check_array(self, name: str, array: np.ndarray, total: np.ndarray, num_users: int) -> None:
        """Raises ValueError where this is no such statistic."""
        if array.dtype != total.dtype or array.shape != total.shape:
            raise ValueError(f"{name} is {array.dtype} of {array.shape}")
        if not (array.min() >= 0 and array.max() <= num_users):  # NaN is neither
            raise ValueError(f"{name} is {array.min()} to {array.max()}")

    def take(self, arrays: Arrays, num_users: int) -> None:
        """Adds what was checked."""
        self.met += arrays["met"]
        self.late += arrays["late"]
        self.users += num_users

    def solve(self) -> Arrays:
        norms = np.sqrt(np.abs(self.met.diagonal()))
        similarity = self.met / (norms[:, None] * norms + 1)
        np.fill_diagonal(similarity, 0)
        bias = self.late / max(self.users, 1)
        return {"similarity": similarity.astype(np.float32), "bias": bias.astype(np.float32)}

    def remarks(self) -> list[str]:
        return [f"of {self.users} users"]
