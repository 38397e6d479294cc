"""Evaluates the users of one node, a block at a time; only sums over users come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec_app.data.cohort import Cohort, Part
from fedrec_app.data.histories import Histories, as_range
from fedrec_app.errors import FedrecError, unknown
from fedrec_app.evaluation.candidates import Candidates
from fedrec_app.evaluation.metrics import SAMPLED_METRICS, metric_names, user_metrics, weighted_sums
from fedrec_app.evaluation.ranking import Scores, rank_and_list, rank_sampled, readable
from fedrec_app.evaluation.sums import SAMPLED, MetricSums
from fedrec_app.threads import even_parts, in_threads

ScoreBlock = Callable[[NDArray[np.int64]], Scores]

Ranked = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

PART = 1 << 19
"""Scores that a thread ranks at least, about half a millisecond of work: with fewer, starting it costs more than it
saves."""


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
    active = users[cohort.held_out(part).lengths[users] > 0]
    rows = as_range(active)
    held_out = _distinct(_lists_of(rows, cohort.held_out(part)), cohort.num_items)
    known = _lists_of(rows, cohort.known(part))
    drawn = (
        Candidates.of(cohort, seed, num_bootstrap, users=active) if candidates is None else candidates.select(active)
    )
    full_ranks, sampled_ranks = np.empty((2, len(held_out.items)), dtype=np.int64)
    item_counts = np.zeros(cohort.num_items, dtype=np.int64)
    for start in range(0, len(active), block):
        stop = min(start + block, len(active))
        chosen, targets = active[start:stop], held_out.between(start, stop)
        ranks = slice(held_out.indptr[start], held_out.indptr[stop])
        full_ranks[ranks], sampled_ranks[ranks], lists = _rank_users(
            _scores_of(chosen, score_block, cohort.num_items),
            known.between(start, stop), targets, drawn.negatives[start:stop], list_length, chosen,
        )  # fmt: skip
        item_counts += np.bincount(lists.ravel() + 1, minlength=cohort.num_items + 1)[1:]
    names, sampled_names = metric_names(ks), metric_names(sampled_ks, SAMPLED_METRICS, SAMPLED)
    values = np.ones((len(active), len(names) + len(sampled_names) + 1))
    values[:, : len(names)] = user_metrics(full_ranks, held_out.lengths, names)
    values[:, len(names) : -1] = user_metrics(sampled_ranks, held_out.lengths, sampled_names)
    return MetricSums(
        names=names + sampled_names,
        sums=weighted_sums(values, drawn.weights[:, :num_bootstrap]),
        item_counts=item_counts,
        num_users=len(active),
        num_without_held_out=len(users) - len(active),
        num_held_out=len(held_out.items),
        num_short_negatives=int(np.count_nonzero(drawn.short)),
        list_length=list_length,
    )


def _lists_of(rows: slice | NDArray[np.int64], histories: Histories) -> Histories:
    return histories.between(rows.start, rows.stop) if isinstance(rows, slice) else histories.select(rows)


def _scores_of(users: NDArray[np.int64], score_block: ScoreBlock, num_items: int) -> Scores:
    scores = readable(score_block(users))
    if scores.shape != (len(users), num_items):
        raise FedrecError(
            f"the model returned scores of shape {tuple(scores.shape)} for {len(users)} users "
            f"and {num_items} items: must be {(len(users), num_items)}"
        )
    return scores


def _rank_users(
    scores: Scores,
    known: Histories,
    held_out: Histories,
    negatives: NDArray[np.int32],
    list_length: int,
    users: NDArray[np.int64],
) -> Ranked:
    """Returns full ranks, sampled ranks and lists of a block of users, dealt to threads where that is worth it."""

    def rank_part(start: int, stop: int) -> Ranked:
        rows, targets, names = scores[start:stop], held_out.between(start, stop), users[start:stop]
        full, lists = rank_and_list(rows, known.between(start, stop), targets, list_length, names)
        return full, rank_sampled(rows, negatives[start:stop], targets, names), lists

    num_parts = min(torch.get_num_threads(), scores.size // PART) if isinstance(scores, np.ndarray) else 1
    if num_parts <= 1:
        return rank_part(0, len(users))
    parts = even_parts(1 + held_out.lengths, num_parts)
    full, sampled, lists = zip(*in_threads(rank_part, parts), strict=True)
    return np.concatenate(full), np.concatenate(sampled), np.concatenate(lists)


def _distinct(histories: Histories, num_items: int) -> Histories:
    if len(histories.items) <= len(histories) and histories.lengths.max(initial=0) <= 1:
        return histories
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
    if len(users) and np.bincount(users).max() > 1:
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
