"""Recommendations from the folder of a run, or of several as one, on the machine that holds the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec_app import node_data
from fedrec_app.artifacts import RunFolder
from fedrec_app.config import DataConfig
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.ensemble import fused, require_fusion
from fedrec_app.errors import ConfigError, DataError, StateError, did_you_mean
from fedrec_app.finished import FinishedRun, Served, require_same_data
from fedrec_app.run_weights import by_score, normalised


def recommend(folder: RunFolder, user: str, history: list[str], k: int) -> dict[str, Any]:
    """Returns what `recommend_by` returns for one run; arguments as there."""
    return recommend_by([folder], user, history, k)


def recommend_by(
    folders: Sequence[RunFolder],
    user: str,
    history: list[str],
    k: int,
    fusion: str = "rank",
    weights: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Returns {"method", "items": [{"item_id", "score", "title"}], "warnings"}, best first, items seen left out.

    A user of the data is scored with his private rows, brought up to date on all he did; somebody with a history
    alone gets rows by fold-in, and so does a user whose rows are not here, which a warning says; with neither the most
    popular items are returned. Several runs are fused, and "runs" tells each one's weight and method.

    Args:
        folders: of runs that completed, of the same data.
        user: id in the data, or "".
        history: item ids, oldest first; not together with `user`.
        k: how many items; fewer where the catalog has no more.
        fusion: "rank" or "score", see `ensemble`.
        weights: one a run; in proportion to their validation scores when absent.

    Raises:
        FedrecError: a run, the user or an item is unknown, the runs do not fit together, or the data is not what it
            was.
    """
    if user and history:
        raise DataError("give a user of the data or a history, not both")
    if k < 1:
        raise ConfigError(f"k is {k}: at least 1 is expected")
    require_fusion(fusion)
    runs = [FinishedRun.read(folder) for folder in folders]
    require_same_data(runs)
    catalog, data = runs[0].catalog(), runs[0].config.data
    shares = _weights(runs, weights)
    if not user and not history:
        return most_popular(runs, catalog, k)
    if user:
        if (cohort := find_user(data, user)) is None:
            everyone = node_data.cohort(data, None, 1).user_ids
            raise DataError(_not_there("user", user, everyone))
    else:
        ordered = node_data.prepared(data).dataset.interactions.has_timestamps
        cohort = somebody(catalog, history, ordered)
    return ranked(runs, catalog, cohort, k, fusion, shares)


def ranked(
    runs: Sequence[FinishedRun], catalog: Catalog, cohort: Cohort, k: int, fusion: str, shares: NDArray[np.float64]
) -> dict[str, Any]:
    """Returns what `recommend_by` does for the one user of a cohort; somebody without an id has no rows of his own.

    Args:
        runs: of the same data.
        catalog: theirs.
        cohort: one user, nothing held out.
        k, fusion: see `recommend_by`.
        shares: (num_runs,) weights that sum to 1.
    """
    (user,) = cohort.user_ids
    served = [run.serve(catalog, cohort, "recommend") for run in runs]
    methods = ["private rows" if user and one.has_rows[0] else "fold-in" for one in served]
    result: dict[str, Any] = {"method": methods[0] if len(runs) == 1 else f"{fusion} fusion"}
    result |= _best(catalog, _scores(served, cohort, fusion, shares), cohort.train.items, k)
    if len(runs) > 1:
        of_runs = zip(runs, shares.tolist(), methods, strict=True)
        result["runs"] = [{"run": run.name, "weight": share, "method": how} for run, share, how in of_runs]
    if user and (
        lines := [f"{run.name}: {line}" for run, one in zip(runs, served, strict=True) for line in one.warnings()]
    ):
        result["warnings"] = lines
    return result


def _weights(runs: Sequence[FinishedRun], given: Sequence[float] | None) -> NDArray[np.float64]:
    if given is not None:
        return normalised(given, len(runs))
    if len(runs) == 1:
        return np.ones(1)
    return by_score([run.validation(runs[0].config.evaluate.metric) for run in runs])


def most_popular(runs: Sequence[FinishedRun], catalog: Catalog, k: int) -> dict[str, Any]:
    """Returns the items that most users met, as `recommend_by` does.

    Raises:
        StateError: no run knows how many did, or one knows it wrong.
    """
    return {"method": "popularity", **_best(catalog, _popularity(runs, len(catalog)), np.zeros(0, dtype=np.int64), k)}


def _popularity(runs: Sequence[FinishedRun], num_items: int) -> NDArray[np.float64]:
    for run in runs:
        if (counts := run.counts(num_items)) is not None:
            return counts
    raise StateError("this run has no popularity: not every node told its counts (privacy.min-cohort)")


def _scores(served: Sequence[Served], cohort: Cohort, fusion: str, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns (num_items,) scores for the one user of a cohort: a single run's own, or fused."""
    blocks = [one.scores(np.array([0])) for one in served]
    if len(blocks) == 1:
        return blocks[0][0].double().cpu().numpy()
    return fused(fusion, blocks, shares, cohort.train)[0]


def _best(catalog: Catalog, scores: NDArray[np.float64], seen: NDArray[np.int64], k: int) -> dict[str, Any]:
    scores = scores.copy()
    scores[seen] = -np.inf
    best = np.argsort(-scores, kind="stable")[: min(k, len(catalog) - len(np.unique(seen)))]
    return {"items": [_item(catalog, int(i), float(scores[i])) for i in best]}


def find_user(config: DataConfig, user: str) -> Cohort | None:
    """Returns a user of the data with all he did, nothing held out; None where the data does not have him."""
    everyone = node_data.cohort(config, None, 1)
    if user not in everyone.user_ids:
        return None
    place = everyone.user_ids.index(user)
    seen = np.concatenate([everyone.train[place], everyone.validation[place], everyone.test[place]])
    return _cohort(user, seen, everyone.num_items, everyone.ordered)


def somebody(catalog: Catalog, history: Sequence[str], ordered: bool) -> Cohort:
    """Returns a user without an id who met these items.

    Args:
        catalog: the items.
        history: item ids, oldest first.
        ordered: whether the model is to believe the order.

    Raises:
        DataError: an item is not in the catalog.
    """
    seen = np.array([_position(catalog, item) for item in dict.fromkeys(history)], dtype=np.int64)
    return _cohort("", seen, len(catalog), ordered)


def _cohort(user: str, seen: NDArray[np.int64], num_items: int, ordered: bool) -> Cohort:
    """Returns one user with nothing held out."""
    history, nothing = Histories.from_lists([seen]), Histories.from_lists([[]])
    return Cohort((user,), num_items, history, nothing, nothing, history, ordered)


def _position(catalog: Catalog, item: str) -> int:
    try:
        return catalog.position(item)
    except DataError:
        raise DataError(_not_there("item", item, catalog.item_ids)) from None


def _not_there(kind: str, name: str, names: Sequence[str]) -> str:
    some = ", ".join(names[:5])
    return f"unknown {kind} {name!r}: the data has {len(names)}, such as {some}{did_you_mean(name, names)}"


def _item(catalog: Catalog, position: int, score: float) -> dict[str, Any]:
    item: dict[str, Any] = {"item_id": catalog.item_ids[position], "score": score}
    if "title" in catalog.features.columns:
        item["title"] = str(catalog.features["title"].iloc[position])
    return item
