"""What a run writes: `outputs/<date>/<time>/` with config.toml, metrics.jsonl, summary.json and model.safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedrec_app import __version__
from fedrec_app.checksum import NO_SUM, require_sum, said_by, summed
from fedrec_app.config import RunConfig, Scalar, read_toml, to_toml
from fedrec_app.errors import StateError
from fedrec_app.files import write_atomically
from fedrec_app.records import Arrays

CONFIG, METRICS, SUMMARY, MODEL, REPORT = (
    "config.toml", "metrics.jsonl", "summary.json", "model.safetensors", "report.md"
)  # fmt: skip
_FORMAT = "fedrec-model/1"
POPULARITY = "statistics/item-counts"
"""Array of a model file that says how many training interactions each item has."""
ITEM_IDS = "statistics/item-ids"
"""Array of a model file that says which item each row is of; files of earlier versions do not have it."""
STATISTICS = "statistics/"
"""What arrays of a model file that are no parameters begin with."""


@dataclass(frozen=True)
class Made:
    """How shared parameters came to be: what a model file says besides them.

    Attributes:
        catalog_hash: of the items that rows belong to.
        round: the server round that they are of.
        lineage: of the private state that goes with them.
        model: its name.
        model_hash: of the model's declarations, "" where nobody knows it.
        fedrec_version: what wrote the file.
    """

    catalog_hash: str
    round: int
    lineage: str
    model: str = ""
    model_hash: str = ""
    fedrec_version: str = __version__

    @classmethod
    def read(cls, metadata: Mapping[str, str], path: Path) -> Made:
        """Returns what the metadata of a model file says.

        Raises:
            StateError: something that a run writes is not in it, or the round is no number.
        """
        if missing := [key for key in ("catalog-hash", "round", "lineage") if key not in metadata]:
            raise StateError(f"{path} does not say its {', '.join(missing)}: it was not written by a run")
        if not (metadata["round"].isdecimal() and len(metadata["round"]) < 10):
            raise StateError(f"{path} is of round {metadata['round'][:20]!r}: a number is expected")
        said = {field.name: metadata.get(field.name.replace("_", "-"), "") for field in fields(cls)}
        return cls(**{**said, "round": int(metadata["round"])})

    def written(self) -> dict[str, str]:
        """Returns it as the metadata of a file."""
        return {key.replace("_", "-"): str(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @classmethod
    def create(cls, output_dir: Path, now: datetime) -> RunFolder:
        """Returns a new folder `<date>/<time>`; a second run in the same second gets `<time>-2`.

        Raises:
            StateError: the folder cannot be made.
        """
        day = output_dir / now.strftime("%Y-%m-%d")
        stem = now.strftime("%H-%M-%S")
        try:
            day.mkdir(parents=True, exist_ok=True)
            for attempt in range(1, 1000):
                path = day / (stem if attempt == 1 else f"{stem}-{attempt}")
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return cls(path)
        except OSError as error:
            raise StateError(f"cannot write runs to output-dir {output_dir}: {error}") from None
        raise StateError(f"cannot make a folder for this run in {day}")

    def write_config(self, config: RunConfig, run_id: int) -> None:
        """Writes every setting, "auto" resolved, as a file that `-c FILE.toml` takes."""
        header = f"# run-id {run_id}\n# the settings of this run; `fedrec run -c {CONFIG}` repeats it\n"
        settings = {**config.flat(), "checkpoint.resume-from": ""}  # to repeat a run is not to go on with it
        write_atomically(self.path / CONFIG, (header + to_toml(settings)).encode())

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        with (self.path / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_plain(record)) + "\n")

    def keep_metrics(self, last_round: int) -> None:
        """Takes from metrics.jsonl what later rounds wrote, which a run that goes on from that round takes again."""
        kept = [record for record in self.read_metrics() if record.get("round", 0) <= last_round]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(self.path / METRICS, lines.encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json."""
        write_atomically(self.path / SUMMARY, (json.dumps(_plain(summary), indent=2) + "\n").encode())

    def write_model(self, shared: Arrays, made: Made, popularity: NDArray | None, item_ids: Sequence[str] = ()) -> None:
        """Writes the shared parameters, and the training counts of items where all nodes told them.

        Args:
            shared: parameters by name.
            made: what is needed to use them again.
            popularity: (num_items,) int64.
            item_ids: of the catalog, so that a run on another one can start from the rows of these items.
        """
        write_atomically(self.path / MODEL, model_content(shared, made, popularity, item_ids))

    def read_model(self) -> tuple[Arrays, Made, NDArray | None]:
        """Returns shared parameters, how they came to be, and popularity.

        Raises:
            StateError: there is no model file, or it is damaged or not one of ours.
        """
        path = self.path / MODEL
        if not path.is_file():
            raise StateError(f"no {MODEL} in {self.path}: is it the folder of a run that completed?")
        arrays, metadata = read_arrays(path)
        shared = {name: array for name, array in arrays.items() if not name.startswith(STATISTICS)}
        return shared, Made.read(metadata, path), arrays.get(POPULARITY)

    def read_config(self) -> dict[str, Scalar]:
        """Returns the flat settings of the run.

        Raises:
            ConfigError: there is no such file, or it is damaged.
        """
        return read_toml(self.path / CONFIG)

    def read_summary(self) -> dict[str, Any]:
        """Returns summary.json.

        Raises:
            StateError: it is not there or not JSON.
        """
        return _read_json(self.path / SUMMARY)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl; a line that a crash cut short is left out."""
        path = self.path / METRICS
        if not path.is_file():
            return []
        records = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records


def model_content(
    shared: Arrays,
    made: Made,
    popularity: NDArray | None,
    item_ids: Sequence[str] = (),
    statistics: Mapping[str, NDArray] | None = None,
    said: Mapping[str, str] | None = None,
) -> bytes:
    """Returns the content of a model file, with its checksum.

    Args:
        shared, made, popularity, item_ids: see `RunFolder.write_model`.
        statistics: what else goes with them, under names that begin with `STATISTICS`.
        said: further metadata.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in {**shared, **(statistics or {})}.items()}
    if popularity is not None:
        arrays[POPULARITY] = popularity
    if item_ids:
        arrays[ITEM_IDS] = packed_ids(item_ids)
    return summed(save(arrays, metadata={"format": _FORMAT, "sha256": NO_SUM, **made.written(), **(said or {})}))


def read_arrays(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Returns all arrays of a model file, and its metadata. Files of earlier versions have no checksum.

    Raises:
        StateError: it cannot be read, is damaged, or is not one of ours.
    """
    try:
        content = path.read_bytes()
        arrays, metadata = dict(sorted(load(content).items())), said_by(content)
        if "sha256" in metadata:
            require_sum(content, metadata["sha256"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} is damaged: {error}") from None
    if metadata.get("format") != _FORMAT:
        raise StateError(f"{path} has format {metadata.get('format')!r}, {_FORMAT!r} is expected")
    return arrays, metadata


def packed_ids(item_ids: Sequence[str]) -> NDArray[np.uint8]:
    """Returns (num_bytes,) ids as a model file holds them: a JSON list."""
    return np.frombuffer(json.dumps(list(item_ids)).encode(), dtype=np.uint8)


def unpacked_ids(array: NDArray) -> tuple[str, ...]:
    """Returns the ids that `packed_ids` was given.

    Raises:
        ValueError: this is no list of ids, each once.
    """
    found = json.loads(array.astype(np.uint8, casting="no").tobytes().decode())
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError("a list of ids is expected")
    "".join(found).encode()  # refuses half of a surrogate pair
    if len(set(found)) < len(found):
        raise ValueError("an id is there twice")
    return tuple(found)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StateError(f"no {path.name} in {path.parent}: is it the folder of a run?") from None
    except ValueError as error:
        raise StateError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise StateError(f"{path} is damaged: a JSON object is expected")
    return found


def _plain(value: Any) -> Any:
    """Returns JSON values: numpy scalars as numbers, numbers that JSON does not have as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
