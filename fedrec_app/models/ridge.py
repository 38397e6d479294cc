"""Weighted ridge regressions of many users against one table of items: the closed form of implicit ALS.

Collaborative Filtering for Implicit Feedback Datasets, Hu, Koren & Volinsky, ICDM 2008, equation 4: what is common to
all users, the Gram matrix of the table, is computed once.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedrec_app.compiled import njit
from fedrec_app.data.histories import Histories
from fedrec_app.threads import even_parts, in_threads


def ridge_rows(
    table: NDArray[np.float32],
    histories: Histories,
    weights_back: NDArray[np.float64],
    unobserved_weight: float,
    regularization: float,
) -> NDArray[np.float32]:
    """Returns (num_users, d) the rows p that minimise sum_S w (1 - p.v)^2 + a sum_all (p.v)^2 + l (sum_S w + a
    num_items) |p|^2.

    Args:
        table: (num_items, d) rows v.
        histories: the items S of each user, oldest first.
        weights_back: (longest,) weight w of an item by how many steps back it is.
        unobserved_weight: a.
        regularization: l, above 0: it makes every matrix positive definite.
    """
    rows = np.zeros((len(histories), table.shape[1]), dtype=np.float32)
    wide = table.astype(np.float64)
    gram = unobserved_weight * (wide.T @ wide)
    floor = regularization * unobserved_weight * len(table)
    weights = weights_back.astype(np.float32)

    def solve(start: int, stop: int) -> None:
        _solve(table, gram, histories.indptr, histories.items, weights, regularization, floor, rows, start, stop)

    in_threads(solve, even_parts(histories.lengths + table.shape[1]))
    return rows


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _solve(
    table: NDArray[np.float32],
    gram: NDArray[np.float64],
    indptr: NDArray[np.int64],
    items: NDArray[np.int64],
    weights: NDArray[np.float32],
    regularization: float,
    floor: float,
    rows: NDArray[np.float32],
    start: int,
    stop: int,
) -> None:
    d = table.shape[1]
    observed = np.empty((d, d), np.float32)
    target = np.empty(d, np.float32)
    lower = np.empty((d, d))
    solution = np.empty(d)
    four = np.empty((4, d), np.float32)
    scaled = np.empty((4, d), np.float32)
    for user in range(start, stop):
        first, last = indptr[user], indptr[user + 1]
        observed[:] = 0
        target[:] = 0
        total = 0.0
        # Four items at a time: each load of the matrix serves four products.
        for at in range(first, last, 4):
            for r in range(4):
                if at + r < last:
                    weight = weights[last - 1 - at - r]
                    item = items[at + r]
                    total += weight
                    for c in range(d):
                        four[r, c] = table[item, c]
                        scaled[r, c] = weight * table[item, c]
                        target[c] += scaled[r, c]
                else:
                    for c in range(d):
                        four[r, c] = scaled[r, c] = 0
            for i in range(d):
                a0, a1, a2, a3 = scaled[0, i], scaled[1, i], scaled[2, i], scaled[3, i]
                for c in range(d):
                    observed[i, c] += a0 * four[0, c] + a1 * four[1, c] + a2 * four[2, c] + a3 * four[3, c]
        ridge = regularization * total + floor
        # Cholesky's factor row by row, then forward and back substitution.
        for i in range(d):
            for c in range(i + 1):
                value = gram[i, c] + observed[i, c]
                if i == c:
                    value += ridge
                for k in range(c):
                    value -= lower[i, k] * lower[c, k]
                lower[i, c] = math.sqrt(value) if i == c else value / lower[c, c]
        for i in range(d):
            value = np.float64(target[i])
            for k in range(i):
                value -= lower[i, k] * solution[k]
            solution[i] = value / lower[i, i]
        for i in range(d - 1, -1, -1):
            value = solution[i]
            for k in range(i + 1, d):
                value -= lower[k, i] * solution[k]
            solution[i] = value / lower[i, i]
        for c in range(d):
            rows[user, c] = solution[c]
