"""AUC, log-loss and accuracy of click predictions from sums that nodes may add.

AUC is the probability that a positive scores above a negative, half for ties (Hanley and McNeil, "The meaning
and use of the area under a receiver operating characteristic (ROC) curve", Radiology 1982). It needs every
pair of rows, across nodes too, so each node counts its positives and negatives in fixed bins over [0, 1] and
the pairs inside one bin count half. The result is off by at most half of the share of such pairs, which is
reported beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedrec_app.errors import DataError, FedrecError

NUM_BINS = 1000
EPSILON = 1e-7
_ARRAYS = {"positives": "int64", "negatives": "int64", "totals": "float64"}


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Predictions of many rows, summed.

    Attributes:
        positives: (num_bins,) int64 rows with label 1 whose probability lies in each bin.
        negatives: (num_bins,) int64 rows with label 0.
        log_loss: sum of -log(probability of the label), probabilities clipped to [EPSILON, 1 - EPSILON].
        num_correct: rows whose probability is on the label's side of 0.5 (0.5 itself predicts 1).

    Raises:
        DataError: anything above does not hold; the message lists all that is wrong.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    log_loss: float
    num_correct: int

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise DataError(f"score histogram that cannot be: {'; '.join(problems)}")

    @classmethod
    def zero(cls, num_bins: int = NUM_BINS) -> ScoreHistogram:
        """Returns the histogram of no rows."""
        return cls(np.zeros(num_bins, dtype=np.int64), np.zeros(num_bins, dtype=np.int64), 0.0, 0)

    @classmethod
    def of(cls, probabilities: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> ScoreHistogram:
        """Returns the histogram of these rows.

        Args:
            probabilities: (num_rows,) predicted probability of label 1.
            labels: (num_rows,) each 0 or 1.
            num_bins: number of bins of equal width over [0, 1].

        Raises:
            FedrecError: probabilities outside [0, 1] or not finite, other labels, or shapes that differ.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        y = np.asarray(labels)
        if p.ndim != 1 or y.shape != p.shape:
            raise FedrecError(f"probabilities of shape {p.shape} and labels of shape {y.shape}: must be (num_rows,)")
        outside = ~((p >= 0) & (p <= 1))
        if outside.any():
            row = int(np.argmax(outside))
            raise FedrecError(
                f"{outside.sum()} of {len(p)} probabilities are not in [0, 1], first in row {row}: {p[row]}"
            )
        wrong = (y != 0) & (y != 1)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise FedrecError(f"{wrong.sum()} of {len(y)} labels are not 0 or 1, first in row {row}: {y[row]}")
        positive = y == 1
        bins = np.minimum((p * num_bins).astype(np.int64), num_bins - 1)
        of_label = np.clip(np.where(positive, p, 1.0 - p), EPSILON, 1.0 - EPSILON)
        return cls(
            positives=np.bincount(bins[positive], minlength=num_bins).astype(np.int64),
            negatives=np.bincount(bins[~positive], minlength=num_bins).astype(np.int64),
            log_loss=float(-np.log(of_label).sum()),
            num_correct=int(((p >= 0.5) == positive).sum()),
        )

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """Returns the histogram of the rows of both; raises DataError when they have different bins."""
        if len(self.positives) != len(other.positives):
            raise DataError(f"score histograms of {len(self.positives)} and {len(other.positives)} bins")
        return ScoreHistogram(
            self.positives + other.positives,
            self.negatives + other.negatives,
            self.log_loss + other.log_loss,
            self.num_correct + other.num_correct,
        )

    def to_arrays(self) -> dict[str, NDArray]:
        """Returns named arrays: positives, negatives and totals (log_loss, num_correct)."""
        totals = np.array([self.log_loss, self.num_correct], dtype=np.float64)
        return {"positives": self.positives, "negatives": self.negatives, "totals": totals}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray], like: ScoreHistogram | None = None) -> ScoreHistogram:
        """Returns what `to_arrays` wrote, checked: it may come from another process.

        Args:
            arrays: as from `to_arrays`.
            like: a histogram (of any rows) that this one must be addable to.

        Raises:
            DataError: missing or extra arrays, wrong shapes, dtypes or numbers.
        """
        problems = [f"array {name!r} is missing" for name in _ARRAYS if name not in arrays]
        problems += [f"array {name!r} is not expected" for name in arrays if name not in _ARRAYS]
        for name, dtype in _ARRAYS.items():
            if name in arrays and arrays[name].dtype != np.dtype(dtype):
                problems.append(f"{name} is {arrays[name].dtype}: must be {dtype}")
        if not problems:
            totals = arrays["totals"]
            if totals.shape != (2,) or not np.isfinite(totals).all():
                problems.append(f"totals is {totals.tolist()}: must be two finite numbers")
            elif totals[1] != int(totals[1]):
                problems.append(f"num_correct is {totals[1]}: must be a whole number")
        if problems:
            raise DataError(f"score histogram that cannot be: {'; '.join(problems)}")
        result = cls(arrays["positives"], arrays["negatives"], float(arrays["totals"][0]), int(arrays["totals"][1]))
        if like is not None and len(like.positives) != len(result.positives):
            raise DataError(f"score histogram of {len(result.positives)} bins: must be {len(like.positives)}")
        return result

    def _problems(self) -> Iterator[str]:
        shapes = [self.positives.shape, self.negatives.shape]
        for name, counts in (("positives", self.positives), ("negatives", self.negatives)):
            if counts.dtype != np.int64 or counts.ndim != 1 or not len(counts):
                yield f"{name} is {counts.dtype} of shape {counts.shape}: must be int64 (num_bins,)"
            elif counts.min() < 0:
                yield f"{name} has {np.count_nonzero(counts < 0)} negative counts"
        if shapes[0] != shapes[1]:
            yield f"positives and negatives have shapes {shapes[0]} and {shapes[1]}: must be alike"
        num_rows = int(self.positives.sum() + self.negatives.sum())
        if not 0 <= self.num_correct <= num_rows:
            yield f"{self.num_correct} correct of {num_rows} rows"
        if not 0 <= self.log_loss <= -np.log(EPSILON) * num_rows * (1 + 1e-9):
            yield f"log_loss is {self.log_loss} over {num_rows} rows: must be finite and not negative"


def finalise_auc(histogram: ScoreHistogram) -> dict[str, Any]:
    """Returns num_rows and num_positives; with rows log_loss and accuracy; with both labels auc, auc_error.

    `auc_error` is the most that auc can be off, because rows of one bin are taken as tied.

    Args:
        histogram: over all rows of all nodes.
    """
    positives, negatives = histogram.positives.astype(float), histogram.negatives.astype(float)
    num_positives, num_negatives = positives.sum(), negatives.sum()
    num_rows = num_positives + num_negatives
    result: dict[str, Any] = {"num_rows": int(num_rows), "num_positives": int(num_positives)}
    if num_rows:
        result["log_loss"] = histogram.log_loss / num_rows
        result["accuracy"] = histogram.num_correct / num_rows
    if num_positives and num_negatives:
        pairs = num_positives * num_negatives
        below = np.cumsum(negatives) - negatives
        result["auc"] = float(positives @ (below + 0.5 * negatives) / pairs)
        result["auc_error"] = float(0.5 * (positives @ negatives) / pairs)
    return result
