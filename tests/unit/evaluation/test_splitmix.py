from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from fedrec_app.splitmix import GOLDEN, below, mix, stream_start, uniform


@njit
def _draws(state, bound, count):
    words = np.empty(count, np.uint64)
    numbers = np.empty(count, np.int64)
    floats = np.empty(count)
    for place in range(count):
        state += GOLDEN
        words[place], numbers[place], floats[place] = mix(state), below(state, bound), uniform(state)
    return words, numbers, floats


@njit
def _start(base, epoch, key):
    return stream_start(base, epoch, key)


def test_words_are_those_of_the_reference_implementation():
    """Vigna's splitmix64.c from seed 1234567."""
    words, _, _ = _draws(np.uint64(1234567), 1, 5)
    assert words.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("bound", [1, 2, 7, 1000, 2**32])
def test_whole_numbers_and_fractions_are_the_upper_bits(bound):
    words, numbers, floats = _draws(np.uint64(5), bound, 3000)
    assert numbers.tolist() == [(int(word) >> 32) * bound >> 32 for word in words]
    assert floats.tolist() == [(int(word) >> 11) / 2**53 for word in words]
    assert 0 <= floats.min() < 0.01
    assert 0.99 < floats.max() < 1


def test_streams_differ_in_base_epoch_and_user():
    starts = [
        int(_start(np.uint64(base), epoch, np.uint64(key)))
        for base in (11, 2**63 + 5, 0xABCDEF0123)
        for epoch in (0, 1, 2)
        for key in (0, 1, 2**64 - 1)
    ]
    assert len(set(starts)) == 27
