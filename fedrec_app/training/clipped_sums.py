"""Sums of clipped deltas, for engines that hold a delta a user."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedrec_app.data.histories import Histories
from fedrec_app.privacy.clipping import clip_and_sum
from fedrec_app.training.job import Job

CPU_FLOATS, GPU_FLOATS = 1 << 23, 1 << 28
"""Numbers in the deltas of a block of users: 32 MB on a processor, whatever the number of users."""


def users_at_a_time(job: Job, num_met: int) -> int:
    """Returns how many users' deltas memory is to hold, a row in each for every item that one of them met; 1 at least.

    Args:
        job: the fit.
        num_met: items that a user met, at most.
    """
    fixed, row = job.sizes
    most = CPU_FLOATS if job.plan.device == "cpu" else GPU_FLOATS
    # Users who all meet everything, or who have not one item in common.
    alike = most // (fixed + row * job.cohort.num_items)
    apart = (math.sqrt(fixed**2 + 4.0 * row * num_met * most) - fixed) / (2.0 * max(row * num_met, 1))
    return max(1, alike, int(apart))


def add_clipped(
    job: Job, users: NDArray[np.int64], deltas: dict[str, Tensor], met: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Returns (U,) whose deltas were finite, having added them, clipped, to the sums.

    Args:
        job: the fit.
        users: (U,) positions.
        deltas: (U, ...) of shared parameters; of item tables with a row for each item of `met`.
        met: (M,) items, none twice.
    """
    tables = set(job.model.row_names())
    clipped = clip_and_sum(deltas, job.plan.clip_norm)
    for name, total in clipped.sums.items():
        job.sums.delta[name][met if name in tables else ...] += total.cpu().double().numpy()
    return job.judge(users, clipped.finite.numpy(), clipped.num_unclipped)


def add_clipped_copies(
    job: Job, users: NDArray[np.int64], copies: dict[str, Tensor], met: Histories
) -> NDArray[np.bool_]:
    """Returns (U,) whose deltas were finite, having added them, clipped, to the sums.

    Args:
        job: the fit.
        users: (U,) positions.
        copies: (U, ...) shared parameters after each user's steps; of item tables (U, M, ...) the rows that he met,
            padded.
        met: the items of these rows, none twice.
    """
    kept, size = [], users_at_a_time(job, int(met.lengths.max()))
    for at in range(0, len(users), size):
        block = users[at : at + size]
        lists = met.between(at, at + len(block))
        items, column = np.unique(lists.items, return_inverse=True)
        # Rows of users, each numbered by the items that he met, become rows of one table for all of them.
        user, place = lists.rows(), np.arange(len(lists.items)) - np.repeat(lists.indptr[:-1], lists.lengths)
        deltas = {}
        for name, start in job.shared.items():
            mine = copies[name][at : at + size]
            if name in job.model.row_names():
                deltas[name] = start.new_zeros(len(block), len(items), *start.shape[1:])
                deltas[name][user, column] = mine[user, place] - start[items[column]]
            else:
                deltas[name] = mine - start
        kept.append(add_clipped(job, block, deltas, items))
    return np.concatenate(kept)
