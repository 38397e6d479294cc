"""What Gaussian noise costs without sampling, exactly."""

from __future__ import annotations

import math


def gaussian_epsilon(ratio: float, delta: float) -> float:
    """Returns the epsilon of Gaussian noise on a sum in which everybody is.

    Improving the Gaussian Mechanism for Differential Privacy, Balle and Wang, ICML 2018,
    https://arxiv.org/abs/1805.06530, theorem 8: delta = Phi(r/2 - epsilon/r) - exp(epsilon) Phi(-r/2 - epsilon/r).
    Several sums cost what one does whose squared ratio is the sum of theirs.

    Args:
        ratio: r, the L2 sensitivity over the standard deviation of the noise: 1 / noise multiplier.
        delta: of the guarantee.
    """
    from scipy.optimize import root_scalar
    from scipy.special import log_ndtr

    if ratio == 0:
        return 0.0
    # Also an upper bound, from the moments of the loss, and to ten digits the same where the exact one would overflow.
    simple = ratio * (ratio / 2 + math.sqrt(-2 * math.log(delta)))
    if ratio > 1e5:
        return simple

    def excess(epsilon: float) -> float:
        high, low = log_ndtr(ratio / 2 - epsilon / ratio), epsilon + log_ndtr(-ratio / 2 - epsilon / ratio)
        return high + math.log1p(-math.exp(min(low - high, -1e-300))) - math.log(delta) if low < high else -math.inf

    if excess(0.0) <= 0:
        return 0.0
    return root_scalar(excess, bracket=(0.0, simple), method="brentq", xtol=1e-9 * max(1.0, simple)).root
