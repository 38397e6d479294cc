"""Which users take part in a round under user-level privacy: drawn on the node, in secret.

Amplification by subsampling holds against whoever does not know who was drawn (Abadi et al., Deep Learning with
Differential Privacy, CCS 2016; Mironov, Talwar & Zhang, Renyi Differential Privacy of the Sampled Gaussian Mechanism,
2019). So the draw comes from the operating system's entropy: whoever knows the run's seed could repeat any other.
"""

from __future__ import annotations

import math
import os

import numpy as np
from numpy.typing import NDArray


def poisson(num_users: int, rate: float) -> NDArray[np.bool_]:
    """Returns (num_users,) who takes part: each user with probability `rate`, independently of all others.

    No seed has a part in it and nothing of it is kept: no draw can be repeated.

    Args:
        num_users: of this node.
        rate: above 0, at most 1, which takes everybody. The chance is rounded down to a multiple of 2^-64.

    Raises:
        ValueError: the rate is none.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"the sampling rate is {rate}: above 0 and at most 1 is allowed")
    if rate == 1:
        return np.ones(num_users, dtype=np.bool_)
    numbers = np.frombuffer(os.urandom(8 * num_users), dtype=np.uint64)
    # Whole numbers: a comparison of floats would round the chance up or down.
    return numbers < np.uint64(math.floor(math.ldexp(rate, 64)))
