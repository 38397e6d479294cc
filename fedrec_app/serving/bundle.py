"""A bundle: one file with all that a node needs of a finished run to serve its users, but for what is theirs.

It is a run's model file (`model.safetensors`), so `model.init-from` takes it too, with the run's settings in its
metadata and the catalog in "statistics/catalog". How private rows combine with the parameters the settings say: they
name the model. With "quantised" = "int8" matrices are whole numbers of 8 bits, to be multiplied row by row with
"statistics/scale/<name>".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedrec_app.artifacts import CONFIG, MODEL, POPULARITY, STATISTICS, Made, RunFolder, model_content, read_arrays
from fedrec_app.config import Scalar
from fedrec_app.data.catalog import Catalog
from fedrec_app.errors import ConfigError, DataError, StateError
from fedrec_app.finished import FinishedRun, settings_to_serve
from fedrec_app.records import Arrays, checked_lineage

CATALOG, SCALE = "statistics/catalog", "statistics/scale/"
_LARGEST = 127
_EXACT = 2**24  # up to here float32 holds every whole number
_HERE = {"output-dir": "", "data.path": "", "checkpoint.resume-from": "", "train.device": "cpu"}
"""Settings that are about the machine of the run, and what they are elsewhere."""


def bundle(run: FinishedRun, catalog: Catalog, int8: bool = False) -> bytes:
    """Returns the content of a bundle.

    Args:
        run: a finished one.
        catalog: of the run.
        int8: quantise matrices.
    """
    settings = {**run.config.flat(), **_HERE, "model.init-from": "", "train.adapter-rank": 0}
    settings["checkpoint.continue-from"] = ""
    shared, scales = quantised(run.shared) if int8 else (dict(run.shared), {})
    statistics = {
        CATALOG: np.frombuffer(catalog.content(), dtype=np.uint8),
        **{SCALE + name: scale for name, scale in scales.items()},
    }
    said = {"settings": json.dumps(settings), **({"quantised": "int8"} if int8 else {})}
    return model_content(shared, run.made, run.popularity, catalog.item_ids, statistics, said)


def read(location: Path, state_dir: Path | None = None, catalog: Path | None = None) -> FinishedRun:
    """Returns the run that a bundle, or a run's own folder or model file, serves.

    Its parameters and counts are compared with the model at once where the catalog is there, so in a bundle always;
    else when they are used.

    Args:
        location: a bundle; a run's folder; or its model.safetensors with config.toml beside it.
        state_dir: where the node keeps private state.
        catalog: file of the catalog, where the model does not bring it.

    Raises:
        FedrecError: there is no such file, it is damaged, its content is not what the model needs, or the catalog is
            not the one that it was trained on.
    """
    path = location / MODEL if location.is_dir() else location
    if not path.is_file():
        raise StateError(f"there is no model {path}: a bundle of `fedrec export` or the folder of a run is expected")
    arrays, said = read_arrays(path)
    made = Made.read(said, path)
    shared = _restored(arrays, said["quantised"], path) if "quantised" in said else _parameters(arrays)
    try:
        checked_lineage(made.lineage)
        flat = _settings(said["settings"]) if "settings" in said else RunFolder(path.parent).read_config()
        config = settings_to_serve({**flat, "train.device": "cpu"})
    except (ValueError, RecursionError) as error:
        raise StateError(f"{path} is damaged: {error}") from None
    except ConfigError as error:
        told = str(error) if "settings" in said else f"{error}; a bundle of `fedrec export` needs no {CONFIG}"
        raise StateError(f"{path} cannot be served: {told}") from None
    items = Catalog.from_file(catalog) if catalog else _unpacked(arrays[CATALOG], path) if CATALOG in arrays else None
    if items is not None and items.hash != made.catalog_hash:
        raise StateError(
            f"{catalog or path}: this catalog of {len(items):,} items is not the one that the model in {path} was "
            "trained on: its items do not match the model's rows"
        )
    folder = RunFolder(location if location.is_dir() else path)
    run = FinishedRun(folder, config, shared, made, arrays.get(POPULARITY), state_dir, items)
    if items is not None:
        run.model(items)
        run.counts(len(items))
    return run


def served_as(run: FinishedRun, shared: Arrays) -> FinishedRun:
    """Returns a run with other parameters of the same names, such as those that were quantised."""
    return replace(run, shared=shared)


def quantised(shared: Mapping[str, NDArray]) -> tuple[Arrays, Arrays]:
    """Returns parameters with matrices in 8 bits, and the scales of these: row r of a matrix is about its whole numbers
    times scale r, symmetric around 0, and off by half a scale at most.

    Vectors stay as they are, and so do matrices of whole numbers, such as positions of items.

    Args:
        shared: float32 by name.
    """
    arrays, scales = dict(shared), {}
    for name, array in shared.items():
        if array.ndim < 2 or not array.size or (np.abs(array).max() <= _EXACT and (array == np.rint(array)).all()):
            continue
        rows = array.reshape(len(array), -1)
        scale = np.abs(rows).max(axis=1) / np.float32(_LARGEST)
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        whole = np.clip(np.rint(rows / scale[:, None]), -_LARGEST, _LARGEST)
        arrays[name], scales[name] = whole.astype(np.int8).reshape(array.shape), scale
    return arrays, scales


def restored(arrays: Mapping[str, NDArray], scales: Mapping[str, NDArray]) -> Arrays:
    """Returns float32 parameters of what `quantised` returned."""
    return {
        name: array.astype(np.float32) * scales[name].reshape(-1, *[1] * (array.ndim - 1)) if name in scales else array
        for name, array in arrays.items()
    }


def _settings(text: str) -> dict[str, Scalar]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("its settings are no JSON object")
    return found


def _restored(arrays: Arrays, kind: str, path: Path) -> Arrays:
    if kind != "int8":
        raise StateError(f"{path} is quantised as {kind[:20]!r}: 'int8' is expected")
    scales = {name.removeprefix(SCALE): array for name, array in arrays.items() if name.startswith(SCALE)}
    shared = _parameters(arrays)
    for name, scale in scales.items():
        fits = name in shared and shared[name].ndim > 1 and scale.shape == shared[name].shape[:1]
        if not fits or shared[name].dtype != np.int8 or scale.dtype != np.float32:
            raise StateError(f"{path} is damaged: its scales do not fit parameter {name!r}")
    return restored(shared, scales)


def _parameters(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if not name.startswith(STATISTICS)}


def _unpacked(array: NDArray, path: Path) -> Catalog:
    try:
        return Catalog.from_content(array.tobytes(), f"its {CATALOG}")
    except (DataError, ValueError, TypeError, RecursionError) as error:
        raise StateError(f"{path} is damaged: {error}") from None
