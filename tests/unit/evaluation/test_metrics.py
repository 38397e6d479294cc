from __future__ import annotations

import math

import numpy as np
import pytest

from fedrec_app.data.stats import gini
from fedrec_app.errors import DataError
from fedrec_app.evaluation.metrics import (
    METRICS,
    finalise,
    metric_names,
    popularity_percentiles,
    user_metrics,
)
from fedrec_app.evaluation.sums import MetricSums

RANX = {
    "hr": "hit_rate",
    "ndcg": "ndcg",
    "recall": "recall",
    "precision": "precision",
    "f1": "f1",
    "mrr": "mrr",
}
# By ranx 0.3.21 on `ranks_without_chance`; the slow test holds them to the library.
RANX_MEANS = {
    "hr@3": 0.425000000000,
    "hr@10": 0.825000000000,
    "hr@20": 0.925000000000,
    "ndcg@3": 0.151536063699,
    "ndcg@10": 0.205843885933,
    "ndcg@20": 0.310719753703,
    "recall@3": 0.093593073593,
    "recall@10": 0.240830627706,
    "recall@20": 0.488744588745,
    "precision@3": 0.141666666667,
    "precision@10": 0.150000000000,
    "precision@20": 0.150000000000,
    "f1@3": 0.098721001221,
    "f1@10": 0.171722323514,
    "f1@20": 0.217400937517,
    "mrr@3": 0.250000000000,
    "mrr@10": 0.322628968254,
    "mrr@20": 0.328717612045,
}


def sums(names=("hr@10",), rows=((2.0, 4.0),), item_counts=(4, 2, 0), num_users=4, **fields) -> MetricSums:
    values = {
        "num_without_held_out": 0,
        "num_held_out": num_users,
        "num_short_negatives": 0,
        "list_length": 10,
    }
    return MetricSums(
        names=tuple(names),
        sums=np.array(rows, dtype=np.float64),
        item_counts=np.array(item_counts, dtype=np.int64),
        num_users=num_users,
        **(values | fields),
    )


def test_names_have_a_fixed_order():
    assert metric_names((5, 10), ("hr", "mrr"), "sampled/") == (
        "sampled/hr@5",
        "sampled/hr@10",
        "sampled/mrr@5",
        "sampled/mrr@10",
    )
    assert metric_names((20,)) == tuple(f"{m}@20" for m in METRICS)


@pytest.mark.parametrize("ks", [(0,), (-1, 5), (5, 5), (2.5,)])
def test_cut_offs_that_make_no_sense_are_refused(ks):
    with pytest.raises(ValueError, match="cut-offs"):
        metric_names(ks)


def test_values_worked_out_by_hand():
    names = metric_names((2, 3))
    # User 0 holds out 4 items, found at places 0, 2, 5 and 9; user 1 one item at place 2; user 2 nothing.
    values = user_metrics(np.array([9, 0, 2, 5, 2]), np.array([4, 1, 0]), names)
    ideal = {2: 1 + 1 / math.log2(3), 3: 1.5 + 1 / math.log2(3)}
    expected = {
        "hr@2": [1, 0, 0],
        "hr@3": [1, 1, 0],
        "ndcg@2": [1 / ideal[2], 0, 0],
        "ndcg@3": [1.5 / ideal[3], 0.5, 0],
        "recall@2": [1 / 4, 0, 0],
        "recall@3": [2 / 4, 1, 0],
        "precision@2": [1 / 2, 0, 0],
        "precision@3": [2 / 3, 1 / 3, 0],
        "f1@2": [1 / 3, 0, 0],
        "f1@3": [4 / 7, 1 / 2, 0],
        "mrr@2": [1, 0, 0],
        "mrr@3": [1, 1 / 3, 0],
    }
    assert names == tuple(expected)
    np.testing.assert_allclose(values, np.array(list(expected.values())).T, rtol=0, atol=1e-15)


def ranks_without_chance():
    """40 users with 1 to 12 held-out items at places that cover the whole list of 41."""
    num_held_out = 1 + np.arange(40) % 12
    return np.concatenate([(17 * u + 11 * np.arange(n)) % 41 for u, n in enumerate(num_held_out)]), num_held_out


def test_means_are_those_that_ranx_gave():
    ranks, num_held_out = ranks_without_chance()
    means = user_metrics(ranks, num_held_out, list(RANX_MEANS)).mean(axis=0)
    np.testing.assert_allclose(means, list(RANX_MEANS.values()), rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unsafe cast from uint64 to int64")
def test_metrics_of_every_user_are_those_of_ranx():
    import ranx

    ranks, num_held_out = ranks_without_chance()
    starts = np.cumsum(num_held_out) - num_held_out
    own = {f"u{u:02}": ranks[s : s + n] for u, (s, n) in enumerate(zip(starts, num_held_out, strict=True))}
    qrels = ranx.Qrels({user: {f"i{r}": 1 for r in places} for user, places in own.items()})
    run = ranx.Run({user: {f"i{r}": 100.0 - r for r in range(41)} for user in own})
    names = metric_names((1, 3, 5, 10, 20, 50))
    ours = user_metrics(ranks, num_held_out, names)
    for column, name in enumerate(names):
        metric, k = name.split("@")
        theirs = ranx.evaluate(qrels, run, f"{RANX[metric]}@{k}", return_mean=False)
        assert list(qrels.keys()) == list(own)
        np.testing.assert_allclose(ours[:, column], theirs, rtol=0, atol=1e-9, err_msg=name)
        if name in RANX_MEANS:
            assert theirs.mean() == pytest.approx(RANX_MEANS[name], abs=1e-9)


def test_a_perfect_ranking_never_exceeds_one():
    for n in range(1, 60):
        values = user_metrics(np.arange(n), np.array([n]), metric_names((5, 20)))
        assert values.max() <= 1.0
        assert values[0, 2] == 1.0


def test_unknown_names_and_ranks_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"unknown metric 'ndgc'.*did you mean 'ndcg'"):
        user_metrics(np.array([0]), np.array([1]), ["ndgc@10"])
    for name in ("hr", "hr@", "hr@0", "hr@-1", "hr@x"):
        with pytest.raises(ValueError, match="whole number of at least 1"):
            user_metrics(np.array([0]), np.array([1]), [name])
    with pytest.raises(ValueError, match="1 ranks for 2 held-out items"):
        user_metrics(np.array([0]), np.array([2]), ["hr@10"])


def test_means_are_sums_over_users():
    result = finalise(sums(("hr@10", "sampled/ndcg@10"), [[2.0, 1.0, 4.0]], num_held_out=9, num_without_held_out=3))
    assert result["hr@10"] == 0.5
    assert result["sampled/ndcg@10"] == 0.25
    assert (result["num_users"], result["num_held_out"], result["num_without_held_out"]) == (4, 9, 3)
    assert "ci" not in result
    assert "popularity@10" not in result


def test_coverage_gini_and_popularity_worked_out_by_hand():
    result = finalise(sums(item_counts=(4, 2, 0, 0)), popularity=[30, 10, 10, 0])
    assert result["coverage@10"] == 0.5
    # Ordered exposure 0, 0, 2, 4: (1 * 2 + 3 * 4) / (4 * 6).
    assert result["gini@10"] == pytest.approx(14 / 24, abs=1e-15)
    # Percentiles 1, 1/2, 1/2, 0: four times 1 and twice 1/2, of six.
    assert result["popularity@10"] == pytest.approx(5 / 6, abs=1e-15)


def test_gini_is_zero_for_equal_exposure_and_largest_for_one_item():
    assert gini(np.array([7, 7, 7])) == pytest.approx(0.0, abs=1e-15)
    assert gini(np.array([0, 0, 0, 9])) == pytest.approx(3 / 4, abs=1e-15)


def test_popularity_of_lists_of_random_items_is_one_half():
    popularity = np.random.default_rng(0).integers(0, 5, size=40)
    assert popularity_percentiles(popularity, 40).mean() == pytest.approx(0.5, abs=1e-15)
    assert popularity_percentiles([3], 1).tolist() == [0.5]


@pytest.mark.parametrize("popularity", [[1, 2], [1, 2, -1], [1, 2, np.nan]])
def test_popularity_that_is_no_count_an_item_is_refused(popularity):
    with pytest.raises(DataError, match="popularity of shape"):
        finalise(sums(), popularity=popularity)


def test_lists_without_any_item_have_no_coverage():
    assert "coverage@10" not in finalise(sums(item_counts=(0, 0, 0)))


def test_no_user_gives_counts_alone():
    zero = MetricSums.zero(["hr@10"], num_items=3, num_bootstrap=2)
    assert finalise(zero, popularity=[1, 2, 3]) == {
        "num_users": 0,
        "num_without_held_out": 0,
        "num_held_out": 0,
        "num_short_negatives": 0,
    }


def test_intervals_are_percentiles_of_the_ratio_of_sums():
    rows = [[2.0, 4.0]] + [[b, 100.0] for b in range(101)] + [[0.0, 0.0]]
    result = finalise(sums(rows=rows))
    assert result["ci"]["hr@10"] == pytest.approx([0.025, 0.975], abs=1e-12)


def test_one_user_has_no_interval():
    one = sums(rows=[[1.0, 1.0], [2.0, 2.0]], item_counts=(1, 0, 0), num_users=1)
    assert "ci" not in finalise(one)
