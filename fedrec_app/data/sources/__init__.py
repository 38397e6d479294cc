"""Data sets by name: built in, from an entry point of the group `fedrec.datasets`, or as "package.module:Class"."""

from __future__ import annotations

from typing import Any

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cleaning import Rules, clean
from fedrec_app.data.schema import Dataset
from fedrec_app.data.sources.base import DataSource, SourceOptions, parse_options
from fedrec_app.errors import ConfigError
from fedrec_app.plugins import Registry, plug_in_code

__all__ = [
    "BUILT_IN", "DATASETS", "GROUP", "DataSource", "SourceOptions", "load", "load_catalog", "load_whole", "names",
    "resolve",
]  # fmt: skip

GROUP = "fedrec.datasets"
BUILT_IN = {
    "amazon-video": "fedrec_app.data.sources.amazon:AmazonVideo",
    "lastfm-2k": "fedrec_app.data.sources.lastfm:LastFm",
    "csv": "fedrec_app.data.sources.csv_file:CsvFile",
    "ml-100k": "fedrec_app.data.sources.movielens:MovieLens100K",
    "synthetic": "fedrec_app.data.sources.synthetic:Synthetic",
}
DATASETS = Registry("dataset", BUILT_IN, GROUP, DataSource, "fedrec_app.api.DataSource")


def names() -> list[str]:
    """Returns the names of all data sets that are installed, sorted."""
    return DATASETS.names()


def resolve(name: str) -> DataSource[Any]:
    """Returns the data set of a name.

    Args:
        name: built in, of an entry point, or "package.module:Class".

    Raises:
        ConfigError: no such data set, or a class that is no `DataSource`, see `Registry.find`; or its constructor
            fails.
    """
    found = DATASETS.find(name)
    with plug_in_code("dataset", name, found, GROUP, ()):
        return found()


def load(
    name: str,
    path: str = "",
    columns: str = "",
    min_interactions: int = 1,
    options: str = "{}",
    seed: int = 0,
    *,
    max_interactions: int = 0,
    session_gap: int = 0,
    k_core: int = 0,
) -> Dataset:
    """Returns a data set, cleaned: without the users who have fewer than `min_interactions` rows, and so on.

    Args:
        name: see `resolve`.
        path: file or folder.
        columns: mapping "user_id=user,item_id=film" for data sets that take one.
        min_interactions: how many rows a user must have to stay; the catalog keeps the items of those who go.
        options: the data set's own options, a JSON object.
        seed: of everything that is drawn.
        max_interactions: see `cleaning.Rules`, as the next two.
        session_gap: seconds.
        k_core: the only rule that takes items out of the catalog.

    Raises:
        ConfigError: unknown name or option, an argument that does not go with the data set, or rules that contradict
            each other.
        DataError: the data is missing or unusable, or cleaning leaves nothing.
    """
    rules = Rules(max_interactions, session_gap, k_core, min_interactions)
    return clean(load_whole(name, path, columns, options, seed), rules)


def load_whole(name: str, path: str = "", columns: str = "", options: str = "{}", seed: int = 0) -> Dataset:
    """Returns a data set that nobody has cleaned; arguments and errors as for `load`."""
    source, parsed = _checked(name, path, columns, options)
    return source.load(path, columns, parsed, seed)


def load_catalog(name: str, path: str = "", columns: str = "", options: str = "{}", seed: int = 0) -> Catalog:
    """Returns the catalog of a data set, which is all that a server needs; arguments and errors as for `load`.

    It is that of `load` for every rule but `k_core`: which items that leaves, only the interactions tell.
    """
    source, parsed = _checked(name, path, columns, options)
    return source.catalog(path, columns, parsed, seed)


def _checked(name: str, path: str, columns: str, options: str) -> tuple[DataSource[Any], SourceOptions]:
    source = resolve(name)
    if columns and not source.takes_columns:
        raise ConfigError(f"dataset {name!r} has a fixed layout: a column mapping ({columns!r}) does not apply")
    if path and not source.takes_path:
        raise ConfigError(f"dataset {name!r} is generated: a path ({path!r}) does not apply")
    return source, parse_options(source, options)
