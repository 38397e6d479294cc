"""`fedrec export`: a finished run's model as a file, and how it compares with the run."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedrec_app.artifacts import MODEL, RunFolder
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.errors import ConfigError, StateError, unknown
from fedrec_app.export.graphs import graph_of
from fedrec_app.export.onnx_file import onnx_content, require_extra, run_onnx
from fedrec_app.export.parity import Scores, compare, sampled_users
from fedrec_app.files import write_atomically
from fedrec_app.finished import FinishedRun, Served
from fedrec_app.models.base import Recommender, initialise
from fedrec_app.models.registry import make_model
from fedrec_app.serving.bundle import bundle, read, served_as
from fedrec_app.training.users import load_shared

FORMATS = ("safetensors", "int8", "onnx")


def export_run(folder: RunFolder, kind: str, out: Path, users: int = 200) -> dict[str, Any]:
    """Returns {"model", "out", "users", "whose", "formats": [{"format", "bytes", "max_difference", "overlap", "ndcg",
    "ndcg_difference"}]} of a model that has been written: the run's own file, and the exported one.

    The scores are those of the written file, read back.

    Args:
        folder: of a finished run.
        kind: one of `FORMATS`.
        out: file to write.
        users: how many the scores are compared for.

    Raises:
        FedrecError: the run is not finished or damaged, the format is unknown or not this model's, or what it needs is
            not installed; nothing is written then.
    """
    if kind not in FORMATS:
        raise ConfigError(unknown("format", kind, FORMATS))
    run = FinishedRun.read(folder)
    if out.is_dir():
        raise StateError(f"cannot write {out}: it is a folder")
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
    model = initialise(make_model(run.config.model), catalog, None, run.config.seed)
    load_shared(model, run.shared, "cpu")
    return model


def _bundle(run: FinishedRun, catalog: Catalog, cohort: Cohort, out: Path, kind: str) -> Scores:
    write_atomically(out, bundle(run, catalog, int8=kind == "int8"))
    return _scores(served_as(run, read(out).shared).serve(catalog, cohort, "parity"), cohort)


def _onnx(run: FinishedRun, catalog: Catalog, cohort: Cohort, served: Served, out: Path) -> Scores:
    require_extra()
    graph = graph_of(shared_model(run, catalog))
    with torch.no_grad():
        inputs = graph.feed(served.model, cohort.train, np.arange(len(cohort)))
    content = onnx_content(graph, inputs, catalog, run.made)
    scratch = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        write_atomically(scratch, content)
        scores = run_onnx(scratch, inputs)
        os.replace(scratch, out)
    finally:
        scratch.unlink(missing_ok=True)
    return scores


def _scores(served: Served, cohort: Cohort) -> Scores:
    return served.scores(np.arange(len(cohort))).float().cpu().numpy()
