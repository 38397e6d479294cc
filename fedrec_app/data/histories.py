"""Item lists of many users in one compressed block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Histories:
    """The item lists of `len(self)` users, oldest item first.

    Attributes:
        indptr: (num_users + 1,) int64; user u's items are `items[indptr[u]:indptr[u + 1]]`.
        items: (num_items_in_all_lists,) int64 positions in the catalog.
    """

    indptr: NDArray[np.int64]
    items: NDArray[np.int64]

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int] | NDArray[np.int64]]) -> Histories:
        """Returns the block that holds these lists, one a user."""
        arrays = [np.asarray(items, dtype=np.int64) for items in lists]
        indptr = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(a) for a in arrays], out=indptr[1:])
        return cls(indptr, np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64))

    @classmethod
    def from_rows(cls, users: NDArray[np.int64], items: NDArray[np.int64], num_users: int) -> Histories:
        """Returns the block of rows (user, item); the order of a user's rows is kept.

        Args:
            users: (num_rows,) positions of users, each below num_users.
            items: (num_rows,) positions of items.
            num_users: how many lists the block has, empty ones included.
        """
        order = np.argsort(users, kind="stable")
        indptr = np.zeros(num_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(users, minlength=num_users), out=indptr[1:])
        return cls(indptr, np.asarray(items, dtype=np.int64)[order])

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, user: int) -> NDArray[np.int64]:
        """Returns the items of one user, oldest first (a view)."""
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(num_users,) number of items of each user."""
        return self.indptr[1:] - self.indptr[:-1]

    def rows(self) -> NDArray[np.int64]:
        """Returns (num_rows,) the user of each entry of `items`."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def select(self, users: NDArray[np.int64]) -> Histories:
        """Returns the lists of these users, in this order.

        Args:
            users: (num_selected,) positions of users.
        """
        rows = as_range(users)
        if isinstance(rows, slice):
            found = self.between(rows.start, rows.stop)
            return Histories(found.indptr, found.items.copy())
        lengths = self.lengths[users]
        indptr = np.zeros(len(users) + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        return Histories(
            indptr, self.items[np.arange(indptr[-1]) + np.repeat(self.indptr[users] - indptr[:-1], lengths)]
        )

    def between(self, start: int, stop: int) -> Histories:
        """Returns the lists of users `start` to `stop - 1`, as views.

        Args:
            start: position of the first user.
            stop: position after the last one, at least `start`.
        """
        indptr = self.indptr[start : stop + 1]
        return Histories(indptr - indptr[0], self.items[indptr[0] : indptr[-1]])

    def followed_by(self, later: Histories) -> Histories:
        """Returns for every user his list followed by his list in `later`.

        Args:
            later: as many lists as this block has.
        """
        if len(later) != len(self):
            raise ValueError(f"histories of {len(self)} and {len(later)} users do not match")
        items = np.empty(len(self.items) + len(later.items), dtype=np.int64)
        items[np.arange(len(self.items)) + np.repeat(later.indptr[:-1], self.lengths)] = self.items
        items[np.arange(len(later.items)) + np.repeat(self.indptr[1:], later.lengths)] = later.items
        return Histories(self.indptr + later.indptr, items)

    def padded(self) -> NDArray[np.int64]:
        """Returns (num_users, longest) the lists one below the other, padded with 0."""
        lengths = self.lengths
        items = np.zeros((len(self), int(lengths.max(initial=0))), dtype=np.int64)
        items[np.arange(items.shape[1])[None, :] < lengths[:, None]] = self.items
        return items

    def matrix(self, num_items: int) -> NDArray[np.bool_]:
        """Returns (num_users, num_items) whether the user has the item: for blocks of users, not for all of them."""
        dense = np.zeros((len(self), num_items), dtype=np.bool_)
        dense[self.rows(), self.items] = True
        return dense


def as_range(users: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Returns positions that follow each other as a slice, which selects without copying; others as they are.

    Args:
        users: (num_selected,) positions, none negative.
    """
    if len(users) and users[-1] - users[0] == len(users) - 1 and (users[1:] - users[:-1] == 1).all():
        return slice(int(users[0]), int(users[-1]) + 1)
    return users


def recency_weights(lengths: NDArray[np.int64], longest: int, recency: float) -> NDArray[np.float64]:
    """Returns (B, longest) weights (1 + steps back)^-recency of items listed oldest first; 0 is padding.

    Args:
        lengths: (B,) number of items of each user.
        longest: width.
        recency: exponent; 0 weighs all alike.
    """
    back = lengths[:, None] - 1 - np.arange(longest)[None, :]
    return np.where(back >= 0, (1.0 + np.maximum(back, 0)) ** -recency, 0.0)
