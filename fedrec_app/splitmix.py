"""SplitMix64, a counter-based generator that compiled loops start anew for every user.

Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014. A stream is a state that grows by
`GOLDEN` for each draw; what is drawn is a function of the state:

    state = stream_start(base, epoch, key)
    for ...:
        state += GOLDEN
        item = below(state, num_items)
"""

from __future__ import annotations

import numpy as np

from fedrec_app.compiled import njit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, inline="always")
def mix(z: np.uint64) -> np.uint64:
    """Returns 64 bits that look random for each state."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, inline="always")
def stream_start(base: np.uint64, epoch: int, key: np.uint64) -> np.uint64:
    """Returns where the stream of (base, epoch, user) starts.

    Args:
        base: 64 bits that stand for the seed and the purpose.
        epoch: counts passes over the same users.
        key: what stands for the user.
    """
    return mix(mix(base ^ key) + GOLDEN * np.uint64(epoch + 1))


@njit(cache=True, inline="always")
def below(state: np.uint64, bound: int) -> int:
    """Returns a whole number below `bound`, at most 2^32 (multiply-shift on the upper 32 of 64 random bits; bias below
    2^-32 * bound)."""
    return int(((mix(state) >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@njit(cache=True, inline="always")
def uniform(state: np.uint64) -> float:
    """Returns a number in [0, 1), a multiple of 2^-53."""
    return (mix(state) >> np.uint64(11)) * 2.0**-53
