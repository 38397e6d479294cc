"""Evaluates the users of one node, a block at a time; only sums over users come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from fedrec_app.data.cohort import Cohort, Part
from fedrec_app.data.histories import Histories
from fedrec_app.errors import FedrecError, unknown
from fedrec_app.evaluation.candidates import Candidates
from fedrec_app.evaluation.metrics import SAMPLED_METRICS, metric_names, user_metrics
from fedrec_app.evaluation.ranking import as_array, rank_block, rank_sampled, top_items
from fedrec_app.evaluation.sums import SAMPLED, MetricSums

if TYPE_CHECKING:
    from fedrec_app.evaluation.ranking import Scores

    ScoreBlock = Callable[[NDArray[np.int64]], Scores]


def evaluation_names(ks: Sequence[int], sampled_ks: Sequence[int] = (10,)) -> tuple[str, ...]:
    """Returns the metrics that `evaluate_cohort` sums: full ranking first, then two among sampled negatives.

    Args:
        ks: cut-offs of full ranking.
        sampled_ks: cut-offs among the sampled negatives.
    """
    return metric_names(ks) + metric_names(sampled_ks, SAMPLED_METRICS, SAMPLED)


def evaluate_cohort(
    score_block: ScoreBlock,
    cohort: Cohort,
    part: Part,
    ks: Sequence[int] = (5, 10, 20),
    seed: int = 0,
    num_bootstrap: int = 0,
    *,
    block: int = 256,
    users: NDArray[np.int64] | None = None,
    candidates: Candidates | None = None,
    list_length: int = 10,
    sampled_ks: Sequence[int] = (10,),
) -> MetricSums:
    """Returns the metrics of the users who have something held out, summed.

    The sums do not depend on which node hosts a user or on the size of blocks, but for the rounding of
    float64.

    Args:
        score_block: from (n,) positions of users in the cohort to their (n, num_items) scores; called with at
            most `block` users, in order, and only with users who have something held out.
        cohort: the users of the node.
        part: what is to be predicted. An item that a user holds out twice counts once.
        ks: cut-offs of full ranking.
        seed: the run's seed, for negatives and bootstrap weights.
        num_bootstrap: number of bootstrap rows.
        block: users scored at a time; memory is O(block * num_items).
        users: (n,) distinct positions of the users to evaluate; all when absent.
        candidates: cached draws of the whole cohort, with at least num_bootstrap weights; drawn here when
            absent.
        list_length: length of the lists for coverage and popularity.
        sampled_ks: cut-offs among sampled negatives.

    Raises:
        FedrecError: an unknown part, scores of a wrong shape, or a candidate's score that is not finite.
        ValueError: arguments that do not match the cohort or each other.
    """
    if part not in get_args(Part):
        raise FedrecError(unknown("part", part, get_args(Part)))
    if block < 1:
        raise ValueError(f"blocks of {block} users: must be at least 1")
    users = np.arange(len(cohort)) if users is None else np.asarray(users, dtype=np.int64)
    _check(cohort, users, seed, num_bootstrap, candidates)
    held_out = _distinct(cohort.held_out(part), cohort.num_items)
    known = cohort.known(part)
    active = users[held_out.lengths[users] > 0]
    names = evaluation_names(ks, sampled_ks)
    zero = MetricSums.zero(names, cohort.num_items, num_bootstrap, list_length)
    total = replace(zero, num_without_held_out=len(users) - len(active))
    for start in range(0, len(active), block):
        chosen = active[start : start + block]
        scores = as_array(score_block(chosen))
        if scores.shape != (len(chosen), cohort.num_items):
            raise FedrecError(
                f"the model returned scores of shape {scores.shape} for {len(chosen)} users "
                f"and {cohort.num_items} items: must be {(len(chosen), cohort.num_items)}"
            )
        drawn = (
            Candidates.of(cohort, seed, num_bootstrap, users=chosen)
            if candidates is None
            else candidates.select(chosen)
        )
        total += _sum_block(
            scores, known.select(chosen), held_out.select(chosen), drawn, chosen, total, len(metric_names(ks))
        )
    return total


def _sum_block(
    scores: NDArray[np.floating],
    known: Histories,
    held_out: Histories,
    drawn: Candidates,
    users: NDArray[np.int64],
    like: MetricSums,
    num_full: int,
) -> MetricSums:
    full = rank_block(scores, known, held_out, users)
    sampled = rank_sampled(scores, drawn.negatives, held_out, users)
    listed = top_items(scores, known, like.list_length, users)
    values = np.concatenate(
        [
            user_metrics(full, held_out.lengths, like.names[:num_full]),
            user_metrics(sampled, held_out.lengths, like.names[num_full:]),
            np.ones((len(users), 1)),
        ],
        axis=1,
    )
    num_bootstrap = len(like.sums) - 1
    weights = np.ones((1 + num_bootstrap, len(users)))
    weights[1:] = drawn.weights[:, :num_bootstrap].T
    return MetricSums(
        names=like.names,
        sums=weights @ values,
        item_counts=np.bincount(listed[listed >= 0], minlength=len(like.item_counts)).astype(np.int64),
        num_users=len(users),
        num_without_held_out=0,
        num_held_out=len(held_out.items),
        num_short_negatives=int(drawn.short.sum()),
        list_length=like.list_length,
    )


def _distinct(histories: Histories, num_items: int) -> Histories:
    pairs = np.unique(histories.rows() * num_items + histories.items)
    if len(pairs) == len(histories.items):
        return histories
    return Histories.from_rows(pairs // num_items, pairs % num_items, len(histories))


def _check(
    cohort: Cohort,
    users: NDArray[np.int64],
    seed: int,
    num_bootstrap: int,
    candidates: Candidates | None,
) -> None:
    if len(users) and not (users.min() >= 0 and users.max() < len(cohort)):
        raise ValueError(f"users {users.min()}..{users.max()}: the cohort has 0..{len(cohort) - 1}")
    if len(np.unique(users)) != len(users):
        raise ValueError("users: the same position twice")
    if candidates is None:
        return
    if candidates.seed != seed or len(candidates) != len(cohort):
        raise ValueError(
            f"candidates of seed {candidates.seed} and {len(candidates)} users: "
            f"must be of seed {seed} and {len(cohort)} users"
        )
    if candidates.weights.shape[1] < num_bootstrap:
        raise ValueError(f"candidates with {candidates.weights.shape[1]} bootstrap weights: need {num_bootstrap}")
