"""Whether parameters that a file holds are those of its model: a checksum does not tell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedrec_app.errors import StateError, unknown
from fedrec_app.models.base import Recommender
from fedrec_app.models.item_item import ItemItem


def require_fit(model: Recommender, shared: Mapping[str, NDArray], origin: str) -> None:
    """Refuses parameters that are not the shared ones of a model.

    Args:
        model: bound.
        shared: parameters by name.
        origin: where they lie, for errors.

    Raises:
        StateError: an array is missing, of nobody, of another shape or type, or not finite; it is named.
    """
    names = model.shared_names()
    for name in shared:
        if name not in names:
            told = unknown(f"parameter of model {model.name!r}", name, names)
            raise StateError(f"{origin} is damaged: {told}")
    for name in names:
        if name not in shared:
            raise StateError(f"{origin} is damaged: parameter {name!r} of model {model.name!r} is missing")
        if wrong := _fault(model, name, shared[name]):
            raise StateError(f"{origin} is damaged: parameter {name!r} {wrong}")


def _fault(model: Recommender, name: str, array: NDArray) -> str:
    expected = tuple(model.get_parameter(name).shape)
    if array.shape != expected or array.dtype != np.float32:
        return f"has shape {array.shape} of {array.dtype}, {expected} of float32 is expected"
    if not np.isfinite(array).all():
        return "has numbers that are not finite"
    if isinstance(model, ItemItem) and name == "neighbors":
        known = (array >= 0) & (array < model.num_items) & (array == np.rint(array))
        return "" if known.all() else f"has numbers that are no items: 0 to {model.num_items - 1} are expected"
    return ""
