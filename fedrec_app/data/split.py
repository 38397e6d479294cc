"""What a model is trained on and what it is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec_app.data.histories import Histories
from fedrec_app.errors import ConfigError, DataError, unknown
from fedrec_app.seeding import rng

PROTOCOLS = ("leave-one-out", "temporal", "leaky-pfedrec")
_MIN_ITEMS = 3
_CUTS = (0.8, 0.9)


@dataclass(frozen=True)
class Split:
    """The items of every user in three parts, each oldest first: disjoint, and together all of them.

    Attributes:
        train: (num_users lists) what models are trained on.
        validation: (num_users lists) held out to choose the round and the settings.
        test: (num_users lists) held out to be read once.
        never_negative: (num_users lists) what is never drawn as a training negative.
    """

    train: Histories
    validation: Histories
    test: Histories
    never_negative: Histories


def split(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    timestamps: NDArray[np.float64] | None,
    user_ids: Sequence[str],
    protocol: str,
    seed: int,
) -> Split:
    """Returns the parts of every user's items.

    "leave-one-out": a user's last item is test, the one before is validation; equal times keep the order of the
        rows. Without timestamps the two are drawn from (seed, user), so that the draw is the same wherever the user
        is. Users with fewer than three items keep all in train and are not evaluated.
    "temporal": one cut of time for all users at the quantiles 0.8 and 0.9 of all rows: train up to the first,
        validation up to the second, test after it. A user may have none or several items in each part, train included.
        The cuts come from the rows given: nodes that hold different rows cut at different times.
    "leaky-pfedrec": as leave-one-out, but held-out items are never drawn as training negatives, as in the code
        published with PFedRec (IJCAI-23). THIS LEAKS: the model is told that all is negative except train and the
        answers. It exists to reproduce published figures, never to compare methods.

    Args:
        users: (num_rows,) position of each row's user in `user_ids`.
        items: (num_rows,) position of each row's item in the catalog; no pair of user and item twice.
        timestamps: (num_rows,) seconds, or None.
        user_ids: (num_users,) ids as they stand in the data.
        protocol: one of `PROTOCOLS`.
        seed: of the run.

    Raises:
        ConfigError: no such protocol.
        DataError: "temporal" without timestamps.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(unknown("protocol", protocol, PROTOCOLS))
    if timestamps is None and protocol == "temporal":
        raise DataError("protocol 'temporal' needs timestamps, which this data set does not have")
    order = np.argsort(users, kind="stable") if timestamps is None else np.lexsort((timestamps, users))
    users, items = users[order], items[order]
    if timestamps is None:
        part = _leave_one_out_at_random(users, user_ids, seed)
    elif protocol == "temporal":
        part = _by_time(timestamps[order])
    else:
        part = _leave_last_out(users, len(user_ids))

    train, validation, test = (Histories.from_rows(users[part == p], items[part == p], len(user_ids)) for p in range(3))
    never_negative = train
    if protocol == "leaky-pfedrec":
        never_negative = train.followed_by(validation).followed_by(test)
    return Split(train, validation, test, never_negative)


def _by_time(timestamps: NDArray[np.float64]) -> NDArray[np.int8]:
    if len(timestamps) == 0:
        return np.zeros(0, dtype=np.int8)
    # cuts are times that occur, so that simultaneous rows are never parted by rounding
    cuts = np.quantile(timestamps, _CUTS, method="lower")
    return np.searchsorted(cuts, timestamps, side="left").astype(np.int8)


def _leave_last_out(users: NDArray[np.int64], num_users: int) -> NDArray[np.int8]:
    lengths = np.bincount(users, minlength=num_users)
    last = np.cumsum(lengths)[lengths >= _MIN_ITEMS] - 1
    part = np.zeros(len(users), dtype=np.int8)
    part[last], part[last - 1] = 2, 1
    return part


def _leave_one_out_at_random(users: NDArray[np.int64], user_ids: Sequence[str], seed: int) -> NDArray[np.int8]:
    lengths = np.bincount(users, minlength=len(user_ids))
    starts = np.cumsum(lengths) - lengths
    part = np.zeros(len(users), dtype=np.int8)
    for user in np.flatnonzero(lengths >= _MIN_ITEMS).tolist():
        validation, test = rng(seed, "split", user_ids[user]).choice(lengths[user], size=2, replace=False)
        part[starts[user] + validation], part[starts[user] + test] = 1, 2
    return part
