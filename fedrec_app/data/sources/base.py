"""The contract of a data set: one class in one file."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.schema import Dataset
from fedrec_app.errors import ConfigError, unknown


class SourceOptions(BaseModel):
    """Options of a data set; a subclass adds fields with defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)


OptionsT = TypeVar("OptionsT", bound=SourceOptions)


class DataSource(ABC, Generic[OptionsT]):
    """A data set that can be loaded by its name.

    A third-party package offers one with an entry point of the group `fedrec.datasets`:

        class Shop(DataSource[SourceOptions]):
            name = "shop"
            summary = "purchases of our shop"

            def load(self, path, columns, options, seed):
                return Dataset.assemble(pandas.read_sql(...))
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    api_version: ClassVar[int | None] = None
    Options: ClassVar[type[SourceOptions]] = SourceOptions
    takes_columns: ClassVar[bool] = False
    takes_path: ClassVar[bool] = True

    @abstractmethod
    def load(self, path: str, columns: str, options: OptionsT, seed: int) -> Dataset:
        """Returns the whole data set, users with few interactions included.

        Args:
            path: file or folder; "" where the data set is generated.
            columns: mapping "user_id=user,item_id=film" from our names to the file's, or "".
            options: a validated `Options`.
            seed: of everything that is drawn.

        Raises:
            DataError: the data is missing or unusable.
        """

    def catalog(self, path: str, columns: str, options: OptionsT, seed: int) -> Catalog:
        """Returns the catalog that `load` would give; override it where that is cheaper than loading."""
        return self.load(path, columns, options, seed).catalog

    def catalog_is_listed(self, options: OptionsT) -> bool:
        """Returns whether the catalog comes from a list of its own, and not from what users did: an item that only one
        of them knows would tell of him."""
        return type(self).catalog is not DataSource.catalog


def parse_options(source: DataSource, text: str) -> SourceOptions:
    """Returns the validated options of a data set.

    Args:
        source: the data set.
        text: a JSON object, or "".

    Raises:
        ConfigError: the text is no JSON object, or an option is unknown or has a wrong value.
    """
    kind = f"option of dataset {source.name!r}"
    try:
        given = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise ConfigError(f"options of dataset {source.name!r} are not JSON: {text!r} ({error})") from error
    if not isinstance(given, dict):
        raise ConfigError(f"options of dataset {source.name!r} must be a JSON object, not {text!r}")
    allowed = list(source.Options.model_fields)
    for key in given:
        if not allowed:
            raise ConfigError(f"unknown {kind} {key!r}: it takes none")
        if key not in allowed:
            raise ConfigError(unknown(kind, key, allowed))
    try:
        return source.Options.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{kind} {where!r}: {first['msg']}" if where else f"{kind}s: {first['msg']}"
        raise ConfigError(f"{what} (found {first['input']!r})") from error
