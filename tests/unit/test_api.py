"""The public surface: a name that goes away or changes sides breaks somebody's plug-in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedrec_app import api
from fedrec_app.api import (
    Batch,
    Catalog,
    Cohort,
    Histories,
    Recommender,
    RecStrategy,
    UserState,
    pointwise_loss,
    run_all,
)
from fedrec_app.data import sources
from fedrec_app.models.registry import model_class
from strategies.registry import strategy_class

SURFACE = {
    "API_VERSION": None,
    "CHECKS": None,
    "Aggregator": "strategies.aggregators",
    "Arrays": None,
    "Batch": None,
    "UserState": None,
    "Catalog": "fedrec_app.data.catalog",
    "ClientPart": "fedrec_app.client_part",
    "ClosedForm": "fedrec_app.models.closed_form",
    "Cohort": "fedrec_app.data.cohort",
    "ConfigError": "fedrec_app.errors",
    "DataError": "fedrec_app.errors",
    "DataSource": "fedrec_app.data.sources.base",
    "Dataset": "fedrec_app.data.schema",
    "Factorization": "fedrec_app.models.base",
    "FedrecError": "fedrec_app.errors",
    "Histories": "fedrec_app.data.histories",
    "Interactions": "fedrec_app.data.schema",
    "MeanOptions": "strategies.options",
    "ModelOptions": "fedrec_app.models.base",
    "RecStrategy": "strategies.base",
    "Recommender": "fedrec_app.models.base",
    "SequenceRules": "fedrec_app.models.sequence_rules",
    "ServerOptimizer": "strategies.optimizers",
    "Settings": "strategies.settings",
    "SourceOptions": "fedrec_app.data.sources.base",
    "StateError": "fedrec_app.errors",
    "StrategyOptions": "strategies.options",
    "Sums": "fedrec_app.models.closed_form",
    "UnitOptions": "strategies.options",
    "Units": "fedrec_app.client_part",
    "Update": "strategies.update",
    "UpdateSum": "strategies.accumulator",
    "WithAggregator": "strategies.options",
    "WithServerOptimizer": "strategies.options",
    "applicable": "strategies.testing",
    "pointwise_loss": "fedrec_app.models.base",
    "run_all": "strategies.testing",
    "taking_part": "strategies.stacking",
}


class Halve(RecStrategy):
    name = "halve"

    def aggregate(self, updates: Any, params: api.Arrays) -> api.Arrays:
        return {name: delta / 2 for name, delta in super().aggregate(updates, params).items()}


class Popularity(Recommender):
    name = "popularity-bias"

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        self.item_bias = nn.Parameter(torch.zeros(len(catalog)))

    def row_names(self) -> list[str]:
        return ["item_bias"]

    def loss(self, batch: Batch) -> Tensor:
        return pointwise_loss(self.item_bias[batch["items"]], batch)

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        return {"num_users": torch.tensor(len(histories))}

    def score(self, state: UserState, items: Tensor) -> Tensor:
        return self.item_bias[items].expand(int(state["num_users"]), -1)


def test_the_public_surface_is_exactly_this() -> None:
    assert api.API_VERSION == 1
    assert set(api.__all__) == set(SURFACE)
    for name, module in SURFACE.items():
        assert hasattr(api, name)
        if module is not None:
            assert getattr(api, name).__module__ == module, name


def test_every_public_class_and_function_says_what_it_is() -> None:
    for name, module in SURFACE.items():
        if module is not None:
            assert (getattr(api, name).__doc__ or "").strip(), name


def test_plug_ins_written_against_the_face_are_found_by_path_and_conform() -> None:
    assert strategy_class(f"{__name__}:Halve") is Halve
    assert model_class(f"{__name__}:Popularity") is Popularity
    assert isinstance(sources.resolve("csv"), api.DataSource)
    report = run_all(Halve)
    assert report.passed, str(report)
