from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec_app.data.histories import Histories
from fedrec_app.errors import FedrecError
from fedrec_app.evaluation.ranking import rank_block, rank_sampled, sampled_negatives, top_items


def lists(*items: list[int]) -> Histories:
    return Histories.from_lists(items)


def loop_ranks(scores, known, held_out):
    """The definition, item by item."""
    ranks = []
    for user in range(len(scores)):
        targets = held_out[user].tolist()
        candidates = [i for i in range(scores.shape[1]) if i not in set(known[user].tolist()) or i in set(targets)]
        for target in targets:
            own = scores[user, target]
            higher = sum(scores[user, i] > own for i in candidates)
            tied = sum(scores[user, i] == own for i in candidates) - 1
            ranks.append(int(higher + tied))
    return ranks


def loop_lists(scores, known, k):
    """Sort by score, then by position."""
    result = []
    for user in range(len(scores)):
        free = [i for i in range(scores.shape[1]) if i not in set(known[user].tolist())]
        best = sorted(free, key=lambda i: (-scores[user, i], i))[:k]
        result.append(best + [-1] * (k - len(best)))
    return result


@st.composite
def blocks(draw):
    """Few distinct scores, so that ties abound; held-out items may be known, and items may repeat."""
    num_users = draw(st.integers(0, 5))
    num_items = draw(st.integers(1, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    scores = rng.integers(-3, 4, size=(num_users, num_items)).astype(dtype)
    if draw(st.booleans()):
        scores += rng.normal(size=scores.shape).astype(dtype)
    sizes = rng.integers(0, num_items + 3, size=num_users), rng.integers(0, 5, size=num_users)
    known, held_out = (Histories.from_lists([rng.integers(0, num_items, n) for n in size]) for size in sizes)
    return scores, known, held_out


@given(blocks())
@settings(max_examples=200, deadline=None)
def test_ranks_are_those_of_the_item_by_item_definition(block):
    scores, known, held_out = block
    assert rank_block(scores, known, held_out).tolist() == loop_ranks(scores, known, held_out)


@given(blocks(), st.integers(1, 160))
@settings(max_examples=200, deadline=None)
def test_lists_are_those_of_a_full_sort(block, k):
    scores, known, _ = block
    assert top_items(scores, known, k).tolist() == loop_lists(scores, known, k)


def test_rank_counts_better_candidates_and_skips_known_items():
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]])
    assert rank_block(scores, lists([0]), lists([3])).tolist() == [2]
    assert rank_block(scores, lists([0, 0, 1, 4]), lists([3])).tolist() == [1]


def test_ties_count_against_the_held_out_item():
    assert rank_block(np.zeros((1, 100)), lists([]), lists([17])).tolist() == [99]
    assert rank_block(np.zeros((1, 100)), lists([3, 5]), lists([17])).tolist() == [97]


def test_held_out_items_of_a_user_compete_with_each_other():
    scores = np.array([[0.1, 0.9, 0.5, 0.9]])
    assert rank_block(scores, lists([]), lists([2, 1])).tolist() == [2, 1]


def test_a_repeated_item_stays_a_candidate():
    scores = np.array([[0.9, 0.8, 0.7]])
    assert rank_block(scores, lists([0, 1]), lists([1])).tolist() == [0]
    assert rank_block(scores, lists([0, 1]), lists([1, 2])).tolist() == [0, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_candidate_without_a_finite_score_is_refused(bad, dtype):
    scores = np.arange(12, dtype=dtype).reshape(3, 4)
    scores[1, 2:] = bad
    known, held_out = lists([], [3], []), lists([0], [0], [])
    message = "1 candidate scores of 1 users are not finite, first of user 41"
    with pytest.raises(FedrecError, match=message):
        rank_block(scores, known, held_out, users=np.array([40, 41, 42]))
    with pytest.raises(FedrecError, match=message):
        top_items(scores, known, 2, users=np.array([40, 41, 42]))
    with pytest.raises(FedrecError, match="2 candidate scores of 1 users are not finite, first of user 1"):
        rank_sampled(scores, np.array([[1, -1], [3, 2], [1, 2]]), held_out)


def test_a_held_out_item_without_a_finite_score_is_refused_even_when_known():
    with pytest.raises(FedrecError, match="first of user 0"):
        rank_block(np.array([[np.nan, 1.0]]), lists([0]), lists([0]))
    with pytest.raises(FedrecError, match="first of user 0"):
        rank_sampled(np.array([[np.nan, 1.0]]), np.array([[1]]), lists([0]))


def test_known_items_may_have_any_score():
    scores = np.array([[np.nan, np.inf, -np.inf, 0.1, 0.2]])
    known = lists([0, 1, 2])
    assert rank_block(scores, known, lists([3])).tolist() == [1]
    assert top_items(scores, known, 3).tolist() == [[4, 3, -1]]


def test_lists_break_ties_by_position_and_pad_what_is_missing():
    scores = np.array([[1.0, 2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_items(scores, lists([1], [0, 1, 2, 3]), 6).tolist() == [
        [3, 0, 2, -1, -1, -1],
        [-1, -1, -1, -1, -1, -1],
    ]


def test_tensors_and_arrays_of_any_type_rank_alike():
    scores = np.arange(12).reshape(2, 6)[:, ::-1]
    known, held_out = lists([0], [1]), lists([3, 5], [2])
    expected = [2, 4, 1]
    for dtype in (np.int32, np.float16, np.float32, np.float64, ">f4"):
        assert rank_block(scores.astype(dtype), known, held_out).tolist() == expected
    tensor = torch.tensor(scores.copy())
    for dtype in (torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert rank_block(tensor.to(dtype), known, held_out).tolist() == expected
    assert rank_block(tensor.float().requires_grad_(), known, held_out).tolist() == expected
    assert rank_block(tensor.float().T.contiguous().T, known, held_out).tolist() == expected


def test_scoring_leaves_the_scores_as_they_were():
    scores = np.random.default_rng(0).normal(size=(3, 50))
    before = scores.copy()
    known = lists([1, 2], [3], [])
    rank_block(scores, known, lists([4], [5], [6]))
    top_items(scores, known, 5)
    assert np.array_equal(scores, before)


def test_lists_and_positions_that_do_not_match_are_refused():
    scores = np.zeros((2, 3))
    with pytest.raises(ValueError, match="held_out has lists of 1 users, scores of 2"):
        rank_block(scores, lists([], []), lists([0]))
    with pytest.raises(ValueError, match=r"known names items 0\.\.3, scores know 0\.\.2"):
        rank_block(scores, lists([0], [3]), lists([0], [0]))
    with pytest.raises(ValueError, match="known names items -1"):
        top_items(scores, lists([-1], []), 2)
    with pytest.raises(ValueError, match="negatives name items outside"):
        rank_sampled(scores, np.array([[3], [0]]), lists([0], [0]))
    with pytest.raises(ValueError, match="negatives of shape"):
        rank_sampled(scores, np.array([[0]]), lists([0], [0]))
    with pytest.raises(ValueError, match="must be \\(num_users, num_items\\)"):
        rank_block(np.zeros(3), lists([]), lists([0]))
    with pytest.raises(ValueError, match="k must be at least 1"):
        top_items(scores, lists([], []), 0)


def test_sampled_rank_is_among_the_negatives_and_the_held_out_items():
    scores = np.array([[0.9, 0.5, 0.5, 0.1, 0.7], [0.1, 0.2, 0.3, 0.4, 0.5]])
    negatives = np.array([[2, 3], [0, -1]])
    assert rank_sampled(scores, negatives, lists([1], [4, 3])).tolist() == [1, 0, 1]


def test_sampled_rank_equals_the_full_rank_when_every_free_item_is_drawn():
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 9, size=(20, 40)).astype(np.float32)
    items = [rng.permutation(40) for _ in range(20)]
    known, held_out = lists(*[i[:15] for i in items]), lists(*[i[15:17] for i in items])
    negatives = np.array([sampled_negatives(u, 1, items[u][:17], 40) for u in range(20)])
    assert negatives.shape == (20, 23)
    assert rank_sampled(scores, negatives, held_out).tolist() == rank_block(scores, known, held_out).tolist()


@given(st.integers(0, 2**64 - 1), st.integers(0, 99), st.integers(1, 400), st.data())
@settings(max_examples=100, deadline=None)
def test_negatives_are_distinct_items_that_the_user_never_interacted_with(key, seed, num_items, data):
    never = np.array(data.draw(st.lists(st.integers(0, num_items - 1), max_size=400)), dtype=np.int64)
    drawn = sampled_negatives(key, seed, never, num_items)
    free = set(range(num_items)) - set(never.tolist())
    assert len(set(drawn.tolist())) == len(drawn) == min(99, len(free))
    assert set(drawn.tolist()) <= free


def test_negatives_are_uniform_over_the_free_items():
    never = np.array([0, 1, 5, 19])
    counts = sum(np.bincount(sampled_negatives(u, 0, never, 20, 4), minlength=20) for u in range(4000))
    assert (counts[never] == 0).all()
    free = np.setdiff1d(np.arange(20), never)
    assert np.abs(counts[free] - 1000).max() < 4.5 * np.sqrt(4000 * 0.25 * 0.75)


def test_negatives_depend_on_the_seed_and_the_user_alone():
    never = np.array([3, 4])
    first = sampled_negatives(7, 1, never, 5000).tolist()
    assert sampled_negatives(7, 1, never[::-1], 5000).tolist() == first
    assert sampled_negatives(8, 1, never, 5000).tolist() != first
    assert sampled_negatives(7, 2, never, 5000).tolist() != first


@pytest.mark.slow
def test_a_block_is_ranked_much_faster_than_user_by_user():
    rng = np.random.default_rng(0)
    num_users, num_items = 256, 3706
    scores = rng.normal(size=(num_users, num_items)).astype(np.float32)
    known = Histories.from_lists([rng.permutation(num_items)[:160] for _ in range(num_users)])
    held_out = Histories.from_lists([[int(rng.integers(num_items))] for _ in range(num_users)])

    def user_by_user():
        ranks = []
        for user in range(num_users):
            row = scores[user].copy()
            target = held_out[user][0]
            row[np.setdiff1d(known[user], target)] = -np.inf
            ranks.append(int(np.flatnonzero(np.argsort(-row) == target)[0]))
        return ranks

    assert rank_block(scores, known, held_out).tolist() == user_by_user()
    seconds = {}
    for function in (user_by_user, lambda: rank_block(scores, known, held_out)):
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            function()
            runs.append(time.perf_counter() - start)
        seconds[function is user_by_user] = min(runs)
    assert seconds[True] > 20 * seconds[False]
