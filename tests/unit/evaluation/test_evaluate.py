from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch

from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.errors import FedrecError
from fedrec_app.evaluation import evaluate as evaluation
from fedrec_app.evaluation import ranking
from fedrec_app.evaluation.candidates import Candidates, bootstrap_weights
from fedrec_app.evaluation.evaluate import evaluate_cohort, evaluation_names
from fedrec_app.evaluation.metrics import finalise
from fedrec_app.evaluation.sums import MetricSums

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))


def evaluate(world, users=None, **kwargs) -> MetricSums:
    users = np.arange(len(world.cohort)) if users is None else users
    score_block, cohort = world.node(users)
    return evaluate_cohort(score_block, cohort, **({"part": "test", "seed": 3} | kwargs))


def assert_same(a: MetricSums, b: MetricSums) -> None:
    assert a.names == b.names
    np.testing.assert_allclose(a.sums, b.sums, rtol=1e-12, atol=1e-12)
    for name, array in a.to_arrays().items():
        if name != "sums":
            assert np.array_equal(array, b.to_arrays()[name]), name


@pytest.mark.parametrize("num_nodes", [1, 2, 7, 90])
@pytest.mark.parametrize("part", ["validation", "test"])
def test_any_dealing_of_users_to_nodes_gives_the_same_sums(world, num_nodes, part):
    whole = evaluate(world, part=part, num_bootstrap=20)
    rng = np.random.default_rng(num_nodes)
    node_of = rng.permutation(np.arange(len(world.cohort)) % num_nodes)
    nodes = [rng.permutation(np.flatnonzero(node_of == n)) for n in range(num_nodes)]
    parts = [evaluate(world, users, part=part, num_bootstrap=20, block=13) for users in nodes]
    assert_same(reduce(add, [parts[i] for i in rng.permutation(num_nodes)]), whole)


def test_sums_are_those_of_a_loop_over_users(world):
    total = evaluate(world, num_bootstrap=3, ks=(10,))
    cohort, scores = world.cohort, world.scores
    weights = bootstrap_weights(cohort.keys, 3, 3)
    hits, gains, listed, evaluated = np.zeros(4), np.zeros(4), np.zeros(cohort.num_items), np.zeros(4)
    for user in range(len(cohort)):
        targets = set(cohort.test[user].tolist())
        if not targets:
            continue
        seen = set(cohort.train[user].tolist()) | set(cohort.validation[user].tolist())
        order = sorted(set(range(cohort.num_items)) - seen, key=lambda i: -scores[user, i])[:10]
        weight = np.array([1, *weights[user]])
        dcg = sum(1 / math.log2(place + 2) for place, item in enumerate(order) if item in targets)
        hits += weight * bool(targets & set(order))
        gains += weight * dcg / sum(1 / math.log2(place + 2) for place in range(len(targets)))
        evaluated += weight
        listed[order] += 1
    np.testing.assert_allclose(total.sums[:, total.names.index("hr@10")], hits, atol=1e-12)
    np.testing.assert_allclose(total.sums[:, total.names.index("ndcg@10")], gains, atol=1e-12)
    np.testing.assert_allclose(total.sums[:, -1], evaluated, atol=1e-12)
    assert total.item_counts.tolist() == listed.tolist()


@pytest.fixture
def any_block_is_dealt_to_threads(monkeypatch):
    monkeypatch.setattr(evaluation, "PART", 1)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("any_block_is_dealt_to_threads")
def test_sums_are_the_same_bits_for_any_number_of_threads_and_any_block(world):
    once = evaluate(world, num_bootstrap=20).to_arrays()
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for block in (1, 7, 64, 1000):
            again = evaluate(world, num_bootstrap=20, block=block).to_arrays()
            assert all(np.array_equal(again[name], once[name]) for name in once), (threads, block)


@pytest.mark.usefixtures("any_block_is_dealt_to_threads")
def test_the_first_user_with_a_score_that_is_not_finite_is_named_from_any_thread(world):
    scores = world.scores.copy()
    first, second = np.flatnonzero(world.cohort.test.lengths)[[30, 60]]
    for user in (first, second):
        scores[user, world.cohort.test[user][0]] = np.inf
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        with pytest.raises(FedrecError, match=f"first of user {first} "):
            evaluate(replace(world, scores=scores))


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_scores_that_stay_on_their_device_give_the_same_sums(world, device, monkeypatch):
    here = evaluate(world, num_bootstrap=3).to_arrays()
    monkeypatch.setattr(ranking, "_stays_on_device", lambda scores: True)
    tensor = torch.tensor(world.scores, device=device)
    there = evaluate_cohort(
        lambda users: tensor[torch.tensor(users, device=device)],
        world.cohort,
        "test",
        seed=3,
        num_bootstrap=3,
        block=13,
    ).to_arrays()
    assert all(np.array_equal(there[name], here[name]) for name in here)


def test_users_with_nothing_held_out_are_skipped_and_counted(world):
    empty = int((world.cohort.test.lengths == 0).sum())
    assert empty > 0
    asked: list[int] = []

    def score_block(users):
        asked.extend(users.tolist())
        return world.scores[users]

    total = evaluate_cohort(score_block, world.cohort, "test", block=7)
    assert total.num_without_held_out == empty
    assert total.num_users == len(world.cohort) - empty
    assert total.num_held_out == len(world.cohort.test.items)
    assert asked == np.flatnonzero(world.cohort.test.lengths).tolist()


def test_at_test_time_validation_items_are_no_candidates():
    one = Histories.from_lists
    cohort = Cohort(("a",), 4, one([[0]]), one([[1]]), one([[2]]), one([[0]]))
    scores = np.array([[9.0, 8.0, 7.0, 1.0]])
    at_test = finalise(evaluate_cohort(lambda users: scores, cohort, "test", ks=(1,)))
    assert at_test["hr@1"] == 1.0
    swapped = Cohort(("a",), 4, one([[0]]), one([[2]]), one([[1]]), one([[0]]))
    assert finalise(evaluate_cohort(lambda users: scores, swapped, "validation", ks=(1,)))["hr@1"] == 0.0


def test_no_user_at_all_gives_zero_sums(world):
    none = evaluate(world, np.zeros(0, dtype=np.int64), num_bootstrap=2)
    assert_same(none, MetricSums.zero(evaluation_names((5, 10, 20)), world.cohort.num_items, 2))
    assert finalise(none)["num_users"] == 0
    assert_same(none + evaluate(world, num_bootstrap=2), evaluate(world, num_bootstrap=2))


def test_the_users_asked_for_are_evaluated(world):
    users = np.array([5, 2, 41])
    score_block, cohort = world.node(np.arange(len(world.cohort)))
    chosen = evaluate_cohort(score_block, cohort, "test", seed=3, num_bootstrap=4, users=users)
    assert_same(chosen, evaluate(world, users, num_bootstrap=4))


def test_a_user_who_knows_the_whole_catalog_but_the_target_ranks_it_first():
    cohort = Cohort(("a",), 3, *(Histories.from_lists([i]) for i in ([0, 1], [], [2], [0, 1])))
    total = evaluate_cohort(lambda users: np.zeros((1, 3)), cohort, "test", ks=(1, 50))
    result = finalise(total)
    assert result["hr@1"] == result["ndcg@50"] == result["sampled/hr@10"] == 1.0
    assert result["precision@50"] == 0.02
    assert result["num_short_negatives"] == 1
    assert total.item_counts.tolist() == [0, 0, 1]


def test_an_item_held_out_twice_counts_once():
    lists = Histories.from_lists
    once = Cohort(("a",), 9, lists([[0]]), lists([[]]), lists([[4, 6]]), lists([[0]]))
    twice = Cohort(("a",), 9, lists([[0]]), lists([[]]), lists([[4, 6, 4]]), lists([[0]]))
    scores = np.arange(9.0)[None]
    assert_same(*(evaluate_cohort(lambda users: scores, c, "test", ks=(3,)) for c in (once, twice)))


def test_constant_scores_are_no_hits(make_world):
    world = make_world(num_users=40, num_items=400, most_held_out=1)
    flat = replace(world, scores=np.zeros_like(world.scores))
    users = np.flatnonzero(np.arange(40) % 10)
    result = finalise(evaluate(flat, users))
    assert result["hr@20"] == result["sampled/hr@10"] == result["mrr@20"] == 0.0


def test_tensors_are_scores_too(world):
    tensor = torch.from_numpy(world.scores)
    total = evaluate_cohort(lambda users: tensor[torch.from_numpy(users)], world.cohort, "test", seed=3)
    assert_same(total, evaluate(world))


def test_scores_that_are_not_finite_name_the_user_of_the_cohort(world):
    scores = world.scores.copy()
    user = int(np.flatnonzero(world.cohort.test.lengths)[-1])
    scores[user, world.cohort.test[user][0]] = np.nan
    with pytest.raises(FedrecError, match=f"1 candidate scores of 1 users.*first of user {user} "):
        evaluate(replace(world, scores=scores), block=8)


def test_scores_of_another_shape_and_unknown_parts_are_refused(world):
    with pytest.raises(FedrecError, match="the model returned scores of shape"):
        evaluate_cohort(lambda users: world.scores[users][:, :-1], world.cohort, "test")
    with pytest.raises(FedrecError, match=r"unknown part 'tests'.*did you mean 'test'"):
        evaluate(world, part="tests")


def test_users_that_are_not_in_the_cohort_or_twice_are_refused(world):
    for users, message in (([90], "the cohort has"), ([-1], "the cohort has"), ([1, 1], "twice")):
        with pytest.raises(ValueError, match=message):
            evaluate_cohort(lambda u: world.scores[u], world.cohort, "test", users=np.array(users))
    with pytest.raises(ValueError, match="blocks of 0 users"):
        evaluate(world, block=0)


def test_cached_candidates_change_nothing(world):
    cached = Candidates.of(world.cohort, 3, num_bootstrap=9)
    for part in ("validation", "test"):
        assert_same(
            evaluate(world, part=part, num_bootstrap=5, candidates=cached),
            evaluate(world, part=part, num_bootstrap=5),
        )


def test_candidates_of_something_else_are_refused(world):
    for candidates in (
        Candidates.of(world.cohort, 4),
        Candidates.of(world.cohort, 3, users=np.arange(5)),
        Candidates.of(world.cohort, 3, num_bootstrap=1),
    ):
        with pytest.raises(ValueError, match="candidates"):
            evaluate(world, candidates=candidates, num_bootstrap=2)


def test_intervals_are_those_of_a_bootstrap_over_users(make_world):
    world = make_world(num_users=600, num_items=60, most_held_out=1)
    result = finalise(evaluate(world, num_bootstrap=1000))
    singles = [evaluate(world, np.array([u])) for u in np.flatnonzero(world.cohort.test.lengths)]
    column = singles[0].names.index("ndcg@20")
    values = np.array([s.sums[0, column] for s in singles])
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), size=(4000, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    assert result["ndcg@20"] == pytest.approx(values.mean(), abs=1e-12)
    assert result["ci"]["ndcg@20"] == pytest.approx([low, high], abs=0.12 * (high - low))
