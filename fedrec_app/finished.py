"""A finished run, read back from its folder on the machine that holds the data, and what it scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedrec_app import node_data
from fedrec_app.artifacts import Made, RunFolder
from fedrec_app.config import RunConfig, Scalar
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.errors import ConfigError, StateError
from fedrec_app.models.base import Recommender, initialise
from fedrec_app.models.fit import require_fit
from fedrec_app.models.registry import make_model
from fedrec_app.private_state import PrivateState
from fedrec_app.records import Arrays
from fedrec_app.training.plan import FitPlan
from fedrec_app.training.private_rows import with_optimizer_state
from fedrec_app.training.serving import scorer

NEWCOMER_EPOCHS = 50
"""Steps of fold-in, at least, for a user without private rows."""


@dataclass(frozen=True)
class Served:
    """The scores of one run for the users of a cohort.

    Attributes:
        scores: from positions of users (n,) to their scores (n, num_items).
        has_rows: (num_users,) whose private rows are the run's own, or need no storing; the others' are folded in anew.
        problems: private states that could not be read, one line each.
        num_states: how many nodes of this run have private state on this machine.
        model: bound to the catalog and the cohort, its private rows those that served last.
    """

    scores: Callable[[NDArray[np.int64]], Tensor]
    has_rows: NDArray[np.bool_]
    model: Recommender
    problems: tuple[str, ...] = ()
    num_states: int = 0

    def warnings(self) -> list[str]:
        """Returns what could not be read, and whose rows are folded in anew for that, a line each."""
        missing = int((~self.has_rows).sum())
        who = "the user's rows" if len(self.has_rows) == 1 else f"the rows of {missing} users"
        why = "this machine has no private state of the run"
        if self.num_states:
            why = f"they are in none of the private states of its {self.num_states} nodes"
        return [*self.problems, *([f"{who} are folded in anew: {why}"] if missing else [])]


@dataclass(frozen=True)
class FinishedRun:
    """A run that completed.

    Attributes:
        folder: where it is.
        config: its settings, every "auto" resolved. The start and adapters are in the parameters, so it has none.
        shared: parameters of its best round, by name.
        made: how its parameters came to be.
        popularity: (num_items,) training interactions of each item, where all nodes told them.
        state_dir: where nodes keep private state; without it, where a simulation of the run does.
        items: the catalog, where it came with the model; without it, that of the data.
    """

    folder: RunFolder
    config: RunConfig
    shared: Arrays
    made: Made
    popularity: NDArray | None
    state_dir: Path | None = None
    items: Catalog | None = None

    @classmethod
    def read(cls, folder: RunFolder) -> FinishedRun:
        """Returns the run in a folder.

        Raises:
            FedrecError: there is none, or its files are damaged.
        """
        shared, made, popularity = folder.read_model()
        return cls(folder, settings_to_serve(folder.read_config()), shared, made, popularity)

    @property
    def name(self) -> str:
        """The folder, as text."""
        return str(self.folder.path)

    def catalog(self) -> Catalog:
        """Returns the catalog of the data.

        Raises:
            StateError: it is not the one that the run was trained on.
        """
        catalog = self.items or node_data.catalog(self.config.data)
        if catalog.hash != self.made.catalog_hash:
            raise StateError("the catalog has changed since this run: its items do not match the model's rows")
        return catalog

    def summary(self) -> dict[str, Any]:
        """Returns summary.json.

        Raises:
            StateError: there is none, or the run did not complete.
        """
        summary = self.folder.read_summary()
        if summary.get("status") != "completed":
            raise StateError(f"the run in {self.name} is {summary.get('status')!r}: a completed one is needed")
        return summary

    def validation(self, metric: str) -> float:
        """Returns the validation metric of the best round.

        Raises:
            StateError: the run has not measured it.
        """
        value = self.summary().get("validation", {}).get(metric)
        if not isinstance(value, int | float):
            raise StateError(f"the run in {self.name} has no {metric} on validation: give weights")
        return float(value)

    def counts(self, num_items: int) -> NDArray[np.float64] | None:
        """Returns (num_items,) training interactions of each item; None where not all nodes told them.

        Raises:
            StateError: they are no such numbers.
        """
        if (found := self.popularity) is None:
            return None
        wrong = ""
        if found.shape != (num_items,) or found.dtype.kind not in "iuf":
            wrong = f"have shape {found.shape} of {found.dtype}, numbers of shape ({num_items},) are expected"
        elif not (np.isfinite(found).all() and (found >= 0).all()):
            wrong = "are not all finite and 0 or more"
        if wrong:
            raise StateError(f"{self.name} is damaged: its counts of items {wrong}")
        return found.astype(np.float64)

    def model(self, catalog: Catalog, cohort: Cohort | None = None) -> Recommender:
        """Returns its model as it starts, which the run's parameters fit.

        Args:
            catalog: the items.
            cohort: whose private rows it has.

        Raises:
            StateError: the model cannot be made, or a parameter is not one of it.
        """
        try:
            model = initialise(make_model(self.config.model), catalog, cohort, self.config.seed)
        except ConfigError as error:
            raise StateError(f"{self.name} cannot be served: {error}") from None
        require_fit(model, self.shared, self.name)
        return model

    def serve(self, catalog: Catalog, cohort: Cohort, purpose: str) -> Served:
        """Returns the scores of users for what they did in `cohort.train`.

        Users with private rows on this machine have them brought up to date as the run's own evaluation does; the
        others get rows by a longer fold-in.

        Args:
            catalog: the items.
            cohort: who is scored.
            purpose: keeps samples of the fold-in apart from those of others; "fold-in-<part>" in evaluation.

        Raises:
            StateError: see `model`.
        """
        config, model = self.config, self.model(catalog, cohort)
        initial = {name: model.get_parameter(name).detach().numpy().copy() for name in model.private_names()}
        nodes = self._states()
        if model.solves_private or not initial:
            rows, has_rows, problems = initial, np.ones(len(cohort), dtype=bool), []
        else:
            rows, has_rows, problems = _stored_rows(nodes, self.made.round, cohort.keys, initial)
        rows = with_optimizer_state(rows, str(config.train.optimizer))
        plan = FitPlan.to_serve(config.train, config.seed, self.made.round)
        epochs = int(config.evaluate.fold_in_epochs)
        # Each call fits its own users; the last one's scores are of all.
        scorer(model, self.shared, rows, cohort, np.flatnonzero(~has_rows), plan, max(epochs, NEWCOMER_EPOCHS), purpose)
        scores = scorer(model, self.shared, rows, cohort, np.flatnonzero(has_rows), plan, epochs, purpose)
        return Served(scores, has_rows, model, tuple(problems), len(nodes))

    def _states(self) -> list[PrivateState]:
        state_dir, lineage = self.state_dir or self.folder.path.resolve().parent.parent / "nodes", self.made.lineage
        partitions = sorted(int(path.name) for path in (state_dir / lineage).glob("*") if path.name.isdecimal())
        return [PrivateState(state_dir, lineage, partition) for partition in partitions]


def settings_to_serve(flat: Mapping[str, Scalar]) -> RunConfig:
    """Returns the settings of a finished run, without those that its parameters have in them already."""
    return RunConfig.from_flat({**flat, "model.init-from": "", "train.adapter-rank": 0, "checkpoint.continue-from": ""})


def _stored_rows(
    nodes: Sequence[PrivateState], at_round: int, keys: NDArray[np.uint64], initial: Arrays
) -> tuple[Arrays, NDArray[np.bool_], list[str]]:
    """Returns the rows of users, each from the node that holds him, who has any, and which states cannot be read."""
    problems: list[str] = []
    # Nobody's rows are NaN, so what is still NaN in the end nobody held.
    rows = {name: np.full_like(array, np.nan) for name, array in initial.items()}
    for node in nodes:
        try:
            rows = node.load(at_round, keys, rows)
        except StateError as error:
            problems.append(str(error))
    has_rows = np.ones(len(keys), dtype=bool)
    for name in initial:
        has_rows &= np.isfinite(rows[name].reshape(len(keys), -1)).all(axis=1)
    for name, array in initial.items():
        rows[name][~has_rows] = array[~has_rows]
    return rows, has_rows, problems


def require_same_data(runs: Sequence[FinishedRun]) -> None:
    """Refuses runs that do not share catalog, data and split.

    Raises:
        ConfigError: what differs is named, between the first run and another.
    """
    for other in runs[1:]:
        why = "one run's held-out items may be another's training items"
        _refuse_differences(runs[0], other, _data_facts, why)


def require_same_model(runs: Sequence[FinishedRun]) -> None:
    """Refuses runs whose parameters do not mean the same: data, model, shapes and the metric that judges them.

    Raises:
        ConfigError: what differs is named, between the first run and another.
    """
    require_same_data(runs)
    for other in runs[1:]:
        _refuse_differences(runs[0], other, _model_facts, "their parameters do not mean the same")


def _refuse_differences(
    one: FinishedRun, other: FinishedRun, facts: Callable[[FinishedRun], dict[str, Any]], why: str
) -> None:
    mine, theirs = facts(one), facts(other)
    if differing := [f"{key} ({mine[key]!r} and {theirs[key]!r})" for key in mine if mine[key] != theirs[key]]:
        raise ConfigError(f"{one.name} and {other.name} differ in {', '.join(differing)}: {why}")


def _data_facts(run: FinishedRun) -> dict[str, Any]:
    # How a simulation deals users to nodes changes neither the split nor the evaluation.
    data = run.config.data.model_dump(by_alias=True, exclude={"partition", "options"})
    facts = {f"data.{key}": value for key, value in data.items()}
    facts["data.options"] = json.loads(run.config.data.options or "{}")
    return {**facts, "catalog": run.made.catalog_hash[:12]}


def _model_facts(run: FinishedRun) -> dict[str, Any]:
    config = run.config
    return {
        "model.name": config.model.name,
        "model.embedding-dim": config.model.embedding_dim,
        "model.options": make_model(config.model).options.model_dump(),
        "model-hash": run.made.model_hash[:12],
        "evaluate.metric": config.evaluate.metric,
        "evaluate.ks": config.evaluate.ks,
    }
