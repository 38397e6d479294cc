"""Renyi differential privacy of released sums: looser than numerical composition, and computed in another way.

Renyi Differential Privacy of the Sampled Gaussian Mechanism, Mironov, Talwar and Zhang, 2019,
https://arxiv.org/abs/1908.10530, as Opacus computes it.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray

from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.opacus_import import import_opacus

_WHOLE = [*map(float, range(2, 33)), 40.0, 48.0, 64.0, 80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0]
_ORDERS = sorted([1.01, 1.02, 1.05, *(1 + tenth / 10 for tenth in range(1, 10)), 2.25, 2.5, 2.75, 3.5, 4.5, *_WHOLE])
"""As dense as epsilon changes with them, and wider than those of Opacus: for very large and very small epsilon."""
_LEAST_NOISE, _MUCH_NOISE = 1e-3, 20.0


def divergences(event: Gaussian) -> NDArray[np.float64]:
    """Returns the Renyi divergences of one such event, by order: those of several events add up.

    Args:
        event: its count does not matter; without noise, or almost, every divergence is infinite.
    """
    import_opacus()
    from opacus.accountants.analysis.rdp import compute_rdp

    noise, rate = event.noise_multiplier, event.sampling_rate
    if noise < _LEAST_NOISE:
        return np.full(len(_ORDERS), math.inf)
    if noise < _MUCH_NOISE:
        return np.asarray(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=_ORDERS))
    # With much noise the series of an order that is not whole takes seconds. (order - 1) * divergence is convex in the
    # order and 0 at order 1, so a chord lies above it.
    whole = np.asarray(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=_WHOLE))
    chords = np.interp(_ORDERS, [1.0, *_WHOLE], [0.0, *(whole * (np.array(_WHOLE) - 1))])
    return chords / (np.array(_ORDERS) - 1)


def renyi_epsilon(total: NDArray[np.float64], delta: float) -> float:
    """Returns the smallest epsilon that follows from any of the orders.

    Hypothesis Testing Interpretations and Renyi Differential Privacy, Balle et al., AISTATS 2020, theorem 21.

    Args:
        total: the divergences of all events, added up by order.
        delta: of the guarantee.
    """
    import_opacus()
    from opacus.accountants.analysis.rdp import get_privacy_spent

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)
        return max(0.0, float(get_privacy_spent(orders=_ORDERS, rdp=list(total), delta=delta)[0]))
