from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec_app.errors import DataError, FedrecError
from fedrec_app.evaluation.auc import ScoreHistogram, finalise_auc


def pairwise_auc(p, y):
    """Every pair of a positive and a negative; ties count half."""
    above = p[y == 1][:, None] - p[y == 0][None, :]
    return ((above > 0) + 0.5 * (above == 0)).mean()


def rows(seed, n=800):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    y[:2] = 0, 1
    return 1 / (1 + np.exp(-(rng.normal(size=n) + y))), y


@given(st.integers(0, 2**32), st.sampled_from([1, 7, 50, 1000, 100_000]))
@settings(max_examples=40, deadline=None)
def test_auc_is_within_its_reported_error_of_the_pairwise_one(seed, num_bins):
    p, y = rows(seed, 200)
    result = finalise_auc(ScoreHistogram.of(p, y, num_bins))
    assert abs(result["auc"] - pairwise_auc(p, y)) <= result["auc_error"] + 1e-12
    assert result["auc_error"] <= 0.5


def test_a_thousand_bins_give_three_digits_of_auc():
    p, y = rows(0)
    result = finalise_auc(ScoreHistogram.of(p, y))
    assert result["auc"] == pytest.approx(pairwise_auc(p, y), abs=1e-3)
    assert result["auc_error"] < 1e-3


def test_auc_is_exact_when_ties_are_all_that_bins_hold():
    rng = np.random.default_rng(1)
    p, y = rng.integers(0, 10, 300) / 10 + 0.05, rng.integers(0, 2, 300)
    assert finalise_auc(ScoreHistogram.of(p, y, 10))["auc"] == pytest.approx(pairwise_auc(p, y), abs=1e-12)


def test_log_loss_and_accuracy_are_exact():
    p, y = rows(2)
    result = finalise_auc(ScoreHistogram.of(p, y))
    assert result["log_loss"] == pytest.approx(-np.mean(np.log(np.where(y == 1, p, 1 - p))), abs=1e-12)
    assert result["accuracy"] == np.mean((p >= 0.5) == (y == 1))
    assert result["num_rows"] == 800
    assert result["num_positives"] == y.sum()


def test_values_worked_out_by_hand():
    result = finalise_auc(ScoreHistogram.of([0.9, 0.5, 0.5, 0.0, 1.0], [1, 1, 0, 0, 0]))
    # Pairs: 0.9 beats 0.5 and 0.0, loses to 1.0; 0.5 ties, beats 0.0, loses.
    assert result["auc"] == pytest.approx(3.5 / 6, abs=1e-15)
    assert result["accuracy"] == 3 / 5
    assert result["log_loss"] == pytest.approx(
        -(math.log(0.9) + 2 * math.log(0.5) + math.log(1 - 1e-7) + math.log(1e-7)) / 5, abs=1e-9
    )


def test_histograms_of_parts_add_up_to_that_of_the_whole():
    p, y = rows(3)
    whole = ScoreHistogram.of(p, y)
    node_of = np.random.default_rng(0).integers(0, 5, len(p))
    total = ScoreHistogram.zero()
    for node in range(5):
        part = ScoreHistogram.of(p[node_of == node], y[node_of == node])
        total += ScoreHistogram.from_arrays(part.to_arrays(), like=total)
    assert np.array_equal(total.positives, whole.positives)
    assert np.array_equal(total.negatives, whole.negatives)
    assert total.num_correct == whole.num_correct
    assert total.log_loss == pytest.approx(whole.log_loss, rel=1e-12)


def test_no_rows_and_one_label_have_no_auc():
    assert finalise_auc(ScoreHistogram.zero()) == {"num_rows": 0, "num_positives": 0}
    one = finalise_auc(ScoreHistogram.of([0.2, 0.7], [1, 1]))
    assert one.keys() == {"num_rows", "num_positives", "log_loss", "accuracy"}


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([0.1, np.nan], [0, 1], "1 of 2 probabilities are not in .*first in row 1: nan"),
        ([1.5, -0.1], [0, 1], "2 of 2 probabilities"),
        ([0.1, 0.2], [0, 2], "1 of 2 labels are not 0 or 1, first in row 1: 2"),
        ([0.1, 0.2], [0], "shape"),
    ],
)
def test_rows_that_make_no_sense_are_refused(p, y, message):
    with pytest.raises(FedrecError, match=message):
        ScoreHistogram.of(p, y)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("positives", np.array([1, -1]), "positives has 1 negative counts"),
        ("positives", np.array([1, 0, 0]), "must be alike"),
        ("positives", np.array([1.0, 0.0]), "positives is float64: must be int64"),
        ("totals", np.array([np.nan, 1.0]), "must be two finite numbers"),
        ("totals", np.array([1.0]), "must be two finite numbers"),
        ("totals", np.array([0.1, 0.5]), "must be a whole number"),
        ("totals", np.array([0.1, 3.0]), "3 correct of 2 rows"),
        ("totals", np.array([-0.1, 1.0]), "log_loss is -0.1"),
        ("totals", np.array([1e6, 1.0]), "log_loss is 1000000.0"),
        ("extra", np.zeros(2), "array 'extra' is not expected"),
    ],
)
def test_arrays_from_another_process_are_checked(name, value, message):
    arrays = ScoreHistogram.of([0.2, 0.7], [1, 0], 2).to_arrays()
    with pytest.raises(DataError, match=message):
        ScoreHistogram.from_arrays(arrays | {name: value})


def test_histograms_with_other_bins_are_not_added():
    with pytest.raises(DataError, match="3 and 2 bins"):
        ScoreHistogram.zero(3) + ScoreHistogram.zero(2)
    with pytest.raises(DataError, match="2 bins: must be 3"):
        ScoreHistogram.from_arrays(ScoreHistogram.zero(2).to_arrays(), like=ScoreHistogram.zero(3))
    with pytest.raises(DataError, match="array 'totals' is missing"):
        ScoreHistogram.from_arrays({"positives": np.zeros(2, int), "negatives": np.zeros(2, int)})
