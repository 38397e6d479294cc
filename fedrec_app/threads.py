"""Compiled loops spread over threads: they release the interpreter lock, so threads of this process are enough.

How many is torch's own number, which follows OMP_NUM_THREADS and what Ray gives a worker.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Result = TypeVar("Result")


def even_parts(work: NDArray[np.integer], num_parts: int | None = None) -> list[tuple[int, int]]:
    """Returns at most `num_parts` ranges (start, stop) of about the same work; they cover all and none is empty.

    Args:
        work: (n,) what each element costs, in any unit, not negative.
        num_parts: as many as torch uses threads when absent.
    """
    num_parts = torch.get_num_threads() if num_parts is None else num_parts
    done = np.cumsum(np.asarray(work, dtype=np.float64))
    if len(done) == 0:
        return []
    aims = done[-1] * np.arange(1, num_parts) / num_parts
    edges = np.unique(np.concatenate([[0], np.searchsorted(done, aims) + 1, [len(done)]]).clip(max=len(done)))
    return [(int(start), int(stop)) for start, stop in pairwise(edges)]


def in_threads(function: Callable[[int, int], Result], parts: list[tuple[int, int]]) -> list[Result]:
    """Returns what `function(start, stop)` returned for each part, in their order.

    Args:
        function: releases the interpreter lock for most of its time, and shares nothing that it writes.
        parts: from `even_parts`.
    """
    if len(parts) <= 1:
        return [function(*part) for part in parts]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(lambda part: function(*part), parts))
