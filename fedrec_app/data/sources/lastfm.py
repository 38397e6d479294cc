"""Last.fm, HetRec 2011 (Cantador, Brusilovsky & Kuflik, RecSys 2011): who listened to whom, and friends."""

from __future__ import annotations

from typing import ClassVar

import pandas as pd

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.schema import Dataset
from fedrec_app.data.sources.base import DataSource, SourceOptions
from fedrec_app.data.sources.files import find, read_text
from fedrec_app.errors import DataError

LISTENING, FRIENDS, ARTISTS = "user_artists.dat", "user_friends.dat", "artists.dat"


class LastFm(DataSource[SourceOptions]):
    """Whom users listened to, how often, and who is whose friend; there is no time, so nothing has an order."""

    name: ClassVar[str] = "lastfm-2k"
    summary: ClassVar[str] = "Last.fm, HetRec 2011: 1,892 users, 17,632 artists, 92,834 listening counts, friends"

    def load(self, path: str, columns: str, options: SourceOptions, seed: int) -> Dataset:
        """Returns the listening counts as ratings, and the friends; `path` is the folder. See `DataSource.load`."""
        listening = find(path, self.name, LISTENING)
        raw = read_text(listening, "\t", as_text=["userID", "artistID"])
        if missing := {"userID", "artistID", "weight"} - set(raw.rows):
            raise DataError(f"{listening}: no column {', '.join(sorted(missing))}; it has {', '.join(raw.rows)}")
        rows = raw.rows.rename(columns={"userID": "user_id", "artistID": "item_id", "weight": "rating"})
        folder = str(listening.parent)
        names = ["user_id", "friend_id"]
        friends = read_text(find(folder, self.name, FRIENDS), "\t", names, as_text=names).rows
        return Dataset.assemble(rows, raw.lines, _catalog(folder), friends=friends, malformed=raw.malformed)

    def catalog(self, path: str, columns: str, options: SourceOptions, seed: int) -> Catalog:
        """Returns the artists of artists.dat alone. See `DataSource.catalog`."""
        return _catalog(str(find(path, self.name, LISTENING).parent))


def _catalog(folder: str) -> Catalog:
    raw = read_text(find(folder, LastFm.name, ARTISTS), "\t", as_text=["id", "name", "url", "pictureURL"])
    if {"id", "name"} - set(raw.rows):
        raise DataError(f"{folder}/{ARTISTS}: columns id and name are expected, it has {', '.join(raw.rows)}")
    return Catalog(tuple(raw.rows["id"]), pd.DataFrame({"title": raw.rows["name"]}))
