"""Where a run starts: as its seed says, or from a safetensors file, of an earlier run or trained elsewhere.

The file is read on the server alone, checked before anything is asked of a node. Rows of item tables are matched by
item id where the file says its ids, as those of runs do; else it must have a row for each item, in catalog order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fedrec_app.artifacts import ITEM_IDS, MODEL, STATISTICS, unpacked_ids
from fedrec_app.checksum import require_sum
from fedrec_app.config import RunConfig
from fedrec_app.data.catalog import Catalog
from fedrec_app.errors import StateError, unknown
from fedrec_app.models.base import Recommender
from fedrec_app.node_data import adapted, initial_model

_SHOWN = 5
_FLOAT32 = "F32"  # as safetensors calls it


@dataclass(frozen=True)
class Start:
    """What a run took from a file, and what starts as the seed says.

    Attributes:
        file: where from.
        taken: parameters that the file has.
        missing: parameters that it does not have.
        new_items: ids of items that it has no rows for.
        items_left_out: how many of its items are not in the catalog.
    """

    file: Path
    taken: tuple[str, ...]
    missing: tuple[str, ...]
    new_items: tuple[str, ...] = ()
    items_left_out: int = 0

    def to_json(self) -> dict[str, Any]:
        """Returns it for summary.json; of new items the first ids."""
        return {
            "file": str(self.file), "parameters": len(self.taken), "missing": list(self.missing),
            "new_items": len(self.new_items), "new_item_ids": list(self.new_items[:_SHOWN]),
            "items_left_out": self.items_left_out,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """Returns it for the log."""
        lines = [f"{len(self.taken)} parameters start from {self.file}"]
        if self.missing:
            lines.append(f"not in the file, so they start as the seed says: {', '.join(self.missing)}")
        if self.new_items:
            lines.append(f"{len(self.new_items)} items are not in the file and start as the seed says: {self._few()}")
        if self.items_left_out:
            lines.append(f"{self.items_left_out} items of the file are not in the catalog and are left out")
        return lines

    def _few(self) -> str:
        return ", ".join(self.new_items[:_SHOWN]) + (", ..." if len(self.new_items) > _SHOWN else "")


def start(config: RunConfig, catalog: Catalog) -> tuple[Recommender, Start | None]:
    """Returns the model that a run begins with, adapters included, and what came of `model.init-from` or
    `checkpoint.continue-from`.

    Args:
        config: resolved.
        catalog: of the run.

    Raises:
        ConfigError: the model is not there, or has nothing to start from or to adapt.
        StateError: the file does not fit.
    """
    model, before = initial_model(config, catalog), config.checkpoint.continue_from
    found = take(model, catalog, before or config.model.init_from) if before or config.model.init_from else None
    if before and found and (found.missing or found.items_left_out):
        lost = [*found.missing, *([f"{found.items_left_out} items"] if found.items_left_out else [])]
        raise StateError(
            f"checkpoint.continue-from: {found.file} and this run differ in {', '.join(lost)}: a catalog may grow, and "
            "nothing else may change"
        )
    return adapted(model, config), found


def take(model: Recommender, catalog: Catalog, location: str) -> Start:
    """Puts the parameters of a file into a model, and returns what was taken.

    Args:
        model: bound to the catalog without users; its shared parameters change, if all of the file fits.
        catalog: whose order the model's rows have.
        location: a safetensors file, or the folder of a run.

    Raises:
        StateError: there is no such file, it is damaged, or it has something that the model has not, of another shape
            or type, or not finite.
    """
    file = _File.read(location)
    shared = {name: model.get_parameter(name).detach() for name in model.shared_names()}
    _require_shared(file, model, list(shared))
    tables = [name for name in model.row_names() if name in file.shapes]
    rows = _Rows.of(file, catalog) if tables else None
    values = {}
    for name in (name for name in shared if name in file.shapes):
        expected = tuple(shared[name].shape)
        if rows is None or name not in tables:
            values[name] = torch.from_numpy(file.array(name, expected))
        else:
            values[name] = rows.placed(file.array(name, (rows.in_file, *expected[1:])), shared[name])
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)
    missing = tuple(name for name in shared if name not in values)
    return Start(file.path, tuple(values), missing, rows.new if rows else (), rows.left_out if rows else 0)


@dataclass(frozen=True)
class _File:
    """A safetensors file whose header has been read.

    Attributes:
        path: where it is.
        shapes, types: of its arrays, as the header says them; statistics are not among them.
        item_ids: which item each row of a table is of; None where the file does not say it.
        catalog_hash: of the catalog that it was made for, "" where the file does not say it.
        model: that it is of, "" where the file does not say it.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    item_ids: tuple[str, ...] | None
    catalog_hash: str
    model: str

    @classmethod
    def read(cls, location: str) -> _File:
        path = Path(location).expanduser()
        try:
            path = path / MODEL if path.is_dir() else path
            there = path.is_file()
        except OSError:  # a name that is too long for a file
            there = False
        if not there:
            raise StateError(
                f"model.init-from: there is no file {path}; a safetensors file or a run's folder is expected"
            )
        try:
            with safe_open(path, framework="numpy") as stream:
                found = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
                names = [name for name in found if not name.startswith(STATISTICS)]
                shapes = {name: tuple(found[name].get_shape()) for name in names}
                types = {name: str(found[name].get_dtype()) for name in names}
                ids = unpacked_ids(stream.get_tensor(ITEM_IDS)) if ITEM_IDS in found else None
                metadata = stream.metadata() or {}
            if metadata.get("format", "").startswith("fedrec-") and "sha256" in metadata:
                require_sum(path.read_bytes(), metadata["sha256"])
        except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
            raise StateError(f"{path} is damaged, or is no safetensors file: {error}") from None
        return cls(path, shapes, types, ids, metadata.get("catalog-hash", ""), metadata.get("model", ""))

    def of_another(self, model: Recommender) -> str:
        """Returns that the file is of another model, or ""."""
        return f"; the file is of model {self.model!r}" if self.model not in ("", model.name) else ""

    def array(self, name: str, expected: tuple[int, ...]) -> NDArray[np.float32]:
        """Returns an array.

        Raises:
            StateError: it is of another shape or type, or not finite.
        """
        shape, kind = self.shapes[name], self.types[name]
        if shape != expected or kind != _FLOAT32:
            what = f"{self.path}: parameter {name!r} has shape {shape} of {kind}, {expected} of {_FLOAT32} is expected"
            same_but_rows = self.item_ids is None and shape[1:] == expected[1:] and kind == _FLOAT32
            raise StateError(f"{what}; the file does not say which items its rows are of" if same_but_rows else what)
        try:
            with safe_open(self.path, framework="numpy") as stream:
                array = stream.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise StateError(f"{self.path} is damaged: {error}") from None
        if not np.isfinite(array).all():
            raise StateError(f"{self.path}: parameter {name!r} has numbers that are not finite")
        return array


def _require_shared(file: _File, model: Recommender, shared: list[str]) -> None:
    """Raises StateError where a file has anything but shared parameters of the model, or none of them."""
    for name in file.shapes:
        if name in model.private_names():
            raise StateError(
                f"{file.path}: parameter {name!r} of model {model.name!r} is private: it stays on nodes, leave it out"
            )
        if name not in shared:
            told = unknown(f"parameter of model {model.name!r}", name, shared)
            raise StateError(f"{file.path}: {told}{file.of_another(model)}")
    if not file.shapes:
        raise StateError(f"{file.path} has no parameters: model {model.name!r} has {', '.join(shared)}")


@dataclass(frozen=True)
class _Rows:
    """Which row of a file each item has.

    Attributes:
        place: (num_items,) by the item's row in the model; -1 where the file has none.
        in_file: how many rows a table of the file must have.
        new: ids of the items without one.
        left_out: how many rows are of no item of the catalog.
    """

    place: NDArray[np.int64]
    in_file: int
    new: tuple[str, ...] = ()
    left_out: int = 0

    @classmethod
    def of(cls, file: _File, catalog: Catalog) -> _Rows:
        if file.item_ids is None:
            if file.catalog_hash not in ("", catalog.hash):
                raise StateError(
                    f"{file.path} is of another catalog and does not say which items its rows are of: it can only "
                    "start a run on the same data"
                )
            return cls(np.arange(len(catalog)), len(catalog))
        place = pd.Index(file.item_ids, dtype="str").get_indexer(pd.Index(catalog.item_ids, dtype="str"))
        known = place >= 0
        if not known.any():
            raise StateError(f"{file.path}: none of its {len(file.item_ids)} items is in the catalog of this run")
        new = tuple(catalog.item_ids[row] for row in np.flatnonzero(~known))
        return cls(place.astype(np.int64), len(file.item_ids), new, len(file.item_ids) - int(known.sum()))

    def placed(self, array: NDArray[np.float32], initial: torch.Tensor) -> torch.Tensor:
        """Returns the rows in the model's order, the initial ones where the file has none."""
        known = self.place >= 0
        result = initial.clone()
        result[torch.from_numpy(known)] = torch.from_numpy(array[self.place[known]])
        return result
