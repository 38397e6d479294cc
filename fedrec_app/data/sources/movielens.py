"""MovieLens-100K (Harper and Konstan, ACM TiiS 2015), in its official layout."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.schema import Dataset
from fedrec_app.data.sources.base import DataSource, SourceOptions
from fedrec_app.data.sources.files import find, read_text
from fedrec_app.data.validation import as_numbers
from fedrec_app.errors import DataError

RATINGS, ITEMS, USERS, GENRES = "u.data", "u.item", "u.user", "u.genre"
_FIRST_GENRE = 5
_YEAR_IN_TITLE, _YEAR_AT_END = r"\((\d{4})\)", r"(\d{4})$"


class MovieLens100K(DataSource[SourceOptions]):
    """Ratings of films with title, genres and year, and of users with age, gender and occupation."""

    name: ClassVar[str] = "ml-100k"
    summary: ClassVar[str] = "MovieLens-100K: 943 users, 1,682 films, 100,000 ratings"

    def load(self, path: str, columns: str, options: SourceOptions, seed: int) -> Dataset:
        """Returns the ratings; `path` is the folder with u.data, u.item, u.user and u.genre. See `DataSource.load`."""
        ratings = find(path, self.name, RATINGS)
        folder = str(ratings.parent)
        names = ["user_id", "item_id", "rating", "timestamp"]
        raw = read_text(ratings, "\t", names, as_text=names[:2])
        names = ["user_id", "age", "gender", "occupation", "zip"]
        users = _read(find(folder, self.name, USERS), names, names[2:])
        users = users.set_index("user_id").drop(columns="zip")
        return Dataset.assemble(raw.rows, raw.lines, _catalog(folder), users, malformed=raw.malformed)

    def catalog(self, path: str, columns: str, options: SourceOptions, seed: int) -> Catalog:
        """Returns the films of u.item alone. See `DataSource.catalog`."""
        return _catalog(str(find(path, self.name, RATINGS).parent))


def _catalog(folder: str) -> Catalog:
    dataset = MovieLens100K.name
    listed = _read(find(folder, dataset, GENRES), ["genre", "number"], ["genre"])
    genres = listed.dropna().sort_values("number")["genre"].to_list()
    path = find(folder, dataset, ITEMS)
    fixed = ["item_id", "title", "released", "video", "link"]
    items = _read(path, [*fixed, *genres], fixed)
    flags = items.iloc[:, _FIRST_GENRE:].to_numpy()
    if (items["title"] == "").to_numpy().any() or pd.isna(flags).any():
        raise DataError(f"{path} does not have {_FIRST_GENRE} fields and {len(genres)} genre flags in every line")
    category = ["|".join(genre for genre, on in zip(genres, row, strict=True) if on) for row in flags == 1]
    # one film, "unknown", has no year anywhere
    titled = as_numbers(items["title"].str.extract(_YEAR_IN_TITLE)[0])
    released = as_numbers(items["released"].str.extract(_YEAR_AT_END)[0])
    year = np.where(np.isnan(titled), released, titled)
    features = pd.DataFrame({"title": items["title"], "category": pd.Series(category, dtype="str"), "year": year})
    return Catalog(tuple(items["item_id"]), features)


def _read(path: Path, names: list[str], as_text: list[str]) -> pd.DataFrame:
    raw = read_text(path, "|", names, as_text=[*as_text, "user_id"], encoding="latin-1")
    if len(raw.malformed):
        raise DataError(f"{path} line {raw.malformed.rows['line'].iloc[0]} has more than {len(names)} fields")
    return raw.rows
