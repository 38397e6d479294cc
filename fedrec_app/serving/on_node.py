"""Recommendations on a node: its model file, its private rows, its own data with feedback, and nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedrec_app import node_data
from fedrec_app.config import DataConfig
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.feedback import Feedback
from fedrec_app.errors import ConfigError, DataError, StateError
from fedrec_app.finished import FinishedRun
from fedrec_app.node_settings import NodeSettings
from fedrec_app.recommend import find_user, most_popular, ranked, somebody
from fedrec_app.serving.bundle import read


def recommend_on_node(
    model: Path,
    state_dir: Path,
    user: str,
    history: list[str],
    k: int,
    data: Mapping[str, str] | None = None,
    catalog: Path | None = None,
) -> dict[str, Any]:
    """Returns what `recommend.recommend_by` does, of what lies on this node.

    A user of the node's data, or of its feedback, is scored with his private rows, brought up to date on all he did;
    without rows he gets some by fold-in. Of whom the node knows nothing gets the most popular items, and a warning says
    so.

    Args:
        model: see `bundle.read`.
        state_dir: where the node keeps private state and feedback.
        user: id, or "".
        history: item ids of somebody else, oldest first.
        k: how many items.
        data: "path", and perhaps "name", "columns" and "options", of the node's own data; what is missing is as the run
            has it.
        catalog: see `bundle.read`.

    Raises:
        FedrecError: the model or the data is not usable, or an item of the history is unknown.
    """
    if user and history:
        raise DataError("give a user of the node or a history, not both")
    if k < 1:
        raise ConfigError(f"k is {k}: at least 1 is expected")
    if not state_dir.is_dir():
        raise StateError(f"there is no state-dir {state_dir}: the one of the node's --node-config is expected")
    run = read(model, state_dir, catalog)
    alone = np.ones(1)
    if not user:
        items = run.catalog()
        if not history:
            return most_popular([run], items, k)
        return ranked([run], items, somebody(items, history, True), k, "rank", alone)
    with tempfile.TemporaryDirectory() as scratch:
        own = _own_data(run, state_dir, dict(data or {}), catalog, Path(scratch))
        items, cohort = _same_catalog(run, own), find_user(own, user)
    if cohort is not None:
        return ranked([run], items, cohort, k, "rank", alone)
    known = f"this node knows nothing of user {user!r}: the most popular items of all"
    return {**most_popular([run], items, k), "warnings": [known]}


def _own_data(
    run: FinishedRun, state_dir: Path, data: dict[str, str], catalog: Path | None, scratch: Path
) -> DataConfig:
    """Returns the settings of the node's data with all of its feedback; nobody is too new to be served."""
    config = run.config.model_copy(
        update={"data": run.config.data.model_copy(update={"min_interactions": 1, "max_interactions": 0, "k_core": 0})}
    )
    given = {"path": config.data.path, **data}
    if given.get("name", config.data.name) == "csv":
        if not given["path"]:
            raise ConfigError("the model does not say where this node's data is: give --data-path")
        if catalog is None and run.items is not None:
            run.items.to_file(catalog := scratch / "catalog.jsonl")
    else:
        catalog = None
    node = NodeSettings(0, 0, state_dir, data=given, catalog_path=str(catalog) if catalog else "")
    return node.of_run(config, Feedback(state_dir).count()).data


def _same_catalog(run: FinishedRun, own: DataConfig) -> Catalog:
    """Returns the catalog of the node's data.

    Raises:
        StateError: it is not the model's.
    """
    found = node_data.catalog(own)
    if found.hash != run.made.catalog_hash:
        raise StateError(
            f"the catalog of this node's data, {len(found):,} items, is not the one that the model was trained on: "
            "its file is expected, given with --catalog"
        )
    return found
