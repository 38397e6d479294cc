"""Every test that takes `place` holds the compiled loops and the tensor operations to the same definition."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec_app.data.histories import Histories
from fedrec_app.errors import FedrecError
from fedrec_app.evaluation import ranking
from fedrec_app.evaluation.candidates import sampled_negatives
from fedrec_app.evaluation.ranking import rank_and_list, rank_block, rank_sampled, top_items

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))


@pytest.fixture(scope="module", params=["array", "tensor elsewhere", CUDA])
def place(request):
    """Returns what puts an array of scores where it is ranked; a tensor elsewhere is one that must not leave its
    device, here the processor's own memory."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "array":
            yield lambda scores: scores
        elif request.param == "cuda":
            yield lambda scores: torch.tensor(scores, device="cuda")
        else:
            patch.setattr(ranking, "_stays_on_device", lambda scores: True)
            yield torch.tensor


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


def loop_sampled_ranks(scores, negatives, held_out):
    ranks = []
    for user in range(len(scores)):
        targets = held_out[user].tolist()
        candidates = [i for i in negatives[user].tolist() if i >= 0] + targets
        ranks += [sum(bool(scores[user, i] >= scores[user, target]) for i in candidates) - 1 for target in targets]
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
    """Few distinct scores, so that ties abound, and the ends of what floats can say; held-out items may be known, items
    may repeat, and what is known and not held out may score anything."""
    num_users = draw(st.integers(0, 5))
    num_items = draw(st.integers(1, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    info = np.finfo(dtype)
    kind = draw(st.sampled_from(["few", "normal", "extreme", "rising", "falling"]))
    shape = num_users, num_items
    if kind == "few":
        scores = rng.integers(-3, 4, size=shape)
    elif kind == "normal":
        scores = rng.normal(size=shape)
    elif kind == "extreme":
        scores = rng.choice([info.max, info.min, info.smallest_subnormal, 0.0, -0.0, 1.0], size=shape)
    else:
        scores = np.sort(rng.integers(0, 99, size=shape), axis=1)[:, :: 1 if kind == "rising" else -1]
    scores = scores.astype(dtype)
    sizes = rng.integers(0, num_items + 3, size=num_users), rng.integers(0, 5, size=num_users)
    known, held_out = (Histories.from_lists([rng.integers(0, num_items, n) for n in size]) for size in sizes)
    if draw(st.booleans()):
        for user in range(num_users):
            free_of_rules = np.setdiff1d(known[user], held_out[user])
            scores[user, free_of_rules] = rng.choice([np.nan, np.inf, -np.inf, 0.0], size=len(free_of_rules))
    return scores, known, held_out


@given(blocks(), st.integers(0, 160))
@settings(max_examples=200, deadline=None)
def test_ranks_and_lists_are_those_of_the_item_by_item_definition(place, block, k):
    scores, known, held_out = block
    for user in range(len(scores)):
        # What is known and held out is a candidate for ranks alone; here it must be finite for both.
        assert np.isfinite(scores[user, held_out[user]]).all()
    ranks, found = rank_and_list(place(scores), known, held_out, k)
    assert ranks.tolist() == loop_ranks(scores, known, held_out)
    assert found.tolist() == loop_lists(scores, known, k)
    assert rank_block(place(scores), known, held_out).tolist() == ranks.tolist()
    if k > 0:
        assert top_items(place(scores), known, k).tolist() == found.tolist()


@given(blocks(), st.integers(0, 120), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_sampled_ranks_are_those_of_the_item_by_item_definition(place, block, num_negatives, seed):
    scores, _, held_out = block
    scores = np.nan_to_num(scores)
    negatives = np.random.default_rng(seed).integers(-1, scores.shape[1], size=(len(scores), num_negatives))
    ranks = rank_sampled(place(scores), negatives, held_out)
    assert ranks.tolist() == loop_sampled_ranks(scores, negatives, held_out)


@pytest.mark.parametrize("k", [1, 10, 31, 32, 33, 64, 100, 1000])
@pytest.mark.parametrize("kind", ["normal", "few", "constant", "rising"])
def test_lists_of_any_length_are_those_of_a_full_sort(place, kind, k):
    rng = np.random.default_rng(k)
    scores = {
        "normal": rng.normal(size=(6, 900)),
        "few": rng.integers(0, 5, size=(6, 900)),
        "constant": np.zeros((6, 900)),
        "rising": np.arange(6 * 900.0).reshape(6, 900),
    }[kind].astype(np.float32)
    known = Histories.from_lists([rng.permutation(900)[:n] for n in (0, 1, 100, 500, 850, 900)])
    assert top_items(place(scores), known, k).tolist() == loop_lists(scores, known, k)


def test_rank_counts_better_candidates_and_skips_known_items(place):
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]])
    assert rank_block(place(scores), lists([0]), lists([3])).tolist() == [2]
    assert rank_block(place(scores), lists([0, 0, 1, 4]), lists([3])).tolist() == [1]


def test_ties_count_against_the_held_out_item(place):
    assert rank_block(place(np.zeros((1, 100))), lists([]), lists([17])).tolist() == [99]
    assert rank_block(place(np.zeros((1, 100))), lists([3, 5]), lists([17])).tolist() == [97]


def test_held_out_items_of_a_user_compete_with_each_other(place):
    scores = np.array([[0.1, 0.9, 0.5, 0.9]])
    assert rank_block(place(scores), lists([]), lists([2, 1])).tolist() == [2, 1]


def test_a_repeated_item_stays_a_candidate(place):
    scores = np.array([[0.9, 0.8, 0.7]])
    assert rank_block(place(scores), lists([0, 1]), lists([1])).tolist() == [0]
    assert rank_block(place(scores), lists([0, 1]), lists([1, 2])).tolist() == [0, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_candidate_without_a_finite_score_is_refused(place, bad, dtype):
    scores = np.arange(12, dtype=dtype).reshape(3, 4)
    scores[1, 2:] = bad
    known, held_out = lists([], [3], []), lists([0], [0], [])
    message = "1 candidate scores of 1 users are not finite, first of user 41"
    with pytest.raises(FedrecError, match=message):
        rank_block(place(scores), known, held_out, users=np.array([40, 41, 42]))
    with pytest.raises(FedrecError, match=message):
        top_items(place(scores), known, 2, users=np.array([40, 41, 42]))
    with pytest.raises(FedrecError, match="2 candidate scores of 1 users are not finite, first of user 1"):
        rank_sampled(place(scores), np.array([[1, -1], [3, 2], [1, 2]]), held_out)


def test_a_held_out_item_without_a_finite_score_is_refused_even_when_known(place):
    with pytest.raises(FedrecError, match="first of user 0"):
        rank_block(place(np.array([[np.nan, 1.0]])), lists([0]), lists([0]))
    with pytest.raises(FedrecError, match="first of user 0"):
        rank_sampled(place(np.array([[np.nan, 1.0]])), np.array([[1]]), lists([0]))


def test_known_items_may_have_any_score(place):
    scores = np.array([[np.nan, np.inf, -np.inf, 0.1, 0.2]])
    known = lists([0, 1, 2])
    assert rank_block(place(scores), known, lists([3])).tolist() == [1]
    assert top_items(place(scores), known, 3).tolist() == [[4, 3, -1]]


def test_lists_break_ties_by_position_and_pad_what_is_missing(place):
    scores = np.array([[1.0, 2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_items(place(scores), lists([1], [0, 1, 2, 3]), 6).tolist() == [
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


def test_tensors_of_any_type_rank_alike_where_they_are(place):
    scores = place(np.arange(12).reshape(2, 6)[:, ::-1].copy())
    if isinstance(scores, np.ndarray):
        pytest.skip("no tensor")
    known, held_out = lists([0], [1]), lists([3, 5], [2])
    for dtype in (torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        ranks, found = rank_and_list(scores.to(dtype), known, held_out, 2)
        assert ranks.tolist() == [2, 4, 1]
        assert found.tolist() == [[1, 2], [0, 2]]
    assert rank_block(scores.float().requires_grad_(), known, held_out).tolist() == [2, 4, 1]
    assert rank_block(scores.float().T.contiguous().T, known, held_out).tolist() == [2, 4, 1]


def test_scoring_leaves_the_scores_as_they_were(place):
    before = np.random.default_rng(0).normal(size=(3, 50))
    before[0, 1] = np.nan
    scores, known, held_out = place(before.copy()), lists([1, 2], [3], []), lists([4], [5], [6])
    rank_and_list(scores, known, held_out, 5)
    rank_sampled(scores, np.array([[3], [7], [8]]), held_out)
    assert np.array_equal(np.asarray(scores.tolist()), before, equal_nan=True)


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


def test_sampled_rank_is_among_the_negatives_and_the_held_out_items(place):
    scores = np.array([[0.9, 0.5, 0.5, 0.1, 0.7], [0.1, 0.2, 0.3, 0.4, 0.5]])
    negatives = np.array([[2, 3], [0, -1]])
    assert rank_sampled(place(scores), negatives, lists([1], [4, 3])).tolist() == [1, 0, 1]


def test_sampled_rank_equals_the_full_rank_when_every_free_item_is_drawn(place):
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 9, size=(20, 40)).astype(np.float32)
    items = [rng.permutation(40) for _ in range(20)]
    known, held_out = lists(*[i[:15] for i in items]), lists(*[i[15:17] for i in items])
    never = lists(*[i[:17] for i in items])
    negatives = sampled_negatives(np.arange(20, dtype=np.uint64), 1, never, 40, 23)
    assert (negatives >= 0).all()
    assert (
        rank_sampled(place(scores), negatives, held_out).tolist() == rank_block(place(scores), known, held_out).tolist()
    )


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
