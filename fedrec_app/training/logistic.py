"""What compiled loops of binary cross-entropy share."""

from __future__ import annotations

import math

import numpy as np

from fedrec_app.compiled import njit

# Sums may be reordered, so that they run in vector registers; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "arcp", "nsz"}


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy", inline="always")
def residual(logit: np.float32, label: np.float32) -> tuple[np.float32, float]:
    """Returns the derivative of binary cross-entropy by its logit, and e^-|logit|, from which the loss follows."""
    small = math.exp(-abs(logit))
    chance = np.float32(1) / (np.float32(1) + small)
    if logit < 0:
        chance = small * chance
    return chance - label, small
