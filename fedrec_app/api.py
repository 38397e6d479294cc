"""The one stable face for plug-ins: what they build on, and the kit that tells whether they fit.

    from fedrec_app.api import RecStrategy, run_all

    class Halve(RecStrategy):
        name = "halve"

        def aggregate(self, updates, params):
            return {name: delta / 2 for name, delta in super().aggregate(updates, params).items()}

    print(run_all(Halve))

Names may be added; none goes away or changes its meaning without another `API_VERSION`.
"""

from __future__ import annotations

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.data.schema import Dataset, Interactions
from fedrec_app.data.sources import DataSource, SourceOptions
from fedrec_app.errors import ConfigError, DataError, FedrecError, StateError
from fedrec_app.models.base import Batch, Factorization, ModelOptions, Recommender, UserState, pointwise_loss
from fedrec_app.records import Arrays
from strategies.accumulator import UpdateSum
from strategies.base import MeanOptions, RecStrategy, Settings, StrategyOptions
from strategies.testing import run_all
from strategies.update import Update

__all__ = [
    "API_VERSION",
    "Arrays",
    "Batch",
    "Catalog",
    "Cohort",
    "ConfigError",
    "DataError",
    "DataSource",
    "Dataset",
    "Factorization",
    "FedrecError",
    "Histories",
    "Interactions",
    "MeanOptions",
    "ModelOptions",
    "RecStrategy",
    "Recommender",
    "Settings",
    "SourceOptions",
    "StateError",
    "StrategyOptions",
    "Update",
    "UpdateSum",
    "UserState",
    "pointwise_loss",
    "run_all",
]

API_VERSION = 1
