"""How the users of the generated data set choose: sessions, topics, items, hours and devices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedrec_app.seeding import rng

_BLOCK_EVENTS = 1_000_000
_REDRAWS = 6
_OPENING = 1_577_836_800
_DAY, _HOUR = 86_400.0, 3_600.0
_SPAN_DAYS = 730
_NIGHT = 6.0


@dataclass(frozen=True)
class Items:
    """What makes items attractive.

    Attributes:
        main: (num_items,) topic of each item.
        popularity: (num_items,) weight of each item, topics aside.
        topic_weights: (num_topics, num_items) weight of each item for one who wants a topic.
    """

    main: NDArray[np.int64]
    popularity: NDArray[np.float64]
    topic_weights: NDArray[np.float64]


@dataclass(frozen=True)
class Users:
    """What users like.

    Attributes:
        region: (num_users,) position of the user's region.
        early: (num_users, num_topics) shares of topics at first.
        late: (num_users, num_topics) shares that taste drifts to.
        lengths: (num_users,) how many items each user chooses, at most num_items.
    """

    region: NDArray[np.int64]
    early: NDArray[np.float64]
    late: NDArray[np.float64]
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class Events:
    """Choices, user by user and oldest first; with labels, impressions.

    Attributes:
        users: (num_events,) int32.
        items: (num_events,) int32.
        timestamps: (num_events,) whole seconds since 1970.
        topics: (num_events,) int16, the topic of the session.
        labels: (num_events,) int8, 1 where the item was chosen, or None.
        devices: (num_events,) int8, or None.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    timestamps: NDArray[np.float64]
    topics: NDArray[np.int16]
    labels: NDArray[np.int8] | None = None
    devices: NDArray[np.int8] | None = None


class _Weighted:
    """Draws items from one of several distributions by a search in their stacked cumulative sums."""

    def __init__(self, weights: NDArray[np.float64]) -> None:
        cumulative = np.cumsum(weights, axis=1)
        cumulative /= cumulative[:, -1:]
        self._stacked = (cumulative + np.arange(len(weights))[:, None]).ravel()
        self._width = weights.shape[1]

    def draw(self, which: NDArray[np.integer], generator: np.random.Generator) -> NDArray[np.int64]:
        found = np.searchsorted(self._stacked, which + generator.random(len(which)), side="right")
        return np.clip(found - which * np.int64(self._width), 0, self._width - 1)


def draw_events(items: Items, users: Users, session_length: float, drift: float, seed: int) -> Events:
    """Returns what every user chose, each item at most once.

    Args:
        items: the items.
        users: the users.
        session_length: mean number of choices in a row from one topic.
        drift: share of the last choices that follow the late taste.
        seed: of the run.
    """
    by_topic = _Weighted(items.topic_weights)
    ends = np.cumsum(users.lengths)
    parts: list[Events] = []
    start = 0
    while start < len(ends):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _BLOCK_EVENTS, side="right")))
        generator = rng(seed, "synthetic", "events", start)
        parts.append(_draw_block(np.arange(start, stop), items, users, by_topic, session_length, drift, generator))
        start = stop
    return Events(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("users", "items", "timestamps", "topics")
        )
    )


def _draw_block(
    block: NDArray[np.int64],
    items: Items,
    users: Users,
    by_topic: _Weighted,
    session_length: float,
    drift: float,
    generator: np.random.Generator,
) -> Events:
    lengths = users.lengths[block]
    owner = np.repeat(np.arange(len(block)), lengths)
    first = np.cumsum(lengths) - lengths
    place = np.arange(len(owner)) - first[owner]
    opens = generator.random(len(owner)) < 1 / session_length
    opens[first] = True
    session = np.cumsum(opens) - 1
    at = np.flatnonzero(opens)
    progress = place[at] / np.maximum(lengths[owner[at]] - 1, 1)
    late = generator.random(len(at)) < drift * progress
    topic = _pick_topics(
        np.where(late[:, None], users.late[block][owner[at]], users.early[block][owner[at]]), generator
    )
    chosen = _choose_once(owner, topic[session], items, by_topic, generator)

    gaps = 1 + generator.exponential(_SPAN_DAYS * session_length / (2 * lengths[owner[at]]))
    gaps[session[first]] = generator.uniform(0, _SPAN_DAYS, size=len(block))
    days = np.floor(_within(gaps, session[first], owner[at]))
    hour = _favorite_hour(topic, len(items.topic_weights)) + generator.normal(0, 2.0, size=len(at))
    pauses = generator.exponential(120.0, size=len(owner))
    offset = _within(pauses, at, session)
    clock = np.minimum((hour[session] - _NIGHT) % 24 * _HOUR + offset, _DAY - 1) + _NIGHT * _HOUR
    return Events(
        users=block[owner].astype(np.int32),
        items=chosen.astype(np.int32),
        timestamps=np.floor(_OPENING + days[session] * _DAY + clock),
        topics=topic[session].astype(np.int16),
    )


def _within(values: NDArray[np.float64], starts: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns running sums that begin anew at every group's start."""
    total = np.cumsum(values)
    return total - (total[starts] - values[starts])[group]


def _favorite_hour(topics: NDArray[np.integer], num_topics: int) -> NDArray[np.float64]:
    return 8.0 + 15.0 * topics / num_topics


def _pick_topics(shares: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
    cumulative = np.cumsum(shares, axis=1)
    draws = generator.random(len(shares)) * cumulative[:, -1]
    return np.minimum((cumulative <= draws[:, None]).sum(axis=1), shares.shape[1] - 1)


def _choose_once(
    owner: NDArray[np.int64],
    topic: NDArray[np.int64],
    items: Items,
    by_topic: _Weighted,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Returns an item for each event; repeats of a user are drawn again, at last from what is left."""
    num_items = len(items.main)
    by_anything = _Weighted(items.popularity[None, :])
    chosen = by_topic.draw(topic, generator)
    for attempt in range(2 * _REDRAWS + 1):
        repeats = np.flatnonzero(pd.Series(owner * num_items + chosen).duplicated().to_numpy())
        if len(repeats) == 0 or attempt == 2 * _REDRAWS:
            break
        if attempt < _REDRAWS:
            chosen[repeats] = by_topic.draw(topic[repeats], generator)
        else:
            chosen[repeats] = by_anything.draw(np.zeros(len(repeats), dtype=np.int64), generator)
    log_popularity = np.log(items.popularity)
    starts = np.searchsorted(owner, np.arange(owner[-1] + 2))
    for user in np.unique(owner[repeats]):
        mine = repeats[owner[repeats] == user]
        keys = log_popularity + generator.gumbel(size=num_items)
        keys[chosen[starts[user] : starts[user + 1]]] = -np.inf
        chosen[mine] = np.argsort(-keys, kind="stable")[: len(mine)]
    return chosen


def draw_impressions(events: Events, items: Items, negatives: int, num_devices: int, seed: int) -> Events:
    """Returns every choice as a click among impressions that were not clicked, in random order within a slate.

    Hour and device go with the topic of the session, so that context tells something about a click.

    Args:
        events: the choices.
        items: the items; what is shown without a click is drawn by popularity.
        negatives: impressions without a click for each choice; fewer where the draw hits an item of the user.
        num_devices: how many devices there are.
        seed: of the run.
    """
    generator = rng(seed, "synthetic", "impressions")
    size = 1 + negatives
    shown = np.repeat(events.items.astype(np.int64), size)
    label = np.zeros(len(shown), dtype=np.int8)
    label[generator.integers(size, size=len(events.items)) + np.arange(len(events.items)) * size] = 1
    unclicked = np.flatnonzero(label == 0)
    shown[unclicked] = _Weighted(items.popularity[None, :]).draw(np.zeros(len(unclicked), dtype=np.int64), generator)
    users = np.repeat(events.users, size)
    pairs = users.astype(np.int64) * len(items.main)
    clicked = pd.Index(events.users.astype(np.int64) * len(items.main) + events.items)
    keep = (label == 1) | ~pd.Series(pairs + shown).isin(clicked).to_numpy()
    device = np.where(
        generator.random(len(events.items)) < 0.6,
        events.topics % num_devices,
        generator.integers(num_devices, size=len(events.items)),
    )
    return Events(
        users=users[keep],
        items=shown[keep].astype(np.int32),
        timestamps=np.repeat(events.timestamps, size)[keep],
        topics=np.repeat(events.topics, size)[keep],
        labels=label[keep],
        devices=np.repeat(device, size)[keep].astype(np.int8),
    )
