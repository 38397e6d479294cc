"""Recommendations from the folder of a run, on the machine that holds the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec_app import node_data
from fedrec_app.artifacts import RunFolder
from fedrec_app.config import RunConfig
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.errors import DataError, StateError, unknown
from fedrec_app.models.base import Recommender, initialise
from fedrec_app.models.registry import make_model
from fedrec_app.private_state import PrivateState
from fedrec_app.records import Arrays
from fedrec_app.training.plan import FitPlan
from fedrec_app.training.private_rows import fit_private, with_optimizer_state
from fedrec_app.training.users import load_shared

NEWCOMER_EPOCHS = 50


def recommend(folder: RunFolder, user: str, history: list[str], k: int) -> dict[str, Any]:
    """Returns {"method", "items": [{"item_id", "score", "title"}]}, best first, items seen left out.

    A user of the data is scored with his private rows, brought up to date on all he did; somebody with a history alone gets
    rows by fold-in; with neither the most popular items are returned.

    Args:
        folder: of a run that completed.
        user: id in the data, or "".
        history: item ids, oldest first; not together with `user`.
        k: how many items; fewer where the catalog has no more.

    Raises:
        FedrecError: the run, the user or an item is unknown.
    """
    if user and history:
        raise DataError("give a user of the data or a history, not both")
    shared, metadata, popularity = folder.read_model()
    config = RunConfig.from_flat(folder.read_config())
    catalog = node_data.catalog(config.data)
    if catalog.hash != metadata["catalog-hash"]:
        raise StateError("the catalog has changed since this run: its items do not match the model's rows")
    if user:
        seen, rows = _known_user(config, user, folder, metadata)
        scores, method = _scores(config, catalog, shared, user, seen, rows, int(metadata["round"])), "private rows"
    elif history:
        seen = np.array([_position(catalog, item) for item in history], dtype=np.int64)
        scores, method = _scores(config, catalog, shared, "", seen, None, int(metadata["round"])), "fold-in"
    else:
        if popularity is None:
            raise StateError("this run has no popularity: not every node told its counts (privacy.min-cohort)")
        seen, scores, method = np.zeros(0, dtype=np.int64), popularity.astype(np.float64), "popularity"
    scores = scores.copy()
    scores[seen] = -np.inf
    best = np.argsort(-scores, kind="stable")[: min(k, len(catalog) - len(np.unique(seen)))]
    return {"method": method, "items": [_item(catalog, int(i), float(scores[i])) for i in best]}


def _known_user(
    config: RunConfig, user: str, folder: RunFolder, metadata: dict[str, str]
) -> tuple[NDArray[np.int64], Arrays | None]:
    everyone = node_data.cohort(config.data, None, 1)
    if user not in everyone.user_ids:
        raise DataError(unknown("user", user, everyone.user_ids[:20]))
    place = everyone.user_ids.index(user)
    seen = np.concatenate([everyone.train[place], everyone.validation[place], everyone.test[place]])
    nodes = folder.path.parent.parent / "nodes" / metadata["lineage"]
    key = everyone.keys[place : place + 1]
    for partition in sorted(p for p in nodes.glob("*") if p.name.isdigit()):
        state = PrivateState(nodes.parent, metadata["lineage"], int(partition.name))
        if (rows := state.find(int(metadata["round"]), key)) is not None:
            return seen, rows
    return seen, None


def _scores(
    config: RunConfig,
    catalog: Catalog,
    shared: Arrays,
    user: str,
    seen: NDArray[np.int64],
    rows: Arrays | None,
    at_round: int,
) -> NDArray[np.float64]:
    history = Histories.from_lists([seen])
    nothing = Histories.from_lists([[]])
    cohort = Cohort((user,), len(catalog), history, nothing, nothing, history, ordered)
    model: Recommender = initialise(make_model(config.model), catalog, cohort, config.seed)
    tensors = load_shared(model, shared)
    names = model.private_names()
    known = rows is not None
    start = rows or {name: model.get_parameter(name).detach().numpy().copy() for name in names}
    start = with_optimizer_state(start, str(config.train.optimizer))
    plan = FitPlan(
        seed=config.seed, server_round=at_round, optimizer=str(config.train.optimizer),
        private_learning_rate=float(config.train.private_learning_rate),
        num_negatives=int(config.train.num_negatives), weight_decay=float(config.train.weight_decay),
    )  # fmt: skip
    epochs = int(config.evaluate.fold_in_epochs) if known else NEWCOMER_EPOCHS
    fit_private(
        model, tensors, start, history, history, cohort.keys, np.array([0]), plan, epochs, "recommend", serving=True
    )
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).copy_(torch.from_numpy(start[name]))
        state = model.encode(history, torch.tensor([0]))
        return model.score(state, torch.arange(len(catalog)))[0].double().numpy()


def _position(catalog: Catalog, item: str) -> int:
    try:
        return catalog.position(item)
    except (KeyError, DataError):
        raise DataError(unknown("item", item, catalog.item_ids[:20])) from None


def _item(catalog: Catalog, position: int, score: float) -> dict[str, Any]:
    item: dict[str, Any] = {"item_id": catalog.item_ids[position], "score": score}
    if "title" in catalog.features.columns:
        item["title"] = str(catalog.features["title"].iloc[position])
    return item
