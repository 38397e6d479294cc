"""Which items a user has, read off an update: what an update gives away.

Popularity needs no update: it is what anybody knows. Rows that moved are those that a user met, his negatives too. And
the rows of his own items move along his embedding while those of his negatives move against it, so the leading left
singular vector of the delta of an item table tells them apart by its sign. What is attacked may be the update of one
user or a sum over several: it is asked for one user at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedrec_app.audits.updates import NodeUpdate

POPULARITY = "popularity"


@dataclass(frozen=True)
class Seen:
    """What an attacker sees.

    Attributes:
        table: (num_items, width) delta of an item table.
        vector: (num_items,) its leading left singular vector, see `turned`.
        popularity: (num_items,) how many users have each item.
        count: how many items the user has, which the attacker is told.
    """

    table: NDArray
    vector: NDArray
    popularity: NDArray
    count: int


Attack = Callable[[Seen], NDArray[np.int64]]
"""From what is seen to the positions of items that the user is said to have."""


def most_popular(seen: Seen) -> NDArray[np.int64]:
    """Returns the items that most users have."""
    return _largest(seen.popularity, seen.count)


def moved_rows(seen: Seen) -> NDArray[np.int64]:
    """Returns every item whose row moved."""
    return np.flatnonzero(seen.table.any(axis=1))


def longest_rows(seen: Seen) -> NDArray[np.int64]:
    """Returns the items whose rows moved most."""
    return _largest(np.square(seen.table, dtype=np.float64).sum(axis=1), seen.count)


def one_side(seen: Seen) -> NDArray[np.int64]:
    """Returns every item on one side of the singular vector."""
    return np.flatnonzero(seen.vector > 0)


def one_end(seen: Seen) -> NDArray[np.int64]:
    """Returns the items at one end of the singular vector."""
    return _largest(seen.vector, seen.count)


ATTACKS: dict[str, Attack] = {
    POPULARITY: most_popular,
    "non-zero rows": moved_rows,
    "longest rows": longest_rows,
    "singular vector, sign": one_side,
    "singular vector, largest": one_end,
}


@dataclass
class Recovery:
    """How well users' items were found.

    Attributes:
        scores: attack -> F1 for each user, by item table and rule of `turned`; popularity needs none and is under "".
    """

    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @property
    def users(self) -> int:
        """How many users were attacked."""
        return len(self.scores.get(POPULARITY, {}).get("", []))

    def f1(self) -> dict[str, float]:
        """Returns the mean F1 over users of each attack, on the item table and by the rule that give away most."""
        return {
            attack: max(float(np.mean(values)) for values in views.values())
            for attack, views in self.scores.items()
            if any(views.values())
        }

    def best(self) -> float:
        """Returns the largest F1 of them, 0 where nobody was attacked."""
        return max(self.f1().values(), default=0.0)


def attack_updates(
    updates: Iterable[NodeUpdate],
    tables: Sequence[str],
    popularity: NDArray,
    most: int,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Recovery:
    """Returns how well the items of users are found in the updates of their nodes.

    Args:
        updates: of nodes; of each of their users the items are looked for.
        tables: shared parameters with a row an item.
        popularity: (num_items,) how many users have each item: what the attacker knows beforehand.
        most: users to be attacked, at most.
        watch: called with (users done, of how many at most).
    """
    found = Recovery()
    for update in updates:
        views = {}
        for table in tables:
            matrix = update.deltas[table].reshape(len(popularity), -1)
            for rule, vector in turned(leading_vector(matrix), popularity).items():
                views[f"{table}, {rule}"] = matrix, vector
        for items in update.items[: most - found.users]:
            for name, attack in ATTACKS.items():
                by_view = found.scores.setdefault(name, {})
                if name == POPULARITY:
                    nothing = Seen(np.zeros((0, 1)), np.zeros(0), popularity, len(items))
                    by_view.setdefault("", []).append(f1(attack(nothing), items))
                    continue
                for view, (matrix, vector) in views.items():
                    guess = attack(Seen(matrix, vector, popularity, len(items)))
                    by_view.setdefault(view, []).append(f1(guess, items))
            watch(found.users, most)
        if found.users >= most:
            break
    return found


def leading_vector(matrix: NDArray) -> NDArray[np.float64]:
    """Returns (num_items,) the leading left singular vector, whichever way it points, and zero for a zero matrix.

    Args:
        matrix: (num_items, width).
    """
    largest = np.abs(matrix).max(initial=0.0)
    if largest == 0 or not np.isfinite(largest):
        return np.zeros(len(matrix))
    scaled = matrix.astype(np.float64) / largest
    return scaled @ np.linalg.eigh(scaled.T @ scaled)[1][:, -1]


def turned(vector: NDArray, popularity: NDArray) -> dict[str, NDArray]:
    """Returns the vector turned by each rule that an attacker may follow, so that the user's items are above 0: to the
    side of popular items, or to that of fewer items, as a user has more negatives than items.

    Args:
        vector: (num_items,).
        popularity: (num_items,) how many users have each item.
    """
    sides = vector > 0, vector < 0
    means = [popularity[side].mean() if side.any() else -np.inf for side in sides]
    numbers = [np.count_nonzero(side) or np.inf for side in sides]
    return {
        "popular": vector if means[0] >= means[1] else -vector,
        "fewer": vector if numbers[0] <= numbers[1] else -vector,
    }


def f1(guess: NDArray[np.int64], items: NDArray[np.int64]) -> float:
    """Returns the harmonic mean of precision and recall.

    Args:
        guess: positions, each once.
        items: those that the user has, each once, at least one.
    """
    return 2 * len(np.intersect1d(guess, items, assume_unique=True)) / (len(guess) + len(items))


def _largest(values: NDArray, count: int) -> NDArray[np.int64]:
    """Returns the positions of the largest values, the first ones among equals."""
    return np.argsort(-values, kind="stable")[:count]
