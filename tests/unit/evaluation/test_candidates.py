from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec_app.data.histories import Histories
from fedrec_app.evaluation.candidates import Candidates, bootstrap_weights, sampled_negatives


def keys(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 2**64, n, dtype=np.uint64)


def everyone_knows(items: list[int], num_users: int) -> Histories:
    return Histories.from_lists([items] * num_users)


def assert_uniform(counts: np.ndarray) -> None:
    """Pearson's chi-square, at five standard deviations."""
    degrees, expected = len(counts) - 1, counts.mean()
    assert ((counts - expected) ** 2 / expected).sum() < degrees + 5 * math.sqrt(2 * degrees)


@given(st.integers(0, 2**32), st.integers(0, 99), st.integers(1, 400), st.integers(1, 120))
@settings(max_examples=100, deadline=None)
def test_negatives_are_distinct_items_that_the_user_never_interacted_with(world_seed, seed, num_items, n):
    rng = np.random.default_rng(world_seed)
    never = Histories.from_lists([rng.integers(0, num_items, rng.integers(0, 2 * num_items)) for _ in range(4)])
    negatives = sampled_negatives(keys(4), seed, never, num_items, n)
    assert negatives.shape == (4, n)
    for user in range(4):
        free = sorted(set(range(num_items)) - set(never[user].tolist()))
        drawn = negatives[user][negatives[user] >= 0].tolist()
        assert len(set(drawn)) == len(drawn) == min(n, len(free))
        assert set(drawn) <= set(free)
        if len(free) <= n:
            assert negatives[user].tolist() == free + [-1] * (n - len(free))


def test_every_free_item_is_drawn_as_often_and_as_often_in_every_place():
    never = [0, 1, 5, 19]
    negatives = sampled_negatives(keys(8000), 0, everyone_knows(never, 8000), 20, 4)
    free = np.setdiff1d(np.arange(20), never)
    assert_uniform(np.bincount(negatives.ravel(), minlength=20)[free])
    for place in range(4):
        assert_uniform(np.bincount(negatives[:, place], minlength=20)[free])


def test_every_set_of_free_items_is_drawn_as_often():
    negatives = np.sort(sampled_negatives(keys(20_000), 1, everyone_knows([2], 20_000), 7, 3), axis=1)
    sets = list(combinations([0, 1, 3, 4, 5, 6], 3))
    assert_uniform(np.array([(negatives == chosen).all(axis=1).sum() for chosen in sets]))


def test_negatives_are_uniform_where_nearly_the_whole_catalog_is_taken():
    taken = list(range(900))
    negatives = sampled_negatives(keys(3000), 0, everyone_knows(taken, 3000), 1000, 30)
    assert_uniform(np.bincount(negatives.ravel(), minlength=1000)[900:])


def test_negatives_depend_on_the_seed_the_user_and_his_items_alone():
    three, lists = keys(3), [[3, 4], [1], []]
    drawn = sampled_negatives(three, 1, Histories.from_lists(lists), 5000)
    alone = [sampled_negatives(three[u : u + 1], 1, Histories.from_lists([lists[u][::-1]]), 5000) for u in range(3)]
    assert np.array_equal(np.concatenate(alone), drawn)
    assert not (sampled_negatives(three, 2, Histories.from_lists(lists), 5000) == drawn).all(axis=1).any()
    same = sampled_negatives(three, 1, everyone_knows([], 3), 5000)
    assert len(np.unique(same[:, 0])) == 3
    assert len(np.intersect1d(same[0], same[1])) < 20


def test_bootstrap_weights_are_poisson_with_mean_one():
    weights = bootstrap_weights(keys(2000), 0, 200)
    counts = np.bincount(weights.ravel(), minlength=20)
    expected = weights.size * np.array([math.exp(-1) / math.factorial(n) for n in range(len(counts))])
    likely = expected > 20
    assert ((counts - expected)[likely] ** 2 / expected[likely]).sum() < 8 + 5 * math.sqrt(16)
    assert counts[~likely].sum() < 20
    assert weights.mean() == pytest.approx(1.0, abs=5 / math.sqrt(weights.size))
    assert weights.var() == pytest.approx(1.0, abs=5 * math.sqrt(3 / weights.size))


def test_bootstrap_weights_of_users_and_of_replicates_are_independent():
    weights = bootstrap_weights(keys(300), 0, 300).astype(float)
    for table in (weights, weights.T):
        correlations = np.corrcoef(table)[np.triu_indices(300, 1)]
        assert np.abs(correlations).max() < 6 / math.sqrt(300)
        assert correlations.std() == pytest.approx(1 / math.sqrt(300), rel=0.05)
    assert abs(np.corrcoef(weights.ravel(), bootstrap_weights(keys(300), 1, 300).ravel())[0, 1]) < 5 / 300


def test_fewer_bootstrap_weights_are_the_first_of_many():
    three = keys(3)
    many = bootstrap_weights(three, 0, 50)
    assert np.array_equal(bootstrap_weights(three, 0, 7), many[:, :7])
    assert np.array_equal(bootstrap_weights(three[[2, 0]], 0, 50), many[[2, 0]])
    assert bootstrap_weights(three, 0, 0).shape == (3, 0)


def test_candidates_never_include_an_item_of_the_user_and_are_the_same_on_every_node(world):
    whole = Candidates.of(world.cohort, 3, num_bootstrap=6)
    users = np.random.default_rng(1).permutation(len(world.cohort))[:30]
    _, cohort = world.node(users)
    part = Candidates.of(cohort, 3, num_bootstrap=6)
    assert np.array_equal(part.negatives, whole.negatives[users])
    assert np.array_equal(part.weights, whole.weights[users])
    for user in range(len(world.cohort)):
        drawn = whole.negatives[user][whole.negatives[user] >= 0]
        own = np.concatenate([h[user] for h in (world.cohort.train, world.cohort.validation, world.cohort.test)])
        assert not set(drawn.tolist()) & set(own.tolist())
        assert len(drawn) == min(99, world.cohort.num_items - len(set(own.tolist())))
    assert whole.short.tolist() == [(row < 0).any() for row in whole.negatives]
    with pytest.raises(ValueError, match="read-only"):
        whole.negatives[0, 0] = 1


@pytest.mark.parametrize("users", [[], [4], [3, 4, 5], [5, 3, 4], [0, 2, 4]])
def test_selected_candidates_are_those_of_the_users_alone(world, users):
    whole, users = Candidates.of(world.cohort, 3, num_bootstrap=6), np.array(users, dtype=np.int64)
    for chosen in (whole.select(users), Candidates.of(world.cohort, 3, num_bootstrap=6, users=users)):
        assert np.array_equal(chosen.negatives, whole.negatives[users])
        assert np.array_equal(chosen.weights, whole.weights[users])
