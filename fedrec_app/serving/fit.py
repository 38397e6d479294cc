"""Whether what a model file holds fits the model that its settings name: a checksum does not tell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec_app.data.catalog import Catalog
from fedrec_app.errors import ConfigError, StateError, unknown
from fedrec_app.finished import FinishedRun
from fedrec_app.models.base import Recommender, initialise
from fedrec_app.models.item_item import ItemItem
from fedrec_app.models.registry import make_model


def require_fit(run: FinishedRun, catalog: Catalog) -> None:
    """Refuses a run whose parameters or counts of items are not those of its model on its catalog.

    Args:
        run: as it was read.
        catalog: that it was trained on.

    Raises:
        StateError: the model cannot be made, or an array is missing, of nobody, of another shape or type, or not
            finite; it is named.
    """
    try:
        model = initialise(make_model(run.config.model), catalog, None, run.config.seed)
    except ConfigError as error:
        raise StateError(f"{run.name} cannot be served: {error}") from None
    names = model.shared_names()
    for name in run.shared:
        if name not in names:
            told = unknown(f"parameter of model {model.name!r}", name, names)
            raise StateError(f"{run.name} is damaged: {told}")
    for name in names:
        if name not in run.shared:
            raise StateError(f"{run.name} is damaged: parameter {name!r} of model {model.name!r} is missing")
        if wrong := _parameter_fault(model, name, run.shared[name]):
            raise StateError(f"{run.name} is damaged: parameter {name!r} {wrong}")
    if run.popularity is not None and (wrong := _counts_fault(run.popularity, len(catalog))):
        raise StateError(f"{run.name} is damaged: its counts of items {wrong}")


def _parameter_fault(model: Recommender, name: str, array: NDArray) -> str:
    expected = tuple(model.get_parameter(name).shape)
    if array.shape != expected or array.dtype != np.float32:
        return f"has shape {array.shape} of {array.dtype}, {expected} of float32 is expected"
    if not np.isfinite(array).all():
        return "has numbers that are not finite"
    if isinstance(model, ItemItem) and name == "neighbors":
        known = (array >= 0) & (array < model.num_items) & (array == np.rint(array))
        return "" if known.all() else f"has numbers that are no items: 0 to {model.num_items - 1} are expected"
    return ""


def _counts_fault(counts: NDArray, num_items: int) -> str:
    if counts.shape != (num_items,) or counts.dtype.kind not in "iuf":
        return f"have shape {counts.shape} of {counts.dtype}, numbers of shape ({num_items},) are expected"
    return "" if np.isfinite(counts).all() and (counts >= 0).all() else "are not all finite and 0 or more"
