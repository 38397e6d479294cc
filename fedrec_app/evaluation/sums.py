"""The sums over users that leave a node after evaluation: additive in any order and grouping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec_app.errors import DataError

SAMPLED = "sampled/"
_COUNTS = ("num_users", "num_without_held_out", "num_held_out", "num_short_negatives", "list_length")
_ARRAYS = {"names": "uint8", "sums": "float64", "item_counts": "int64", "counts": "int64"}


@dataclass(frozen=True, eq=False)
class MetricSums:
    """Metrics of many users, summed.

    Attributes:
        names: of the metrics, such as "ndcg@10" and, among sampled negatives, "sampled/ndcg@10".
        sums: (1 + num_bootstrap, len(names) + 1) float64. Row 0 sums each metric over users, row b sums it
            weighted with each user's b-th bootstrap weight; the last column is the sum of the weights (row 0:
            the number of users).
        item_counts: (num_items,) int64 how often each item stood in a user's list of best items.
        num_users: users evaluated.
        num_without_held_out: users skipped because nothing of theirs is held out.
        num_held_out: held-out items of the users evaluated, each user's counted once.
        num_short_negatives: users evaluated who have fewer free items than negatives were to be drawn.
        list_length: length of the lists that item_counts counts.

    Raises:
        DataError: anything above does not hold; the message lists all that is wrong.
    """

    names: tuple[str, ...]
    sums: NDArray[np.float64]
    item_counts: NDArray[np.int64]
    num_users: int
    num_without_held_out: int
    num_held_out: int
    num_short_negatives: int
    list_length: int

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise DataError(f"metric sums that cannot be: {'; '.join(problems)}")

    @classmethod
    def zero(cls, names: Sequence[str], num_items: int, num_bootstrap: int = 0, list_length: int = 10) -> MetricSums:
        """Returns the sums over no user.

        Args:
            names: of the metrics.
            num_items: size of the catalog.
            num_bootstrap: number of bootstrap rows.
            list_length: length of the lists behind item_counts.
        """
        sums = np.zeros((1 + num_bootstrap, len(names) + 1))
        return cls(tuple(names), sums, np.zeros(num_items, dtype=np.int64), 0, 0, 0, 0, list_length)

    def __add__(self, other: MetricSums) -> MetricSums:
        """Returns the sums over the users of both; raises DataError when the two do not measure the same."""
        self._require_like(other)
        added = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS[:-1]}
        return MetricSums(
            names=self.names,
            sums=self.sums + other.sums,
            item_counts=self.item_counts + other.item_counts,
            list_length=self.list_length,
            **added,
        )

    def to_arrays(self) -> dict[str, NDArray]:
        """Returns arrays of plain numbers: names (UTF-8 bytes), sums, item_counts, and the rest as counts."""
        return {
            "names": np.frombuffer("\n".join(self.names).encode(), dtype=np.uint8).copy(),
            "sums": self.sums,
            "item_counts": self.item_counts,
            "counts": np.array([getattr(self, name) for name in _COUNTS], dtype=np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray], like: MetricSums | None = None) -> MetricSums:
        """Returns what `to_arrays` wrote, checked: it may come from another process.

        Args:
            arrays: as from `to_arrays`.
            like: sums (of any users) that these must be addable to.

        Raises:
            DataError: missing or extra arrays, wrong shapes, dtypes or numbers; the message lists all that is
                wrong.
        """
        problems = [f"array {name!r} is missing" for name in _ARRAYS if name not in arrays]
        problems += [f"array {name!r} is not expected" for name in arrays if name not in _ARRAYS]
        for name, dtype in _ARRAYS.items():
            if name in arrays and arrays[name].dtype != np.dtype(dtype):
                problems.append(f"{name} is {arrays[name].dtype}: must be {dtype}")
        if "counts" in arrays and arrays["counts"].shape != (len(_COUNTS),):
            problems.append(f"counts has shape {arrays['counts'].shape}: must be ({len(_COUNTS)},)")
        if problems:
            raise DataError(f"metric sums that cannot be: {'; '.join(problems)}")
        try:
            text = arrays["names"].tobytes().decode()
        except UnicodeDecodeError as error:
            raise DataError(f"metric sums that cannot be: names is not UTF-8 ({error})") from error
        names = tuple(text.split("\n")) if text else ()
        counts = dict(zip(_COUNTS, map(int, arrays["counts"]), strict=True))
        result = cls(names=names, sums=arrays["sums"], item_counts=arrays["item_counts"], **counts)
        if like is not None:
            like._require_like(result)
        return result

    def _require_like(self, other: MetricSums) -> None:
        pairs = {
            "names": (self.names, other.names),
            "sums of shape": (self.sums.shape, other.sums.shape),
            "item_counts of shape": (self.item_counts.shape, other.item_counts.shape),
            "list_length": (self.list_length, other.list_length),
        }
        problems = [f"{what} {b}: must be {a}" for what, (a, b) in pairs.items() if a != b]
        if problems:
            raise DataError(f"metric sums that do not add up: {'; '.join(problems)}")

    def _problems(self) -> Iterator[str]:
        for name in _COUNTS:
            if getattr(self, name) < 0:
                yield f"{name} is {getattr(self, name)}: must not be negative"
        if self.list_length < 1:
            yield f"list_length is {self.list_length}: must be at least 1"
        if self.num_held_out < self.num_users:
            yield f"{self.num_held_out} held-out items of {self.num_users} users: each has at least one"
        if self.num_short_negatives > self.num_users:
            yield f"{self.num_short_negatives} of {self.num_users} users short of negatives"
        if len(set(self.names)) != len(self.names) or not all(self.names):
            yield f"names {self.names}: must be distinct and not empty"
        yield from self._problems_of_sums()
        counts = self.item_counts
        if counts.ndim != 1 or counts.dtype != np.int64:
            yield f"item_counts is {counts.dtype} of shape {counts.shape}: must be int64 (num_items,)"
        elif len(counts) and not (counts.min() >= 0 and counts.max() <= self.num_users):
            yield (
                f"item_counts is {counts.min()}..{counts.max()}: must be in 0..{self.num_users}, at most once a user"
            )
        elif counts.sum() > self.num_users * self.list_length:
            yield f"item_counts sums to {counts.sum()}: at most {self.num_users} lists of {self.list_length}"

    def _problems_of_sums(self) -> Iterator[str]:
        sums, width = self.sums, len(self.names) + 1
        if sums.ndim != 2 or sums.shape[0] < 1 or sums.shape[1] != width or sums.dtype != np.float64:
            yield f"sums is {sums.dtype} of shape {sums.shape}: must be float64 (1 + num_bootstrap, {width})"
            return
        if not np.isfinite(sums).all():
            yield f"sums has {np.count_nonzero(~np.isfinite(sums))} numbers that are not finite"
            return
        if sums[0, -1] != self.num_users:
            yield f"sums counts {sums[0, -1]} users, num_users {self.num_users}"
        # Every metric of a user lies in [0, 1], so a sum never exceeds the sum of the weights.
        outside = (sums < 0) | (sums > sums[:, -1:] * (1 + 1e-9))
        if outside.any():
            row, column = np.argwhere(outside)[0]
            name = (*self.names, "weight")[column]
            yield (
                f"sums has {outside.sum()} entries outside 0..weight, first {name} in row {row}: "
                f"{sums[row, column]} of {sums[row, -1]}"
            )
