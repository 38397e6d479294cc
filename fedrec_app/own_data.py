"""Data that a node alone has: its file with its feedback, the same from the first message of a run to the last."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from pathlib import Path

from filelock import FileLock

from fedrec_app.data import sources
from fedrec_app.data.cleaning import LATEST_SECOND, Rules, clean
from fedrec_app.data.feedback import Feedback
from fedrec_app.data.schema import Dataset, NoInteractions
from fedrec_app.errors import DataError, StateError
from fedrec_app.files import write_atomically
from fedrec_app.node_settings import NodeSettings, OwnData
from fedrec_app.records import checked_lineage

_NOTE = "data.json"


def load(config: OwnData, rules: Rules) -> Dataset:
    """Returns the data of one node with its feedback: without users, where nothing is left of it.

    Args:
        config: where it is.
        rules: what is removed.

    Raises:
        FedrecError: it cannot be read, or feedback cannot come after it.
    """
    labels = "label" in config.requires
    try:
        dataset = sources.load_whole(*config.source)
    except NoInteractions as error:
        dataset = Dataset.empty(sources.load_catalog(*config.source), error.report, error.quarantine, labels)
    try:
        if config.feedback_events:
            _require_seconds(dataset)
            events = Feedback(Path(config.state_dir)).rows(config.feedback_events)
            dataset = dataset.followed_by(events.drop(columns="line"), events["line"].to_numpy())
        return clean(dataset, rules) if dataset.num_users else dataset
    except NoInteractions as error:
        return Dataset.empty(dataset.catalog, error.report, error.quarantine, labels)


def _require_seconds(dataset: Dataset) -> None:
    """Refuses timestamps that are none in seconds: feedback, which has them in seconds, would come first of all."""
    if not (dataset.interactions.has_timestamps and len(dataset.interactions)):
        return
    latest = float(dataset.interactions.table["timestamp"].to_numpy().max())
    if latest > LATEST_SECOND:
        raise DataError(f"timestamps go up to {latest:.0f}, and feedback has seconds since 1970")


@dataclass(frozen=True)
class _Noted:
    """What a node's data was when a run asked for the first time."""

    feedback_events: int
    sha256: str


def events_of_run(node: NodeSettings, lineage: str) -> int:
    """Returns how many feedback events belong to the data of a run: those that were there when it first asked.

    What comes later waits for the next run, or users and held-out items would change under its rounds. For the same
    reason the files must stay what they were.

    Args:
        node: with data of its own.
        lineage: of the run, "" where nobody named one: then all that are there now.

    Raises:
        StateError: the data has changed since, or what was noted is damaged.
    """
    feedback = Feedback(node.state_dir)
    if not lineage:
        return feedback.count()
    path = node.state_dir / checked_lineage(lineage) / _NOTE
    now = _digest(Path(node.data["path"]).expanduser())
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock"), timeout=60):
        if not path.is_file():
            write_atomically(path, json.dumps(asdict(_Noted(feedback.count(), now))).encode())
        try:
            noted = _Noted(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise StateError(f"what this node noted of its data for run {lineage} is damaged") from None
    if noted.sha256 != now:
        raise StateError(f"this node's data has changed since run {lineage} began: a new run takes it as it is now")
    return noted.feedback_events


def _digest(path: Path) -> str:
    """Returns the SHA-256 of a file, or of the files in a folder; of nothing where there is none, as in a database."""
    files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    digest = sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(f"{file.name}\n{file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
