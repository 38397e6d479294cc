"""Randomness that depends on what is drawn and never on where or when it is drawn.

Every stream is derived from the run's seed and labels such as the round and the user, so that the same
seed gives the same model wherever users are placed and in whatever order replies arrive. Privacy noise does not
come from here: it is never seeded.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream_key(seed: int, *labels: str | int) -> int:
    """Returns 128 bits that identify the stream (seed, *labels)."""
    text = "\x1f".join(str(part) for part in (seed, *labels))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def stream_base(seed: int, *labels: str | int) -> np.uint64:
    """Returns 64 bits of the stream (seed, *labels), which compiled loops mix with the user (`splitmix`)."""
    return np.uint64(stream_key(seed, *labels) & (2**64 - 1))


def rng(seed: int, *labels: str | int) -> np.random.Generator:
    """Returns the generator of the stream (seed, *labels): Philox, counter-based (Salmon et al., SC 2011)."""
    return np.random.Generator(np.random.Philox(key=stream_key(seed, *labels)))


def torch_seed(seed: int, *labels: str | int) -> int:
    """Returns a seed for `torch.manual_seed`, 63 bits, of the stream (seed, *labels)."""
    return stream_key(seed, *labels) & (2**63 - 1)


def user_key(user_id: str) -> int:
    """Returns the 64 bits that stand for a user in random streams, the same on every node."""
    return int.from_bytes(hashlib.blake2b(user_id.encode(), digest_size=8).digest(), "little")
