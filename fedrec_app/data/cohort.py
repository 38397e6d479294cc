"""The users of one node: what they did and what is held out to judge the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedrec_app.data.histories import Histories
from fedrec_app.seeding import user_key

Part = Literal["validation", "test"]


@dataclass(frozen=True)
class Cohort:
    """The users of one node. Nothing in here ever enters a message.

    Attributes:
        user_ids: ids as they stand in the data, one a user.
        num_items: size of the catalog that item positions refer to.
        train: what each user's model is trained on, oldest first.
        validation: what is held out to choose the round and the settings.
        test: what is held out to be read once.
        never_negative: items that are never drawn as a user's training negatives. `train` in every honest protocol;
            the leaky one adds the held-out items, which gives the answer away.
        ordered: the lists are in the order of time; False where the data has none.
    """

    user_ids: tuple[str, ...]
    num_items: int
    train: Histories
    validation: Histories
    test: Histories
    never_negative: Histories
    ordered: bool = True

    def __post_init__(self) -> None:
        # Compiled loops do not check positions: a wrong one would write over memory.
        for name in ("train", "validation", "test", "never_negative"):
            items = getattr(self, name).items
            if len(items) and not 0 <= items.min() <= items.max() < self.num_items:
                raise ValueError(
                    f"{name} holds items {items.min()} to {items.max()}: 0 to {self.num_items - 1} are there"
                )

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """(num_users,) what stands for each user in random streams, the same on every node."""
        return np.array([user_key(user) for user in self.user_ids], dtype=np.uint64)

    def __len__(self) -> int:
        return len(self.user_ids)

    def select(self, users: NDArray[np.int64]) -> Cohort:
        """Returns the cohort of these users alone.

        Args:
            users: (num_selected,) positions.
        """
        return Cohort(
            tuple(self.user_ids[u] for u in users), self.num_items, self.train.select(users),
            self.validation.select(users), self.test.select(users), self.never_negative.select(users), self.ordered,
        )  # fmt: skip

    def before(self, part: Part) -> Cohort:
        """Returns the cohort as it stands when `part` is predicted: at test time validation is past, and trained on.

        Every model's input is `before(part).train`.
        """
        if part == "validation":
            return self
        never_negative = self.never_negative.followed_by(self.validation)
        return replace(self, train=self.known(part), never_negative=never_negative)

    def known(self, part: Part) -> Histories:
        """Returns what a model may see of each user when `part` is predicted."""
        return self.train if part == "validation" else self.train.followed_by(self.validation)

    def held_out(self, part: Part) -> Histories:
        """Returns what is to be predicted."""
        return self.validation if part == "validation" else self.test
