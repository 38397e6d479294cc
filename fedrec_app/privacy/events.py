"""What a run released, apart from what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedrec_app.errors import ConfigError


@dataclass(frozen=True)
class Gaussian:
    """One sum with Gaussian noise over a secret Poisson sample, or several alike in a row.

    Neighbours are data sets of which one holds one user (or one example) more than the other: adding or removing.

    Args:
        noise_multiplier: z, the standard deviation of the noise over the L2 sensitivity of the sum; 0 is no noise.
        sampling_rate: q, the probability with which each user takes part; 1 where all do, or where it is no secret.
        count: how often it happened.

    Raises:
        ConfigError: a number that has no meaning here.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    count: int = 1

    def __post_init__(self):
        check_noise_multiplier(self.noise_multiplier)
        check_sampling_rate(self.sampling_rate)
        if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 0:
            raise ConfigError(f"count is {self.count!r}, allowed: a whole number of at least 0")


def check_noise_multiplier(value: float) -> None:
    """Raises ConfigError unless a noise multiplier is a finite number of at least 0."""
    if not math.isfinite(value) or value < 0:
        raise ConfigError(f"noise multiplier is {value!r}, allowed: a finite number of at least 0")


def check_sampling_rate(value: float) -> None:
    """Raises ConfigError unless a sampling rate is above 0 and at most 1."""
    if not 0 < value <= 1:
        raise ConfigError(f"sampling rate is {value!r}, allowed: above 0 and at most 1")


def check_delta(value: float) -> None:
    """Raises ConfigError unless a delta is above 0 and below 1."""
    if not 0 < value < 1:
        raise ConfigError(f"delta is {value!r}, allowed: above 0 and below 1")
