"""The one stable face for plug-ins: what they build on, and the kit that tells whether they fit.

    from fedrec_app.api import RecStrategy, run_all

    class Halve(RecStrategy):
        name = "halve"
        api_version = 1

        def aggregate(self, updates, params):
            return {name: delta / 2 for name, delta in super().aggregate(updates, params).items()}

    print(run_all(Halve))

Names may be added; none goes away or changes its meaning without another `API_VERSION`.
"""

from __future__ import annotations

from fedrec_app.client_part import ClientPart, Units
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.data.schema import Dataset, Interactions
from fedrec_app.data.sources import DataSource, SourceOptions
from fedrec_app.errors import ConfigError, DataError, FedrecError, StateError
from fedrec_app.models.base import Batch, Factorization, ModelOptions, Recommender, UserState, pointwise_loss
from fedrec_app.models.closed_form import ClosedForm, Sums
from fedrec_app.models.sequence_rules import SequenceRules
from fedrec_app.plugins import API_VERSION
from fedrec_app.records import Arrays
from strategies.accumulator import UpdateSum
from strategies.aggregators import Aggregator
from strategies.base import RecStrategy
from strategies.optimizers import ServerOptimizer
from strategies.options import MeanOptions, StrategyOptions, UnitOptions, WithAggregator, WithServerOptimizer
from strategies.settings import Settings
from strategies.stacking import taking_part
from strategies.testing import CHECKS, applicable, run_all
from strategies.update import Update

__all__ = [
    "API_VERSION",
    "CHECKS",
    "Aggregator",
    "Arrays",
    "Batch",
    "Catalog",
    "ClientPart",
    "ClosedForm",
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
    "SequenceRules",
    "ServerOptimizer",
    "Settings",
    "SourceOptions",
    "StateError",
    "StrategyOptions",
    "Sums",
    "UnitOptions",
    "Units",
    "Update",
    "UpdateSum",
    "UserState",
    "WithAggregator",
    "WithServerOptimizer",
    "applicable",
    "pointwise_loss",
    "run_all",
    "taking_part",
]
