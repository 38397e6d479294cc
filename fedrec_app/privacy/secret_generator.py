"""A generator of torch whose every number comes from the operating system's entropy, and no seed.

`Generator.manual_seed` keeps 32 bits of a seed on a processor: 2^32 noise vectors can be tried out, and the rows of an
item table that nobody met show which one it was. And whoever sees some 20,000 bits of one Mersenne Twister's output can
solve for its state, which is linear over GF(2), and knows all other noise of the release. So all 624 words of the state
are drawn, and of one state no more numbers are used than it has words: each then is as unknown as what was drawn.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Generator

NUMBERS = 288
"""float64 normals of one state: `torch.normal` takes two words each, and redraws the last of a block that is no
multiple of 16."""
_WORDS, _AT = 624, 24  # where they lie in torch's state: after the seed, two counters and the place of the next one


def secret_generator() -> Generator:
    """Returns a generator for `NUMBERS` normals in float64 on the processor."""
    import torch

    generator = torch.Generator()
    generator.manual_seed(0)
    state = generator.get_state().numpy().copy()
    state[_AT : _AT + 8 * _WORDS].view(np.uint64)[:] = np.frombuffer(os.urandom(4 * _WORDS), dtype=np.uint32)
    generator.set_state(torch.from_numpy(state))
    return generator
