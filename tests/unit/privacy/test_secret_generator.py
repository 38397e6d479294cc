"""Numbers of a secret generator are the operating system's, and no state is used for more than it has."""

from __future__ import annotations

import numpy as np
import torch

from fedrec_app.privacy.secret_generator import NUMBERS, secret_generator


def test_every_word_of_the_state_is_drawn_and_lies_where_the_twister_reads_it() -> None:
    generator = secret_generator()
    words = generator.get_state().numpy()[24 : 24 + 8 * 624].view(np.uint64).astype(np.uint32)
    assert len(set(words.tolist())) > 620
    oracle = np.random.MT19937()
    oracle.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    expected = (oracle.random_raw(600) & np.uint64(0xFFFFFF)) / 2.0**24
    np.testing.assert_array_equal(torch.rand(600, generator=generator).numpy(), expected.astype(np.float32))


def test_a_state_is_not_used_up_by_the_normals_of_one_part() -> None:
    generator = secret_generator()
    torch.normal(0.0, 1.0, (NUMBERS,), generator=generator, dtype=torch.float64)
    assert int(generator.get_state().numpy()[16:24].view(np.uint64)[0]) == 2 * NUMBERS <= 624


def test_seeds_that_torch_takes_for_the_same_are_why() -> None:
    first, second = torch.Generator(), torch.Generator()
    first.manual_seed(5)
    second.manual_seed(5 + 2**32)
    assert torch.equal(torch.rand(4, generator=first), torch.rand(4, generator=second))
