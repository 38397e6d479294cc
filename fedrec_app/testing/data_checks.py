"""Checks of data sets: each takes a `DataCase` and raises a ConformanceError where the source breaks its rule."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fedrec_app.conformance import check, require, require_options
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.partition import Prepared, partition
from fedrec_app.data.schema import Dataset, Interactions
from fedrec_app.data.sources.base import SourceOptions
from fedrec_app.data.validation import CONTEXT
from fedrec_app.errors import ConfigError, DataError
from fedrec_app.testing.data_case import SEED, DataCase, dataset_difference, table_difference

_LATEST = 4_102_444_800.0
"""The year 2100 in seconds: beyond it milliseconds were meant."""
_TYPES = {"rating": "float32", "timestamp": "float64", "label": "int8"}
_NODES = 3


@check
def check_description(case: DataCase) -> None:
    """The class says what it is, and a new one needs no arguments."""
    source = case.source()
    for name in ("name", "summary"):
        text = getattr(source, name, "")
        require("" if isinstance(text, str) and text.strip() else f"it is {text!r}, not a text", f"`{name}`")
    for name in ("takes_path", "takes_columns"):
        flag = getattr(source, name)
        require("" if isinstance(flag, bool) else f"it is {flag!r}, not True or False", f"`{name}`")


@check
def check_options(case: DataCase) -> None:
    """Options have defaults that do, and one that the source does not have is refused."""
    require_options(case.source.Options, SourceOptions)


@check
def check_deterministic(case: DataCase) -> None:
    """The same arguments give the same data, whatever else was drawn, and nobody's generator is touched."""
    first = case.load()
    with _Generators() as generators:
        second = case.load()
        moved = generators.moved()
    found = f"it draws from the global generator of {' and '.join(moved)}, or seeds it"
    require(found if moved else "", "a load")
    require(dataset_difference(second, first), "two loads")


class _Generators:
    """The global generators, somewhere else than where a seed would put them; afterwards as they were."""

    def __enter__(self) -> _Generators:
        self._before = self._states()
        np.random.seed(SEED)  # noqa: NPY002 - the generator that nobody should use
        random.seed(SEED)
        torch.default_generator.manual_seed(SEED)
        np.random.random(SEED)  # noqa: NPY002 - as above
        random.random()  # noqa: S311 - as above
        torch.rand(SEED)
        self._numpy, self._python, self._torch = self._states()
        return self

    def __exit__(self, *_: object) -> None:
        numpy_state, python_state, torch_state = self._before
        np.random.set_state(numpy_state)  # noqa: NPY002 - as above
        random.setstate(python_state)
        torch.random.set_rng_state(torch_state)

    def moved(self) -> list[str]:
        """Returns those that are not where they were at first."""
        numpy_state, python_state, torch_state = self._states()
        same = {
            "numpy": all(np.array_equal(a, b) for a, b in zip(self._numpy, numpy_state, strict=True)),
            "Python": self._python == python_state,
            "torch": torch.equal(self._torch, torch_state),
        }
        return [name for name, unmoved in same.items() if not unmoved]

    def _states(self) -> tuple[Any, Any, Any]:
        state = np.random.get_state()  # noqa: NPY002 - as above
        return state, random.getstate(), torch.random.get_rng_state()


@check
def check_catalog(case: DataCase) -> None:
    """Item ids are texts, each once; the catalog by itself is that of the whole data set, in every load and format."""
    catalog = case.data.catalog
    strange = [item for item in catalog.item_ids if not isinstance(item, str) or not item.strip()]
    require(f"{strange[0]!r} is no text" if strange else "", "the item ids")
    repeated = len(catalog.item_ids) - len(set(catalog.item_ids))
    require(f"{repeated} of them are there already" if repeated else "", "the item ids")
    again = case.load_catalog()
    require(_catalog_difference(again, case.load_catalog()), "two loads of the catalog alone")
    require(_catalog_difference(again, catalog), "the catalog alone, beside that of the whole data set")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "catalog.jsonl"
        catalog.to_file(file)
        require(_catalog_difference(Catalog.from_file(file), catalog), "the catalog in a file")


def _catalog_difference(found: Catalog, expected: Catalog) -> str:
    if found.hash == expected.hash:
        return ""
    if len(found) != len(expected):
        return f"there are {len(found)} items, not {len(expected)}"
    for place, (one, other) in enumerate(zip(found.item_ids, expected.item_ids, strict=True)):
        if one != other:
            return f"item {place} is {one!r}, not {other!r}"
    return f"the features differ: {table_difference(found.features, expected.features)}"


@check
def check_interactions(case: DataCase) -> None:
    """Interactions are what validation lets through: types, ids of the catalog and the users, finite numbers."""
    data = case.data
    table = data.interactions.table
    require("" if len(table) else "there are none", "the interactions")
    _require_ids(data)
    for name, dtype in _TYPES.items():
        if name in table:
            require("" if table[name].dtype == dtype else f"it is {table[name].dtype}, not {dtype}", f"column {name!r}")
    for name in [str(name) for name in table if str(name).startswith(CONTEXT)]:
        fits = table[name].dtype == "float32" or isinstance(table[name].dtype, pd.CategoricalDtype)
        require("" if fits else f"it is {table[name].dtype}, not float32 or categories", f"column {name!r}")
    kept, quarantine = Interactions.validate(table, None, data.catalog.item_ids)
    reasons = "; ".join(f"{count} x {reason}" for reason, count in quarantine.counts.items())
    require(f"it sets rows aside: {reasons}" if reasons else "", "the interactions to validation")
    merged = kept.duplicates_merged
    require(f"it merges {merged} rows of the same user and item" if merged else "", "the interactions to validation")
    if data.interactions.has_timestamps:
        latest = float(table["timestamp"].to_numpy().max())
        require("" if latest < _LATEST else f"the latest is {latest:.0f}: are they milliseconds?", "column 'timestamp'")


def _require_ids(data: Dataset) -> None:
    table, users = data.interactions.table, data.users.index
    expected = {"user_id": list(users), "item_id": list(data.catalog.item_ids)}
    for name, ids in expected.items():
        owner = "users" if name == "user_id" else "catalog"
        same = list(table[name].cat.categories) == ids
        require("" if same else f"its categories are not the ids of the {owner}, in their order", f"column {name!r}")
        missing = int((table[name].cat.codes < 0).sum())
        require(f"{missing} rows have none" if missing else "", f"column {name!r}")
    strange = [user for user in users if not isinstance(user, str)]
    require(f"{strange[0]!r} is no text" if strange else "", "the user ids")
    require("" if users.is_unique else "one is there twice", "the user ids")
    if data.friends is not None:
        for name in ("user_id", "friend_id"):
            outside = data.friends.loc[~data.friends[name].isin(users.tolist()), name]
            require(f"{outside.iloc[0]!r} is no user of the data set" if len(outside) else "", f"friends, {name!r}")


@check
def check_counts(case: DataCase) -> None:
    """Every row that was read is kept, set aside with a reason, merged or dropped; none is lost on the way."""
    data = case.data
    report, quarantine = data.report, data.quarantine
    for name in ("line", "reason"):
        require("" if name in quarantine.rows else f"it has no column {name!r}", "the rows set aside")
    pairs = {
        "rows_kept": (report.rows_kept, len(data.interactions), "interactions"),
        "duplicates_merged": (report.duplicates_merged, data.interactions.duplicates_merged, "interactions"),
        "quarantined": (sum(report.quarantined.values()), len(quarantine), "rows set aside"),
    }
    for name, (said, there, where) in pairs.items():
        require("" if said == there else f"it says {said}, the {where} {there}", f"the report's {name}")
    same = report.quarantined == quarantine.counts
    require("" if same else f"it says {report.quarantined}, the rows {quarantine.counts}", "the report's quarantined")
    accounted = report.rows_kept + len(quarantine) + report.duplicates_merged + report.rows_dropped
    found = f"kept, set aside, merged and dropped ones are {accounted} together"
    require("" if report.rows_read == accounted else found, f"{report.rows_read} rows read")


@check
def check_partitions(case: DataCase) -> None:
    """Users can be dealt to nodes by every column of theirs, and the nodes' cohorts together are the data set."""
    data = case.data
    prepared = Prepared.of(data, "leave-one-out", SEED)
    everybody = prepared.cohort()
    rows = len(data.interactions)
    in_parts = _held(everybody)
    if not data.interactions.has_labels:
        require("" if in_parts == rows else f"train, validation and test hold {in_parts}", f"{rows} interactions")
    ordered = everybody.ordered == data.interactions.has_timestamps
    require("" if ordered else f"ordered is {everybody.ordered}", "the cohort of everybody")
    for scheme in ("users", "dirichlet:0.5", *(f"by:{column}" for column in data.users.columns)):
        nodes = partition(data.users, scheme, _NODES, SEED)
        fits = len(nodes) == data.num_users and bool(((nodes >= 0) & (nodes < _NODES)).all())
        require("" if fits else f"nodes are {np.unique(nodes)}", f"partition {scheme!r}")
        cohorts = [prepared.cohort(node, _NODES, scheme, SEED) for node in range(_NODES)]
        held = sum(map(_held, cohorts))
        found = f"{_NODES} nodes hold {held} interactions together, not {in_parts}"
        require("" if held == in_parts else found, f"partition {scheme!r}")


def _held(cohort: Cohort) -> int:
    return sum(len(part.items) for part in (cohort.train, cohort.validation, cohort.test))


@check
def check_unreadable_path(case: DataCase) -> None:
    """A path with nothing usable gives a DataError that names it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        empty_folder, empty_file, binary = root / "empty-folder", root / "empty-file.dat", root / "binary.dat"
        empty_folder.mkdir()
        empty_file.touch()
        binary.write_bytes(bytes(range(256)) * 8)
        places = {"nothing there": root / "missing", "an empty folder": empty_folder, "an empty file": empty_file,
                  "a binary file": binary}  # fmt: skip
        for given, place in places.items():
            try:
                case.load(str(place))
            except DataError as error:
                require("" if place.name in str(error) else f"the error does not name it: {error}", f"{given}, load()")
            except Exception as error:
                require(f"{type(error).__name__} in place of a DataError: {error}", f"{given}, load()")
            else:
                require("it was loaded; a source that reads none has takes_path = False", f"{given}, load()")
            try:
                case.load_catalog(str(place))
            except DataError:
                continue
            except Exception as error:
                require(f"{type(error).__name__} in place of a DataError: {error}", f"{given}, catalog()")


@check
def check_columns(case: DataCase) -> None:
    """A mapping to a column that is not there is an error that names it, and so is one that is none."""
    for columns, named in (("user_id=no_such_column", "no_such_column"), ("no_such_field=user", "no_such_field")):
        try:
            case.load(columns=columns)
        except (ConfigError, DataError) as error:
            require("" if named in str(error) else f"the error does not name it: {error}", f"columns {columns!r}")
        else:
            require("it was accepted", f"columns {columns!r}")
