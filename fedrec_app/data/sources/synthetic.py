"""A generated data set that needs no download: long-tailed, clustered by taste, drifting, and learnable.

Users mix a few topics, items belong mostly to one (the factors of probabilistic latent semantic analysis, Hofmann,
SIGIR 1999), popularity follows a Zipf law inside the topics, a user's mix drifts from an early to a late one, and
choices come in sessions of one topic. Everything follows from the seed alone.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.schema import Dataset, Interactions, LoadReport
from fedrec_app.data.sources.base import DataSource, SourceOptions
from fedrec_app.data.sources.behavior import Events, Items, Users, draw_events, draw_impressions
from fedrec_app.seeding import rng

TOPICS = (
    *("drama", "comedy", "thriller", "romance", "documentary", "animation", "western", "musical", "adventure"),
    *("mystery", "fantasy", "history", "war", "sport", "family", "horror", "crime", "travel", "nature", "science"),
)
_ADJECTIVES = (
    "Silent",
    "Golden",
    "Broken",
    "Distant",
    "Hidden",
    "Crimson",
    "Electric",
    "Last",
    "Paper",
    "Wild",
)
_NOUNS = (
    "River",
    "Garden",
    "Machine",
    "Promise",
    "Harbor",
    "Winter",
    "Signal",
    "Mirror",
    "Orchard",
    "Station",
)
_REGIONS = ("north", "south", "east", "west", "islands")
_REGION_SHARES = (0.35, 0.25, 0.2, 0.15, 0.05)
DEVICES = ("phone", "tablet", "desktop", "tv")
_SAME_TOPIC_FRIENDS = 0.7


class SyntheticOptions(SourceOptions):
    """Options of `synthetic`; the defaults have the size of MovieLens-100K."""

    num_users: int = Field(943, ge=1, le=10_000_000, description="how many users")
    num_items: int = Field(1682, ge=1, le=10_000_000, description="how many items")
    mean_interactions: float = Field(106.0, ge=1, description="mean of a user; users are log-normal around it")
    min_interactions: int = Field(20, ge=1, description="least of a user; all items where there are fewer")
    num_topics: int = Field(20, ge=1, le=256, description="how many topics tastes are mixed from")
    popularity_exponent: float = Field(
        1.25, ge=0, le=3, description="of the Zipf law of items; 0: all items of a topic alike"
    )
    drift: float = Field(0.5, ge=0, le=1, description="share of a user's late choices that follow a new taste")
    session_length: float = Field(4.0, ge=1, description="mean number of choices in a row from one topic")
    friends_per_user: int = Field(
        4, ge=0, le=100, description="links that a user makes, mostly to users of like taste; 0: none"
    )
    labels: bool = Field(
        default=False, description="impressions with a click label and context (hour, device) instead of interactions"
    )
    negatives: int = Field(3, ge=1, le=20, description="impressions without a click for each one with, under labels")
    data_seed: int | None = Field(
        default=None, description="fixes the data while the run's seed varies; null: the run's seed"
    )

    @model_validator(mode="after")
    def _ordered(self) -> SyntheticOptions:
        if self.mean_interactions < self.min_interactions:
            raise ValueError("mean_interactions is below min_interactions")
        return self


class Synthetic(DataSource[SyntheticOptions]):
    """The generated data set; works offline, takes its size from the options."""

    name: ClassVar[str] = "synthetic"
    summary: ClassVar[str] = "generated, MovieLens-100K-like: 943 users, 1,682 items, about 100,000 interactions"
    Options: ClassVar[type[SourceOptions]] = SyntheticOptions
    takes_path: ClassVar[bool] = False

    def load(self, path: str, columns: str, options: SyntheticOptions, seed: int) -> Dataset:
        """Returns the generated data set; nothing is read. See `DataSource.load`."""
        seed = seed if options.data_seed is None else options.data_seed
        items, users = _items(options, seed), _users(options, seed)
        events = draw_events(items, users, session_length=options.session_length, drift=options.drift, seed=seed)
        if options.labels:
            events = draw_impressions(events, items, options.negatives, len(DEVICES), seed)
        catalog = _catalog(options, items, seed)
        attributes = pd.DataFrame(
            {"region": np.array(_REGIONS)[users.region]},
            index=pd.Index(_names("u", options.num_users), dtype="str", name="user_id"),
        )
        friends = _friends(attributes.index, users, options.friends_per_user, seed)
        table = _table(events, attributes.index, catalog)
        report = LoadReport(rows_read=len(table), rows_kept=len(table))
        return Dataset.of(Interactions(table), catalog, attributes, friends, report)

    def catalog(self, path: str, columns: str, options: SyntheticOptions, seed: int) -> Catalog:
        """Returns the items without generating interactions. See `DataSource.catalog`."""
        seed = seed if options.data_seed is None else options.data_seed
        return _catalog(options, _items(options, seed), seed)


def _names(prefix: str, count: int) -> list[str]:
    width = len(str(count - 1))
    return [f"{prefix}{number:0{width}d}" for number in range(count)]


def _items(options: SyntheticOptions, seed: int) -> Items:
    generator = rng(seed, "synthetic", "items")
    count, topics = options.num_items, options.num_topics
    shares = generator.dirichlet(np.full(topics, 5.0))
    main = generator.choice(topics, size=count, p=shares)
    second = generator.integers(topics, size=count)
    rank = generator.permutation(count)
    popularity = np.power(rank + 10.0, -options.popularity_exponent, dtype=np.float64)
    membership = np.full((topics, count), 0.001)
    membership[second, np.arange(count)] += 0.2
    membership[main, np.arange(count)] += 0.8
    weights = membership * popularity
    return Items(main=main, popularity=popularity, topic_weights=weights)


def _users(options: SyntheticOptions, seed: int) -> Users:
    generator = rng(seed, "synthetic", "users")
    count, topics = options.num_users, options.num_topics
    region = generator.choice(len(_REGIONS), size=count, p=_REGION_SHARES)
    prior = generator.dirichlet(np.full(topics, 2.0), size=len(_REGIONS)) * topics
    early = _dirichlet(generator, 0.05 * prior[region])
    late = _dirichlet(generator, 0.05 * prior[region])
    longer = generator.lognormal(sigma=0.95, size=count)
    longer *= (options.mean_interactions - options.min_interactions) / longer.mean()
    most = max(min(options.min_interactions, options.num_items), options.num_items // 2)
    lengths = np.minimum(options.min_interactions + np.rint(longer), most).astype(np.int64)
    return Users(region=region, early=early, late=late, lengths=lengths)


def _dirichlet(generator: np.random.Generator, alpha: NDArray[np.float64]) -> NDArray[np.float64]:
    drawn = generator.standard_gamma(alpha) + 1e-9
    return drawn / drawn.sum(axis=1, keepdims=True)


def _topic_names(count: int) -> list[str]:
    return [TOPICS[k % len(TOPICS)] + (f" {k // len(TOPICS) + 1}" if k >= len(TOPICS) else "") for k in range(count)]


def _catalog(options: SyntheticOptions, items: Items, seed: int) -> Catalog:
    generator = rng(seed, "synthetic", "titles")
    topics = _topic_names(options.num_topics)
    words = generator.integers(len(_ADJECTIVES), size=(options.num_items, 3)).tolist()
    category = [topics[k] for k in items.main.tolist()]
    ids = _names("i", options.num_items)
    title = [f"{_ADJECTIVES[a]} {_NOUNS[b]} {i[1:]}" for (a, b, _), i in zip(words, ids, strict=True)]
    text = [
        f"{kind.capitalize()} film about a {_ADJECTIVES[c].lower()} {_NOUNS[b].lower()}"
        for (_, b, c), kind in zip(words, category, strict=True)
    ]
    return Catalog(tuple(ids), pd.DataFrame({"title": title, "category": category, "text": text}, dtype="str"))


def _friends(ids: pd.Index, users: Users, per_user: int, seed: int) -> pd.DataFrame | None:
    """Returns edges in both directions; most join users whose favorite topic is the same."""
    count = len(ids)
    if per_user == 0:
        return None
    generator = rng(seed, "synthetic", "friends")
    favorite = users.early.argmax(axis=1)
    by_favorite = np.argsort(favorite, kind="stable")
    sizes = np.bincount(favorite)
    start = np.cumsum(sizes) - sizes
    who = np.repeat(np.arange(count), per_user)
    alike = by_favorite[start[favorite[who]] + (generator.random(len(who)) * sizes[favorite[who]]).astype(np.int64)]
    anyone = generator.integers(count, size=len(who))
    friend = np.where(generator.random(len(who)) < _SAME_TOPIC_FRIENDS, alike, anyone)
    pairs = np.unique(np.concatenate([who * count + friend, friend * count + who]))
    left, right = pairs // count, pairs % count
    apart = left != right
    return pd.DataFrame({"user_id": ids[left[apart]], "friend_id": ids[right[apart]]})


def _table(events: Events, user_ids: pd.Index, catalog: Catalog) -> pd.DataFrame:
    columns: dict[str, object] = {
        "user_id": pd.Categorical.from_codes(events.users, categories=user_ids),
        "item_id": pd.Categorical.from_codes(events.items, categories=pd.Index(catalog.item_ids, dtype="str")),
        "timestamp": events.timestamps,
    }
    if events.labels is not None:
        columns["label"] = events.labels
        columns["context_hour"] = (events.timestamps // 3600 % 24).astype(np.float32)
        columns["context_device"] = pd.Categorical.from_codes(events.devices, categories=pd.Index(DEVICES))
    return pd.DataFrame(columns, copy=False)
