"""Recommendations from the folder of a run, on the machine that holds the data."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec_app import node_data
from fedrec_app.artifacts import RunFolder
from fedrec_app.config import DataConfig, RunConfig
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.errors import ConfigError, DataError, StateError
from fedrec_app.models.base import Recommender, initialise
from fedrec_app.models.registry import make_model
from fedrec_app.private_state import PrivateState
from fedrec_app.records import Arrays
from fedrec_app.training.plan import FitPlan
from fedrec_app.training.private_rows import with_optimizer_state
from fedrec_app.training.serving import scorer

NEWCOMER_EPOCHS = 50


def recommend(folder: RunFolder, user: str, history: list[str], k: int) -> dict[str, Any]:
    """Returns {"method", "items": [{"item_id", "score", "title"}]}, best first, items seen left out.

    A user of the data is scored with his private rows, brought up to date on all he did; somebody with a history
    alone gets rows by fold-in; with neither the most popular items are returned.

    Args:
        folder: of a run that completed.
        user: id in the data, or "".
        history: item ids, oldest first; not together with `user`.
        k: how many items; fewer where the catalog has no more.

    Raises:
        FedrecError: the run, the user or an item is unknown, or the data is not what it was.
    """
    if user and history:
        raise DataError("give a user of the data or a history, not both")
    if k < 1:
        raise ConfigError(f"k is {k}: at least 1 is expected")
    shared, metadata, popularity = folder.read_model()
    config = RunConfig.from_flat(folder.read_config())
    catalog = node_data.catalog(config.data)
    if catalog.hash != metadata["catalog-hash"]:
        raise StateError("the catalog has changed since this run: its items do not match the model's rows")
    at_round = int(metadata["round"])
    if user:
        cohort = _known_user(config.data, user)
        seen = cohort.train.items
        rows = _private_rows(folder, metadata["lineage"], at_round, cohort.keys)
        scores, solved = _scores(config, catalog, shared, cohort, rows, at_round)
        method = "private rows" if rows is not None or solved else "fold-in"
    elif history:
        seen = np.array([_position(catalog, item) for item in dict.fromkeys(history)], dtype=np.int64)
        ordered = node_data.prepared(config.data).dataset.interactions.has_timestamps
        scores, _ = _scores(config, catalog, shared, _cohort("", seen, len(catalog), ordered), None, at_round)
        method = "fold-in"
    else:
        if popularity is None:
            raise StateError("this run has no popularity: not every node told its counts (privacy.min-cohort)")
        seen, scores, method = np.zeros(0, dtype=np.int64), popularity.astype(np.float64), "popularity"
    scores = scores.copy()
    scores[seen] = -np.inf
    best = np.argsort(-scores, kind="stable")[: min(k, len(catalog) - len(np.unique(seen)))]
    return {"method": method, "items": [_item(catalog, int(i), float(scores[i])) for i in best]}


def _known_user(config: DataConfig, user: str) -> Cohort:
    everyone = node_data.cohort(config, None, 1)
    if user not in everyone.user_ids:
        raise DataError(_not_there("user", user, everyone.user_ids))
    place = everyone.user_ids.index(user)
    seen = np.concatenate([everyone.train[place], everyone.validation[place], everyone.test[place]])
    return _cohort(user, seen, everyone.num_items, everyone.ordered)


def _cohort(user: str, seen: NDArray[np.int64], num_items: int, ordered: bool) -> Cohort:
    """Returns one user with nothing held out."""
    history, nothing = Histories.from_lists([seen]), Histories.from_lists([[]])
    return Cohort((user,), num_items, history, nothing, nothing, history, ordered)


def _private_rows(folder: RunFolder, lineage: str, at_round: int, keys: NDArray[np.uint64]) -> Arrays | None:
    state_dir = folder.path.resolve().parent.parent / "nodes"
    for partition in sorted(p for p in (state_dir / lineage).glob("*") if p.name.isdecimal()):
        if (rows := PrivateState(state_dir, lineage, int(partition.name)).find(at_round, keys)) is not None:
            return rows
    return None


def _scores(
    config: RunConfig, catalog: Catalog, shared: Arrays, cohort: Cohort, rows: Arrays | None, at_round: int
) -> tuple[NDArray[np.float64], bool]:
    """Returns (num_items,) scores for the one user of a cohort, and whether his rows have a closed form."""
    model: Recommender = initialise(make_model(config.model), catalog, cohort, config.seed)
    start = rows or {n: model.get_parameter(n).detach().numpy().copy() for n in model.private_names()}
    start = with_optimizer_state(start, str(config.train.optimizer))
    epochs = NEWCOMER_EPOCHS if rows is None else int(config.evaluate.fold_in_epochs)
    plan, one = FitPlan.of(config.train, config.seed, at_round), np.array([0])
    scores = scorer(model, shared, start, cohort, one, plan, epochs, "recommend")(one)[0]
    return scores.double().numpy(), model.solves_private


def _position(catalog: Catalog, item: str) -> int:
    try:
        return catalog.position(item)
    except DataError:
        raise DataError(_not_there("item", item, catalog.item_ids)) from None


def _not_there(kind: str, name: str, names: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {name!r}: the data has {len(names)}, such as {', '.join(names[:5])}{hint}"


def _item(catalog: Catalog, position: int, score: float) -> dict[str, Any]:
    item: dict[str, Any] = {"item_id": catalog.item_ids[position], "score": score}
    if "title" in catalog.features.columns:
        item["title"] = str(catalog.features["title"].iloc[position])
    return item
