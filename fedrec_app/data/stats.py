"""How large, how sparse and how long-tailed a data set is, and how its users spread over nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec_app.data.cleaning import cleaning_of
from fedrec_app.data.schema import Dataset
from fedrec_app.errors import DataError

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_TOP_SHARES = (0.01, 0.1, 0.2)
_CURVE_POINTS = 200


def gini(counts: NDArray[np.int64]) -> float:
    """Returns the Gini coefficient of non-negative counts: 0 when all are equal, (n - 1) / n when one has all.

    Args:
        counts: (n,) at least one of them positive.
    """
    ascending = np.sort(counts).astype(np.float64)
    n = len(ascending)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ascending / (n * ascending.sum()))


def stats(dataset: Dataset, nodes: NDArray[np.int64] | None = None, num_nodes: int = 0) -> dict[str, Any]:
    """Returns plain numbers and lists that describe a data set.

    Keys: users, items, interactions, timestamps (whether the order of a user's interactions is known), density (share
    of the user-item pairs that occur), gini and share_of_top_1%, _10%, _20% items (at least one item),
    interactions_per_user (by quantile "p0" to "p100"), cold_items (catalog items without an interaction), popularity
    ([rank, interactions], at most 200 points of the long-tail curve), clicks for impressions, cleaning (see
    `CleaningReport.as_dict`) where a rule was asked for, and with `nodes` users_per_node, interactions_per_node and
    empty_nodes.

    Args:
        dataset: the data set.
        nodes: (num_users,) node of each user, see `partition`.
        num_nodes: how many nodes there are, empty ones included.
    """
    users, items = dataset.user_codes, dataset.item_codes
    per_user = np.bincount(users, minlength=dataset.num_users)
    per_item = np.sort(np.bincount(items, minlength=dataset.num_items))[::-1]
    pairs = len(users)
    if dataset.interactions.has_labels:
        pairs = len(np.unique(users * dataset.num_items + items))
    result: dict[str, Any] = {
        "users": dataset.num_users,
        "items": dataset.num_items,
        "interactions": len(users),
        "timestamps": dataset.interactions.has_timestamps,
        "density": pairs / (dataset.num_users * dataset.num_items),
        "gini": gini(per_item),
    }
    if dataset.interactions.has_labels:
        result["clicks"] = int((dataset.interactions.table["label"].to_numpy() == 1).sum())
    for share in _TOP_SHARES:
        top = max(1, round(share * dataset.num_items))
        result[f"share_of_top_{share:.0%}"] = float(per_item[:top].sum() / len(users))
    quantiles = np.quantile(per_user, _QUANTILES)
    result["interactions_per_user"] = {f"p{q * 100:g}": float(v) for q, v in zip(_QUANTILES, quantiles, strict=True)}
    result["cold_items"] = int((per_item == 0).sum())
    ranks = np.unique(np.geomspace(1, dataset.num_items, _CURVE_POINTS).round().astype(np.int64))
    result["popularity"] = [[int(rank), int(per_item[rank - 1])] for rank in ranks]
    if cleaning := cleaning_of(dataset):
        result["cleaning"] = cleaning
    if nodes is not None:
        users_per_node = np.bincount(nodes, minlength=num_nodes)
        rows_per_node = np.zeros(len(users_per_node), dtype=np.int64)
        np.add.at(rows_per_node, nodes, per_user)
        result["users_per_node"] = users_per_node.tolist()
        result["interactions_per_node"] = rows_per_node.tolist()
        result["empty_nodes"] = int((users_per_node == 0).sum())
    return result


def plot(stats: dict[str, Any], path: str | Path) -> None:
    """Writes a PNG with the long-tail curve and, where `stats` knows nodes, their sizes from large to small.

    Args:
        stats: what `stats` returned.
        path: of the PNG file.

    Raises:
        DataError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError("a plot needs matplotlib: pip install 'fedrec[report]'") from error
    with_nodes = "interactions_per_node" in stats
    figure = Figure(figsize=(11 if with_nodes else 5.5, 4), layout="constrained")
    axes = figure.subplots(1, 2 if with_nodes else 1, squeeze=False)[0]
    ranks, counts = zip(*stats["popularity"], strict=True)
    axes[0].plot(ranks, counts)
    axes[0].set(xscale="log", yscale="symlog", ylim=(0, None), xlabel="item, by popularity", ylabel="interactions")
    axes[0].set_title(f"{stats['items']:,} items, Gini {stats['gini']:.2f}")
    if with_nodes:
        sizes = sorted(stats["interactions_per_node"], reverse=True)
        axes[1].bar(range(1, len(sizes) + 1), sizes, width=1.0)
        axes[1].set(xlabel="node, by size", ylabel="interactions", title=f"{len(sizes):,} nodes")
    figure.savefig(path, format="png", dpi=120)
