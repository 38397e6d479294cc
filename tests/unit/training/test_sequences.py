"""Windows of histories, worked out by hand, and what they and the noise of dropout are drawn from."""

from __future__ import annotations

import numpy as np
import torch

from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch
from fedrec_app.models.sasrec import SasRec
from fedrec_app.seeding import user_key
from fedrec_app.training import sequences
from fedrec_app.training.sampling import sampling_base

BASE = sampling_base(1, 4, "fit")
LONG = list(range(20, 28))


def make(lists: list[list[int]], length: int = 3, crop: float = 0.0, epoch: int = 0, base: np.uint64 = BASE,
         first: int = 0) -> Batch:  # fmt: skip
    """Returns the batch of users whose ids count on from `first`."""
    keys = np.array([user_key(f"u{first + user}") for user in range(len(lists))], dtype=np.uint64)
    model = SasRec(4, SasRec.Options(heads=1, max_length=length, crop=crop))
    return sequences.make(base, epoch, keys, Histories.from_lists(lists), model)


def windows(batch: Batch) -> list[list[tuple[int, int]]]:
    """Returns the (item, target) pairs that are there, by user."""
    rows = zip(batch["items"].tolist(), batch["targets"].tolist(), batch["present"].tolist(), strict=True)
    return [[(i, t) for i, t, there in zip(*row, strict=True) if there] for row in rows]


def test_histories_shorter_equal_and_longer_than_the_window_stand_at_its_right() -> None:
    batch = make([[5], [1, 2], [1, 2, 3], [1, 2, 3, 4], [9, 8, 7, 6, 5, 4], []])
    there = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0]]).float()
    assert torch.equal(batch["present"], there)
    assert torch.equal(batch["weights"], there)
    assert windows(batch) == [
        [], [(1, 2)], [(1, 2), (2, 3)], [(1, 2), (2, 3), (3, 4)], [(7, 6), (6, 5), (5, 4)], [],
    ]  # fmt: skip
    assert batch["examples"].tolist() == [1, 2, 3, 4, 6, 0]
    assert batch["share"].tolist() == [1] * 6
    assert batch["user"].tolist() == [0, 1, 2, 3, 4, 5]
    assert (batch["items"].dtype, batch["noise"].dtype) == (torch.int64, torch.int64)


def test_a_batch_is_as_wide_as_its_longest_window_and_one_cell_at_least() -> None:
    assert make([[1, 2], [1, 2, 3]])["items"].shape == (2, 2)
    assert make([LONG, [1]])["items"].shape == (2, 3)
    assert make([LONG], length=20)["items"].shape == (1, 7)
    assert windows(make([LONG], length=1)) == [[(26, 27)]]
    for lists in ([[1]], [[]], [[], [4]]):
        batch = make(lists)
        assert batch["items"].shape == (len(lists), 1)
        assert not batch["present"].any()
    assert make([])["items"].shape == (0, 1)


def test_a_history_that_is_cut_ends_anywhere_that_leaves_a_whole_window() -> None:
    found = windows(make([LONG] * 600, crop=1.0))
    allowed = [[(20 + s + k, 21 + s + k) for k in range(3)] for s in range(5)]
    counts = [found.count(window) for window in allowed]
    assert sum(counts) == 600
    assert min(counts) > 120 - 4 * np.sqrt(600 * 0.2 * 0.8)
    assert max(counts) < 120 + 4 * np.sqrt(600 * 0.2 * 0.8)


def test_a_history_that_fits_is_never_cut_and_without_crop_none_is() -> None:
    assert windows(make([LONG[:4]] * 50, crop=1.0)) == [[(20, 21), (21, 22), (22, 23)]] * 50
    assert windows(make([LONG[:3]] * 50, crop=1.0)) == [[(20, 21), (21, 22)]] * 50
    for epoch in range(3):
        assert windows(make([LONG] * 50, epoch=epoch)) == [[(24, 25), (25, 26), (26, 27)]] * 50


def test_crop_is_the_share_of_epochs_in_which_a_history_is_cut() -> None:
    cut = [
        windows(make([LONG] * 100, crop=0.5, epoch=epoch))[user] != [(24, 25), (25, 26), (26, 27)]
        for epoch in range(20) for user in range(100)
    ]  # fmt: skip
    share = 0.5 * 4 / 5  # the place that is drawn may be the end
    assert abs(np.mean(cut) - share) < 4 * np.sqrt(share * (1 - share) / 2000)


def test_windows_and_noise_are_drawn_from_the_user_wherever_he_is_placed() -> None:
    lists = [LONG, [1], LONG[:6], [], list(range(30))]
    together = make(lists, crop=1.0)
    for user, items in enumerate(lists):
        alone = make([items], crop=1.0, first=user)
        assert windows(alone)[0] == windows(together)[user]
        assert alone["noise"][0] == together["noise"][user]
        beside = make([list(range(99))] * user + [items], crop=1.0)
        assert windows(beside)[user] == windows(together)[user]
        assert beside["noise"][user] == together["noise"][user]


def test_windows_and_noise_differ_by_seed_round_purpose_epoch_and_user() -> None:
    first = make([LONG * 9] * 40, crop=1.0)
    others = {
        "seed": make([LONG * 9] * 40, crop=1.0, base=sampling_base(2, 4, "fit")),
        "round": make([LONG * 9] * 40, crop=1.0, base=sampling_base(1, 5, "fit")),
        "purpose": make([LONG * 9] * 40, crop=1.0, base=sampling_base(1, 4, "other")),
        "epoch": make([LONG * 9] * 40, crop=1.0, epoch=1),
        "user": make([LONG * 9] * 40, crop=1.0, first=40),
    }
    assert len(set(first["noise"].tolist())) == 40
    for name, batch in others.items():
        assert not set(first["noise"].tolist()) & set(batch["noise"].tolist()), name
        assert (first["items"] != batch["items"]).any(1).float().mean() > 0.5, name
    again = make([LONG * 9] * 40, crop=1.0)
    assert torch.equal(again["items"], first["items"])
    assert torch.equal(again["noise"], first["noise"])


def test_noise_is_spread_over_53_bits_and_says_nothing_of_the_window() -> None:
    batch = make([list(range(1000))] * 3000, crop=1.0)
    noise = batch["noise"].double() / 2**53
    assert noise.min() >= 0
    assert noise.max() < 1
    assert abs(noise.mean() - 0.5) < 4 / np.sqrt(12 * 3000)
    assert abs(np.corrcoef(noise, batch["items"][:, 0])[0, 1]) < 4 / np.sqrt(3000)


def test_no_two_streams_of_a_fit_are_the_same() -> None:
    bases = [int(sequences.stream(BASE, number)) for number in range(3000)]
    assert len({int(BASE), *bases}) == 3001
