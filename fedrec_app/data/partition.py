"""Which node holds which users, and the cohort of a node."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedrec_app.data.cohort import Cohort
from fedrec_app.data.schema import Dataset
from fedrec_app.data.split import Split, split
from fedrec_app.errors import ConfigError, unknown
from fedrec_app.seeding import rng

SCHEMES = ("users", "by:<column>", "dirichlet:<alpha>")


def partition(users: pd.DataFrame, scheme: str, num_nodes: int, seed: int) -> NDArray[np.int64]:
    """Returns (num_users,) the node of each user, 0 to num_nodes - 1; nodes may stay empty.

    "users": shuffled users are dealt in turn, so that nodes differ by one user at most.
    "by:<column>": users of one value of an attribute stay together; the largest group goes first, each to the node
        with the fewest users. Users without a value are a group too.
    "dirichlet:<alpha>": quantity skew: the nodes' shares of the users are drawn from a symmetric Dirichlet
        distribution; alpha 0.1 gives a few large nodes and many small ones, alpha 100 nearly equal ones. Which users
        go where is random: tastes are not skewed.

    Args:
        users: (num_users rows) attributes, a column each.
        scheme: one of the above.
        num_nodes: how many nodes there are, at least 1.
        seed: of the run.

    Raises:
        ConfigError: no such scheme or column, an alpha that is no positive number, or no node.
    """
    if num_nodes < 1:
        raise ConfigError(f"cannot deal users to {num_nodes} nodes: at least 1 is needed")
    kind, colon, argument = scheme.partition(":")
    if scheme == "users":
        return _in_turn(len(users), num_nodes, seed)
    if kind == "by" and colon:
        return _by_column(users, argument, num_nodes)
    if kind == "dirichlet" and colon:
        return _dirichlet(len(users), argument, num_nodes, seed)
    raise ConfigError(unknown("partition", scheme, SCHEMES))


def _in_turn(num_users: int, num_nodes: int, seed: int) -> NDArray[np.int64]:
    nodes = np.empty(num_users, dtype=np.int64)
    nodes[rng(seed, "partition").permutation(num_users)] = np.arange(num_users) % num_nodes
    return nodes


def _by_column(users: pd.DataFrame, column: str, num_nodes: int) -> NDArray[np.int64]:
    if column not in users.columns:
        if users.columns.empty:
            raise ConfigError(f"cannot partition by {column!r}: the users of this data set have no attributes")
        raise ConfigError(unknown("user attribute", column, map(str, users.columns)))
    group, names = pd.factorize(users[column].astype("object").fillna("").astype(str))
    sizes = np.bincount(group, minlength=len(names))
    largest_first = sorted(range(len(names)), key=lambda g: (-sizes[g], names[g]))
    node_of_group = np.empty(len(names), dtype=np.int64)
    held = np.zeros(num_nodes, dtype=np.int64)
    for g in largest_first:
        node_of_group[g] = held.argmin()
        held[node_of_group[g]] += sizes[g]
    return node_of_group[group]


def _dirichlet(num_users: int, argument: str, num_nodes: int, seed: int) -> NDArray[np.int64]:
    try:
        alpha = float(argument)
    except ValueError:
        alpha = np.nan
    if not (np.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"partition 'dirichlet:{argument}': alpha must be a positive number, as in 'dirichlet:0.5'")
    generator = rng(seed, "partition", "dirichlet")
    shares = generator.dirichlet(np.full(num_nodes, alpha))
    middles = (np.arange(num_users) + 0.5) / num_users
    nodes = np.empty(num_users, dtype=np.int64)
    dealt = np.minimum(np.searchsorted(np.cumsum(shares), middles, side="right"), num_nodes - 1)
    nodes[generator.permutation(num_users)] = dealt
    return nodes


@dataclass(frozen=True, eq=False)
class Prepared:
    """A data set split for all of its users: what a worker process keeps, to cut cohorts from.

    Attributes:
        dataset: the data set.
        protocol: how it is split.
        split: the parts of every user's items, in data order.
        user_ids: (num_users,) ids in data order.
    """

    dataset: Dataset
    protocol: str
    split: Split
    user_ids: NDArray[np.object_]

    @classmethod
    def of(cls, dataset: Dataset, protocol: str, seed: int) -> Prepared:
        """Returns the data set split by a protocol, for all users.

        Impressions (rows with a label) count when they were clicked, and the earliest click on an item alone.

        Args:
            dataset: the data set.
            protocol: see `split`.
            seed: of the run.

        Raises:
            ConfigError: no such protocol.
            DataError: the protocol needs timestamps that are not there.
        """
        table = dataset.interactions.table
        users, items = dataset.user_codes, dataset.item_codes
        timestamps = table["timestamp"].to_numpy() if dataset.interactions.has_timestamps else None
        if dataset.interactions.has_labels:
            rows = _first_clicks(users, items, timestamps, table["label"].to_numpy(), dataset.num_items)
            users, items = users[rows], items[rows]
            timestamps = None if timestamps is None else timestamps[rows]
        user_ids = np.array(dataset.users.index.tolist(), dtype=object)
        parts = split(users, items, timestamps, dataset.users.index.tolist(), protocol, seed)
        for part in (parts.train, parts.validation, parts.test, parts.never_negative):
            part.indptr.flags.writeable = False
            part.items.flags.writeable = False
        user_ids.flags.writeable = False
        return cls(dataset, protocol, parts, user_ids)

    def members(self, node: int | None, num_nodes: int, scheme: str, seed: int) -> NDArray[np.int64]:
        """Returns (num_users_of_node,) the positions of a node's users in data order; of all users without a node.

        Args:
            node: 0 to num_nodes - 1, or None.
            num_nodes: how many nodes there are.
            scheme: see `partition`.
            seed: of the run.

        Raises:
            ConfigError: no such node or scheme.
        """
        if node is None:
            return np.arange(len(self.user_ids))
        if not 0 <= node < num_nodes:
            raise ConfigError(f"there is no node {node}: nodes are 0 to {num_nodes - 1}")
        return _dealt(self, scheme, num_nodes, seed)[node]

    def cohort(self, node: int | None = None, num_nodes: int = 1, scheme: str = "users", seed: int = 0) -> Cohort:
        """Returns the cohort of a node, in data order; arguments and errors as for `members`."""
        users = self.members(node, num_nodes, scheme, seed)
        parts = self.split
        train = parts.train.select(users)
        leaky = parts.never_negative is not parts.train
        return Cohort(
            user_ids=tuple(self.user_ids[users]),
            num_items=self.dataset.num_items,
            train=train,
            validation=parts.validation.select(users),
            test=parts.test.select(users),
            never_negative=parts.never_negative.select(users) if leaky else train,
            ordered=self.dataset.interactions.has_timestamps,
        )


@lru_cache(maxsize=2)
def _dealt(prepared: Prepared, scheme: str, num_nodes: int, seed: int) -> list[NDArray[np.int64]]:
    """Returns each node's users in data order: dealt once, not once for every node that asks for its own."""
    nodes = partition(prepared.dataset.users, scheme, num_nodes, seed)
    ends = np.cumsum(np.bincount(nodes, minlength=num_nodes))
    return np.split(np.argsort(nodes, kind="stable"), ends[:-1])


def _first_clicks(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    timestamps: NDArray[np.float64] | None,
    labels: NDArray[np.int8],
    num_items: int,
) -> NDArray[np.int64]:
    """Returns the rows, in file order, that are the earliest click of their user on their item."""
    clicks = np.flatnonzero(labels == 1)
    if timestamps is not None:
        clicks = clicks[np.argsort(timestamps[clicks], kind="stable")]
    again = pd.Series(users[clicks] * num_items + items[clicks]).duplicated().to_numpy()
    return np.sort(clicks[~again])


def build_cohort(dataset: Dataset, protocol: str, scheme: str, num_nodes: int, node: int | None, seed: int) -> Cohort:
    """Returns the cohort of one node, or of all users without a node; to build several, keep a `Prepared`.

    Args:
        dataset: the data set.
        protocol: see `split`.
        scheme: see `partition`.
        num_nodes: how many nodes there are.
        node: 0 to num_nodes - 1, or None.
        seed: of the run.

    Raises:
        ConfigError: no such protocol, scheme or node.
        DataError: the protocol needs timestamps that are not there.
    """
    return Prepared.of(dataset, protocol, seed).cohort(node, num_nodes, scheme, seed)
