"""Dropout whose mask is a function of numbers in the batch: the same for a user on any node, in any engine.

Srivastava et al., JMLR 2014. torch's own draws from a global generator, so it would depend on who is trained beside
whom; under `vmap` it has no seed a user. Here a cell is kept or not by a hash of (the user's number, the site in the
model, the place of the cell): the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) on 64-bit integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SITE, _PLACE = -7046029254386353131, -4658895280553007687  # odd: 2^64 / golden ratio, and a multiplier of SplitMix64
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685


def dropout(x: Tensor, rate: float, noise: Tensor | None, site: int) -> Tensor:
    """Returns x with a share of its cells set to zero, the others scaled up to keep the mean.

    Args:
        x: (B, ...) activations.
        rate: share that is left out, 0 to 1.
        noise: (B,) int64 a number for each of the B; None: nothing is left out.
        site: which dropout of the model this is.
    """
    if noise is None or rate == 0:
        return x
    # Numbered from the end: how far a sequence is padded at its front makes no difference.
    place = torch.arange(x[0].numel(), 0, -1, device=x.device) * _PLACE + _signed((site + 1) * _SITE)
    bits = noise[:, None] + place
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * _FIRST
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * _SECOND
    uniform = ((bits >> 40) & 0xFFFFFF).to(x.dtype) / 2**24
    return x * (uniform >= rate).to(x.dtype).view(x.shape) / (1 - rate)


def _signed(number: int) -> int:
    """Returns what 64 bits hold of a number."""
    return (number + 2**63) % 2**64 - 2**63
