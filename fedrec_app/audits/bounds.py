"""From how well two worlds can be told apart to a lower bound on epsilon.

A mechanism is mu-GDP when telling a world with one user from a world without him is at least as hard as telling
N(mu, 1) from N(0, 1): Gaussian Differential Privacy, Dong, Roth & Su, Journal of the Royal Statistical Society B, 2022,
https://arxiv.org/abs/1905.02383 (Definition 2.6). A Gaussian mechanism of noise multiplier z
is exactly 1/z-GDP. So errors that are provably small give a lower bound on mu, as in Tight Auditing of Differentially
Private Machine Learning, Nasr et al., USENIX Security 2023, https://arxiv.org/abs/2302.07956 (section 4.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec_app.errors import ConfigError

_THRESHOLDS = np.linspace(0.2, 0.8, 41)
"""Quantiles of the statistic that are tried: errors in the tails are too rare to be bounded well."""


@dataclass(frozen=True)
class Distinguished:
    """How well a test told the two worlds apart, on releases that the test was not chosen on.

    Attributes:
        mu: lower bound on mu, at least 0.
        statistic: which column was the best.
        threshold: above which a release is said to hold the user.
        misses: how many of `trials` releases with the user were not above it.
        false_alarms: how many of `trials` releases without him were.
        trials: releases of each world.
        confidence: that the bound holds.
    """

    mu: float
    statistic: int
    threshold: float
    misses: int
    false_alarms: int
    trials: int
    confidence: float


def distinguish(held: NDArray, absent: NDArray, confidence: float) -> Distinguished:
    """Returns the lower bound on mu that two sets of releases prove.

    Statistic and threshold are chosen on the first half of each set; the errors of that one test on the second half are
    bounded by Clopper and Pearson (Biometrika, 1934), each with half of what confidence leaves.

    Args:
        held: (n, num_statistics) of releases with the user, larger for him; n is even, at least 4.
        absent: (n, num_statistics) of releases without him.
        confidence: of the bound, below 1.

    Raises:
        ConfigError: the sets are too small or do not fit.
        ValueError: a statistic is not finite.
    """
    if held.shape != absent.shape or held.ndim != 2 or len(held) < 4:
        raise ConfigError(f"releases {held.shape} and {absent.shape}: two sets of the same size are needed, 4 at least")
    if not (np.isfinite(held).all() and np.isfinite(absent).all()):
        raise ValueError("a release is not finite")
    half, level = len(held) // 2, 1 - (1 - confidence) / 2
    best = (-math.inf, 0, 0.0)
    for statistic in range(held.shape[1]):
        first = held[:half, statistic], absent[:half, statistic]
        thresholds = np.quantile(np.concatenate(first), _THRESHOLDS)
        mus = _mu(*_errors(*first, thresholds), half, level)
        at = int(np.argmax(mus))
        best = max(best, (float(mus[at]), statistic, float(thresholds[at])))
    _, statistic, threshold = best
    second = held[half:, statistic], absent[half:, statistic]
    misses, alarms = _errors(*second, np.array([threshold]))
    trials = len(second[0])
    mu = max(float(_mu(misses, alarms, trials, level)[0]), 0.0)
    return Distinguished(mu, statistic, threshold, int(misses[0]), int(alarms[0]), trials, confidence)


def upper_bound(hits: NDArray | int, trials: int, level: float) -> NDArray[np.float64]:
    """Returns what the probability of a hit is not above (Clopper & Pearson, Biometrika, 1934).

    Args:
        hits: how often it was hit, of `trials` independent ones; a number or an array.
        trials: how many there were.
        level: confidence of this one side.
    """
    from scipy.special import betaincinv

    hits = np.asarray(hits)
    return np.where(hits >= trials, 1.0, betaincinv(hits + 1.0, np.maximum(trials - hits, 1.0), level))


def _errors(held: NDArray, absent: NDArray, thresholds: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (num_thresholds,) misses and false alarms of saying "held" above each threshold."""
    misses = (held[None, :] <= thresholds[:, None]).sum(axis=1)
    return misses, (absent[None, :] > thresholds[:, None]).sum(axis=1)


def _mu(misses: NDArray, alarms: NDArray, trials: int, level: float) -> NDArray[np.float64]:
    """Returns lower bounds on mu: the trade-off curve of mu-GDP goes through (alpha, Phi(Phi^-1(1 - alpha) - mu))."""
    from scipy.special import ndtri

    # A bound of 1 on an error says nothing: its quantile is infinite, and mu minus infinity.
    return -ndtri(upper_bound(misses, trials, level)) - ndtri(upper_bound(alarms, trials, level))
