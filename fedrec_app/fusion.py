"""One model out of several finished runs: their shared parameters interpolated, judged as a run is.

Averaging weights of models that were trained from the same start may do better than each of them and costs nothing at
serving time (Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", ICML 2022, https://arxiv.org/abs/2203.05482). Models from different starts are not
near each other: a factorisation says the same after any rotation of its factors, and the mean of tables rotated against
each other mixes factors that do not belong together. So factorisations are rotated onto the best run first, by the
orthogonal matrix that brings them nearest (Schoenemann, "A generalized solution of the orthogonal Procrustes problem",
Psychometrika 31, 1966). Other models have no such matrix: runs of theirs from different seeds are refused.

Private rows belong to the item space of the run that they were trained with, and stay on their nodes, so they are not
averaged: rows with a closed form are solved for the fused parameters, others folded in anew, with as many steps as a
newcomer gets.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord
from numpy.typing import NDArray

from fedrec_app import __version__, client_app
from fedrec_app.artifacts import CONFIG, RunFolder
from fedrec_app.config import RunConfig, to_toml
from fedrec_app.ensemble import described
from fedrec_app.errors import ConfigError, FedrecError, unknown
from fedrec_app.files import write_atomically
from fedrec_app.finished import NEWCOMER_EPOCHS, FinishedRun, require_same_model
from fedrec_app.local_grid import LocalGrid
from fedrec_app.models.registry import make_model
from fedrec_app.records import Arrays, Ask, to_record
from fedrec_app.report import write_report
from fedrec_app.run_weights import Choice, choices
from fedrec_app.server_app import RunResult
from fedrec_app.summary import split_metrics
from strategies.evaluation import FederatedEvaluation
from strategies.rollcall import Roster
from strategies.rounds import Exchange

ALIGN = ("auto", "none")
FUSED_ROUND = 0
"""The round that a fused model is said to be of: nothing was trained."""


def procrustes(table: NDArray, onto: NDArray) -> NDArray[np.float64]:
    """Returns (d, d) the orthogonal matrix R for which |table R - onto| is least (Schoenemann, 1966).

    >>> procrustes(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 1.0], [-2.0, 0.0]])).round(6).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]

    Args:
        table: (num_items, d).
        onto: (num_items, d).
    """
    left, _, right = np.linalg.svd(table.astype(np.float64).T @ onto.astype(np.float64))
    return left @ right


def interpolate(parents: Sequence[Arrays], weights: NDArray[np.float64]) -> Arrays:
    """Returns the weighted mean of named arrays, added up in float64, in the type of the first parent's.

    Args:
        parents: of the same names and shapes.
        weights: (num_parents,) that add up to 1.
    """
    mean = {}
    for name, first in parents[0].items():
        total = np.zeros(first.shape)
        for weight, parent in zip(weights, parents, strict=True):
            total += weight * parent[name]
        mean[name] = total.astype(first.dtype)
    return mean


def fuse(
    runs: Sequence[FinishedRun], output_dir: Path, temperature: float | None = None, align: str = "auto"
) -> RunResult:
    """Returns a new run folder with the interpolated model, as a finished run's, and its summary.

    The weighting (by score, uniform, greedy) is chosen on validation by the nodes of a simulation, as they judge a run;
    test is read once, for what was chosen. The summary's "fusion" tells the weights, the parents' own figures, and how
    the weightings that were not chosen did. Settings are those of the best run on validation.

    Args:
        runs: two at least, of the same model, data and split.
        output_dir: of runs; the folder is made in it.
        temperature: weights by score are softmax(score / temperature); proportional to scores when absent.
        align: "auto": factorisations are rotated onto the best run; "none": parameters are taken as they are.

    Raises:
        FedrecError: the runs do not fit together, or the data is not what it was.
    """
    if len(runs) < 2:
        raise ConfigError(f"{len(runs)} run: a fusion needs at least two")
    if align not in ALIGN:
        raise ConfigError(unknown("align", align, ALIGN))
    require_same_model(runs)
    metric = runs[0].config.evaluate.metric
    scores = [run.validation(metric) for run in runs]
    best = runs[int(np.argmax(scores))]
    parents, rotated = _in_one_space(runs, best, align)
    nodes = _Nodes(_settings(best, output_dir), best)

    def judge(weights: NDArray[np.float64]) -> float:
        return float(nodes.metrics(interpolate(parents, weights), "validation")[metric])

    found = choices(scores, judge, temperature)
    chosen = max(found, key=lambda choice: choice.validation)
    shared = interpolate(parents, chosen.weights)
    validation, test = nodes.metrics(shared, "validation"), nodes.metrics(shared, "test")
    fusion = _told(runs, found, chosen, metric, rotated)
    return nodes.write(shared, {**_measured(validation, test), "fusion": fusion})


def _in_one_space(runs: Sequence[FinishedRun], best: FinishedRun, align: str) -> tuple[list[Arrays], bool]:
    """Returns the shared parameters of each run in the space of the best one's, and whether they were rotated."""
    factorization = make_model(best.config.model).factorization
    if align == "none":
        return [run.shared for run in runs], False
    if factorization is None:
        if len(seeds := sorted({run.config.seed for run in runs})) > 1:
            raise ConfigError(
                f"the runs start from different seeds ({', '.join(map(str, seeds))}), and parameters of "
                f"{best.config.model.name!r} cannot be rotated onto each other: their mean mixes what does "
                "not belong together. `fedrec ensemble` fuses any runs; --align none interpolates all the same"
            )
        return [run.shared for run in runs], False
    onto = best.shared[factorization.item]
    parents = []
    for run in runs:
        table = run.shared[factorization.item]
        turned = table if run is best else (table @ procrustes(table, onto)).astype(table.dtype)
        parents.append({**run.shared, factorization.item: turned})
    return parents, True


def _settings(best: FinishedRun, output_dir: Path) -> RunConfig:
    flat = {**best.config.flat(), "output-dir": str(output_dir)}
    model = make_model(best.config.model)
    if model.private_names() and not model.solves_private:
        flat["evaluate.fold-in-epochs"] = max(int(best.config.evaluate.fold_in_epochs), NEWCOMER_EPOCHS)
    return RunConfig.from_flat(flat)


def _told(
    runs: Sequence[FinishedRun], found: Sequence[Choice], chosen: Choice, metric: str, rotated: bool
) -> dict[str, Any]:
    weights = chosen.weights.tolist()
    return {
        "metric": metric, "weighting": chosen.name, "weights": weights, "aligned": rotated,
        "candidates": [choice.to_json() for choice in found],
        "parents": [described(run, weight, metric) for run, weight in zip(runs, weights, strict=True)],
    }  # fmt: skip


def _measured(validation: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    (full, sampled), (test_full, test_sampled) = split_metrics(validation), split_metrics(test)
    return {"test": test_full, "sampled": test_sampled, "validation": full, "validation_sampled": sampled}


@dataclass
class _Nodes:
    """The nodes of a simulation, which judge parameters as they judge those of a run.

    Args:
        config: of the fused run.
        like: the run whose nodes these are.
    """

    config: RunConfig
    like: FinishedRun

    def __post_init__(self) -> None:
        self._summary = self.like.summary()
        self._lineage = f"fused-{datetime.now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        number = int(self._summary["num_nodes"])
        self._grid = LocalGrid(client_app.app, self.config.flat(), number)
        catalog, model = self.like.catalog().hash, self.like.made.model_hash
        self._roster = Roster(catalog, model, ["item-counts"], self.config.strategy.join_timeout)
        self._roster.wait(self._grid, number)
        self._popularity = self._roster.sums.get("item-counts")

    def metrics(self, shared: Arrays, part: str) -> dict[str, Any]:
        """Returns flat metrics over all users; of the test part with intervals.

        Raises:
            FedrecError: a node could not answer.
        """
        ask: dict[str, Any] = {Ask.LINEAGE: self._lineage, Ask.PART: part}
        if part == "test":
            ask[Ask.BOOTSTRAP] = self.config.evaluate.bootstrap
        evaluation = FederatedEvaluation(self._popularity)
        messages = evaluation.configure(FUSED_ROUND, to_record(shared), ConfigRecord(ask), self._roster.partitions())
        replies = Exchange(self._grid, messages, self.config.strategy.round_timeout)
        metrics = evaluation.aggregate(FUSED_ROUND, replies)
        if metrics is None or "dropped-evaluations" in metrics:
            raise FedrecError(f"the fused model could not be judged on {part}: {evaluation.last_problem}")
        return dict(metrics)

    def write(self, shared: Arrays, figures: dict[str, Any]) -> RunResult:
        """Returns the folder of the fused run, with everything that a finished run has but rounds."""
        folder = RunFolder.create(Path(self.config.output_dir), datetime.now())
        header = "# fused by `fedrec fuse`, not trained: the settings of the best parent, which serve and judge it\n"
        write_atomically(folder.path / CONFIG, (header + to_toml(self.config.flat())).encode())
        made = replace(self.like.made, round=FUSED_ROUND, lineage=self._lineage, fedrec_version=__version__)
        folder.write_model(shared, made, self._popularity, self.like.catalog().item_ids)
        parent = {name: value for name, value in self._summary.items() if name in _INHERITED}
        untrained = {
            "strategy": "fusion", "rounds": 0, "best_round": FUSED_ROUND, "stopped_early": False,
            "seconds_per_round": 0.0, "bytes_down": 0, "bytes_up": 0, "dropped_updates": {}, "lineage": self._lineage,
        }  # fmt: skip
        summary = {**parent, **untrained, **figures}
        folder.write_summary(summary)
        write_report(folder)
        return RunResult(folder, summary)


_INHERITED = {
    "status", "model", "data", "protocol", "unit", "num_nodes", "refused_nodes", "quarantined_rows", "seed",
    "cold_items", "warning", "cleaning",
}  # fmt: skip
"""What a fused run's summary says as its best parent's does: facts of the data and the settings."""
