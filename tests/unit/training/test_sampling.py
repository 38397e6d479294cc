from __future__ import annotations

import numpy as np

from fedrec_app.data.histories import Histories
from fedrec_app.training.sampling import draw_epoch, sampling_base

KEYS = np.array([11, 22, 33], dtype=np.uint64)
TRAIN = Histories.from_lists([[1, 2, 3], [4], [0, 5]])


def draw(epoch: int = 0, server_round: int = 1, never: Histories = TRAIN, num_items: int = 8, k: int = 50):  # type: ignore[no-untyped-def]
    return draw_epoch(sampling_base(0, server_round, "fit"), epoch, KEYS, TRAIN, never, num_items, k)


def test_positives_are_a_shuffle_of_the_users_items_and_negatives_are_never_banned() -> None:
    samples, full = draw()
    for user in range(3):
        rows = samples[TRAIN.indptr[user] : TRAIN.indptr[user + 1]]
        assert sorted(rows[:, 0]) == sorted(TRAIN[user])
        assert not set(rows[:, 1:].flatten()) & set(TRAIN[user].tolist())
        assert set(rows[:, 1:].flatten()) == set(range(8)) - set(TRAIN[user].tolist())
    assert not full.any()


def test_the_held_out_items_of_a_user_are_drawn_as_negatives_unless_the_protocol_leaks() -> None:
    honest = draw()[0][3, 1:]
    assert 7 in honest
    leaky = draw(never=Histories.from_lists([[1, 2, 3], [4, 7], [0, 5]]))[0][3, 1:]
    assert 7 not in leaky


def test_negatives_are_uniform_over_what_is_allowed() -> None:
    base = sampling_base(0, 1, "fit")
    one = Histories.from_lists([[0]])
    samples, _ = draw_epoch(base, 0, KEYS[:1], one, one, 11, 100_000)
    counts = np.bincount(samples[0, 1:], minlength=11)
    assert counts[0] == 0
    chi_square = ((counts[1:] - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 29.6  # 99.9 % quantile of 9 degrees of freedom is 27.9


def test_a_user_draws_the_same_alone_in_any_company_and_new_in_each_epoch_and_round() -> None:
    together, _ = draw()
    alone, _ = draw_epoch(
        sampling_base(0, 1, "fit"),
        0,
        KEYS[2:],
        Histories.from_lists([TRAIN[2]]),
        Histories.from_lists([TRAIN[2]]),
        8,
        50,
    )
    np.testing.assert_array_equal(together[4:], alone)
    assert not np.array_equal(together, draw(epoch=1)[0])
    assert not np.array_equal(together, draw(server_round=2)[0])


def test_a_user_who_has_every_item_gets_no_negatives() -> None:
    everything = Histories.from_lists([[0, 1, 2]])
    samples, full = draw_epoch(sampling_base(0, 1, "fit"), 0, KEYS[:1], everything, everything, 3, 4)
    assert full.all()
    np.testing.assert_array_equal(samples, np.repeat(samples[:, :1], 5, axis=1))
