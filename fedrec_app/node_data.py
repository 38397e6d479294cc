"""What a worker process keeps between messages: data, catalogs and cohorts, all immutable."""

from __future__ import annotations

from functools import lru_cache

from fedrec_app.config import DataConfig
from fedrec_app.data import sources
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.partition import Prepared
from fedrec_app.evaluation.candidates import Candidates


@lru_cache(maxsize=2)
def prepared(config: DataConfig) -> Prepared:
    """Returns the data set of a configuration, split: loaded once a process.

    Raises:
        FedrecError: no such data set, or the data does not hold what is needed.
    """
    dataset = sources.load(
        config.name, config.path, config.columns, config.min_interactions, config.options, config.seed
    )
    return Prepared.of(dataset, config.protocol, config.seed)


@lru_cache(maxsize=2)
def catalog(config: DataConfig) -> Catalog:
    """Returns the catalog of a configuration: all that the server needs to know of the data."""
    return sources.load_catalog(config.name, config.path, config.columns, config.options, config.seed)


@lru_cache(maxsize=4096)
def cohort(config: DataConfig, node: int | None, num_nodes: int) -> Cohort:
    """Returns the users of one node of a simulation; of all nodes where `node` is None."""
    return prepared(config).cohort(node, num_nodes, config.partition, config.seed)


@lru_cache(maxsize=4096)
def candidates(config: DataConfig, node: int | None, num_nodes: int, num_bootstrap: int) -> Candidates:
    """Returns the evaluation draws of a node's users."""
    return Candidates.of(cohort(config, node, num_nodes), config.seed, num_bootstrap)
