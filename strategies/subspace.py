"""Subspace iteration with momentum: the table of a factorisation turns towards what users have in common.

The Noisy Power Method: A Meta Algorithm with Applications, Hardt & Price, NeurIPS 2014,
https://arxiv.org/abs/1311.2495 (Algorithm 1), with momentum (De Sa et al., Accelerated Stochastic Power Iteration,
AISTATS 2018, https://arxiv.org/abs/1707.02670). Users' embeddings that are fitted to a table V make their summed deltas
about X'X V, with X what users did: a step of the power method, whatever the length of V. So a step is a direction, and
only its orthonormal part is kept. Noise is alike in all directions and what users agree on is in a few, so this gets
more out of few noisy rounds than steps that add deltas up (docs/privacy.md).

With d the mean delta, m = U S W' the singular value decomposition of its momentum and |.| the root mean square,

    m = momentum * m + d
    V = train_scale * (U S^spectrum W') / |U S^spectrum W'|     what nodes train from
        serve_scale * (U W') / |U W'|                           what is judged and released

A spectrum below 0 makes what is weak strong: users' embeddings then turn to what is not learned yet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec_app.records import Arrays
from strategies.optimizers import ServerOptimizer, added
from strategies.options import StrategyOptions

_SMALLEST = 1e-12
"""Of squared singular values against the largest: what is below is rounding."""


class SubspaceOptions(StrategyOptions):
    """Options of subspace iteration."""

    momentum: float = Field(default=0.95, ge=0, lt=1, description="beta, decay of the sum of deltas")
    spectrum: float = Field(
        default=-1.0,
        ge=-2,
        le=1,
        description="exponent of singular values in training: 1 as they are, 0 all alike; -2 suits an epsilon below 8",
    )
    train_scale: float = Field(default=0.02, gt=0, description="root mean square of the table that nodes train from")
    serve_scale: float = Field(default=0.2, gt=0, description="root mean square of the table that is released")


class Subspace(ServerOptimizer):
    """Tables with more rows than columns become the orthonormal part of their momentum; other arrays add it up."""

    name = "subspace"
    summary_line = "noisy power method with momentum, for factorisations (Hardt & Price, NeurIPS 2014)"
    Options = SubspaceOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._momentum: Arrays = {}

    def step(self, params: Arrays, delta: Arrays) -> Arrays:
        """Returns the new parameters, dtypes kept."""
        o, result = self.options, {}
        for name, p in params.items():
            momentum = np.asarray(o.momentum * self._momentum.get(name, np.zeros(p.shape)) + delta[name])
            self._momentum[name] = momentum
            if not is_table(p):
                result[name] = added(p, (1 - o.momentum) * momentum)
            else:
                result[name] = scaled(with_spectrum(momentum, o.spectrum), o.train_scale, p)
        return result

    def serve(self, params: Arrays) -> Arrays:
        """Returns tables with all their directions alike."""
        scale = self.options.serve_scale
        return {name: scaled(with_spectrum(p, 0.0), scale, p) if is_table(p) else p for name, p in params.items()}

    def state(self) -> Arrays:
        """Returns the momentum."""
        return dict(self._momentum)

    def load_state(self, state: Arrays) -> None:
        """Continues from what `state` returned."""
        self._momentum = dict(state)


def is_table(array: NDArray) -> bool:
    """Returns whether an array has two axes, and more rows than columns."""
    return array.ndim == 2 and array.shape[0] > array.shape[1]


def with_spectrum(table: NDArray, exponent: float) -> NDArray[np.float64]:
    """Returns U S^exponent W' of a table U S W', by its small Gram matrix.

    Args:
        table: (num_rows, d).
        exponent: from -2 to 1.
    """
    wide = table.astype(np.float64)
    squares, turn = np.linalg.eigh(wide.T @ wide)
    squares = np.maximum(squares, squares.max() * _SMALLEST)
    if not squares.max():
        return wide
    return wide @ (turn * squares ** ((exponent - 1) / 2)) @ turn.T


def scaled(table: NDArray[np.float64], scale: float, like: NDArray) -> NDArray:
    """Returns a table with a root mean square of `scale` in the dtype of `like`, which is what zeros become."""
    size = float(np.sqrt(np.mean(np.square(table))))
    return (table * (scale / size)).astype(like.dtype) if size else like.copy()
