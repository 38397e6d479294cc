"""`fedrec export`: a finished run's model as a file, and how it compares with the run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedrec_app.artifacts import CONFIG, METRICS, MODEL, REPORT, SUMMARY, RunFolder
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.errors import ConfigError, StateError, unknown
from fedrec_app.export import FORMATS
from fedrec_app.export.graphs import graph_of
from fedrec_app.export.onnx_file import onnx_content, require_extra, run_onnx
from fedrec_app.export.parity import Scores, compare, sampled_users
from fedrec_app.files import write_atomically
from fedrec_app.finished import FinishedRun, Served
from fedrec_app.models.base import Recommender
from fedrec_app.serving.bundle import bundle, read, served_as
from fedrec_app.training.users import load_shared


def export_run(folder: RunFolder, kind: str, out: Path, users: int = 200) -> dict[str, Any]:
    """Returns {"model", "out", "users", "whose", "formats": [{"format", "bytes", "max_difference", "overlap", "ndcg",
    "ndcg_difference"}]} of a model that has been written: the run's own file, and the exported one.

    The scores are those of the file's content, read back.

    Args:
        folder: of a finished run.
        kind: one of `FORMATS`.
        out: file to write.
        users: how many the scores are compared for.

    Raises:
        FedrecError: the run is not finished or damaged, the format is unknown or not this model's, what it needs is not
            installed, or the file would take the place of one of the run's own; nothing is written then.
    """
    if kind not in FORMATS:
        raise ConfigError(unknown("format", kind, FORMATS))
    run = FinishedRun.read(folder)
    if out.is_dir():
        raise StateError(f"cannot write {out}: it is a folder")
    for own_file in (MODEL, CONFIG, METRICS, SUMMARY, REPORT):
        if out.exists() and (folder.path / own_file).exists() and out.samefile(folder.path / own_file):
            raise StateError(f"cannot write {out}: it is the run's own {Path(own_file).stem}")
    catalog = run.catalog()
    cohort, last, real = sampled_users(run, len(catalog), users)
    served = run.serve(catalog, cohort, "parity")
    own = _scores(served, cohort)
    try:
        exported = (
            _onnx(run, catalog, cohort, served, out) if kind == "onnx" else _bundle(run, catalog, cohort, out, kind)
        )
    except OSError as error:
        raise StateError(f"cannot write {out}: {error}") from None
    rows = [
        {"format": f"the run's own {MODEL}", "bytes": (folder.path / MODEL).stat().st_size,
         **asdict(compare(own, own, cohort, last))},
        {"format": kind, "bytes": out.stat().st_size, **asdict(compare(exported, own, cohort, last))},
    ]  # fmt: skip
    whose = "of the run's data" if real else "with histories that were drawn"
    return {"model": run.config.model.name, "out": str(out), "users": len(cohort), "whose": whose, "formats": rows}


def shared_model(run: FinishedRun, catalog: Catalog) -> Recommender:
    """Returns the model of a run with its shared parameters and nobody's rows.

    Args:
        run: a finished one.
        catalog: of the run.
    """
    model = run.model(catalog)
    load_shared(model, run.shared, "cpu")
    return model


def _bundle(run: FinishedRun, catalog: Catalog, cohort: Cohort, out: Path, kind: str) -> Scores:
    def scores(path: Path) -> Scores:
        return _scores(served_as(run, read(path).shared).serve(catalog, cohort, "parity"), cohort)

    return _tried(bundle(run, catalog, int8=kind == "int8"), out, scores)


def _onnx(run: FinishedRun, catalog: Catalog, cohort: Cohort, served: Served, out: Path) -> Scores:
    require_extra()
    graph = graph_of(shared_model(run, catalog))
    with torch.no_grad():
        inputs = graph.feed(served.model, cohort.train, np.arange(len(cohort)))
    return _tried(onnx_content(graph, inputs, catalog, run.made), out, lambda path: run_onnx(path, inputs))


def _tried(content: bytes, out: Path, scores: Callable[[Path], Scores]) -> Scores:
    """Returns the scores of a file, which is written once a copy has them."""
    with tempfile.TemporaryDirectory() as folder:
        (copy := Path(folder) / out.name).write_bytes(content)
        found = scores(copy)
    write_atomically(out, content)
    return found


def _scores(served: Served, cohort: Cohort) -> Scores:
    return served.scores(np.arange(len(cohort))).float().cpu().numpy()
