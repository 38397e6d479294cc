"""What is hidden, shuffled and drawn beside windows of histories, by hand and by chance; and items numbered anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedrec_app.data.histories import Histories
from fedrec_app.errors import ConfigError
from fedrec_app.models.base import Batch, Recommender, bind
from fedrec_app.models.sasrec import SasRec
from fedrec_app.models.sequence_rules import SequenceRules
from fedrec_app.seeding import user_key
from fedrec_app.training import sequences
from fedrec_app.training.sampling import sampling_base
from tests.unit.training.oracle import catalog

BASE = sampling_base(1, 4, "fit")
LONG = list(range(20, 30))


def make(lists: list[list[int]], epoch: int = 0, base: np.uint64 = BASE, first: int = 0, **options: Any) -> Batch:
    """Returns the batch of users whose ids count on from `first`, uncut windows of four where nothing else is said."""
    keys = np.array([user_key(f"u{first + user}") for user in range(len(lists))], dtype=np.uint64)
    model = SasRec(4, SasRec.Options(**{"heads": 1, "max_length": 4, "crop": 0, **options}))
    return sequences.make(base, epoch, keys, Histories.from_lists(lists), bind(model, catalog(50), None, 1))


def near(found: float, share: float, draws: int) -> bool:
    return abs(found - share) < 4 * np.sqrt(share * (1 - share) / draws)


def whole(batch: Batch) -> torch.Tensor:
    """Returns (B, T + 1) windows."""
    return torch.cat([batch["items"], batch["targets"][:, -1:]], dim=1)


def test_masked_cells_are_their_own_targets_in_windows_of_one_more() -> None:
    lists = [LONG, [7], [1, 2], [], [1, 2, 3]]
    batch = make(lists, objective="masked", mask_last=0)
    there = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]])
    assert torch.equal(batch["present"], there.float())
    assert batch["items"].tolist() == [[25, 26, 27, 28, 29], [7] * 5, [2, 2, 2, 1, 2], [0] * 5, [3, 3, 1, 2, 3]]
    assert torch.equal(batch["targets"], batch["items"])
    assert torch.equal(batch["hidden"], batch["weights"])
    assert not (batch["weights"] > batch["present"]).any()
    assert (batch["weights"].sum(1) > 0).tolist() == [True, False, True, False, True]


def test_a_share_of_cells_is_masked_and_one_at_least() -> None:
    found = make([LONG] * 4000, objective="masked", mask_last=0, mask_share=0.3)["weights"].numpy()
    none = 0.7**5  # then one of five
    assert near(found[:, 4].mean(), 0.3 + none / 5, 4000)
    assert near((found.sum(1) == 1).mean(), 5 * 0.3 * 0.7**4 + none, 4000)
    assert found.sum(1).min() == 1


def test_in_a_share_of_epochs_the_last_item_alone_is_masked() -> None:
    assert make([LONG, [1, 2]], objective="masked", mask_last=1)["weights"].tolist() == [[0, 0, 0, 0, 1]] * 2
    batch = make([LONG] * 3000, objective="masked", mask_last=0.4, mask_share=1e-9)["weights"].numpy()
    assert near(batch[:, 4].mean(), 0.4 + 0.6 / 5, 3000)


def test_mask_hides_a_share_of_items_in_a_share_of_epochs_and_asks_for_what_it_did() -> None:
    lists = [LONG, [1, 2, 3]] * 2000
    plain, batch = make(lists), make(lists, mask=0.5, mask_share=0.3)
    assert "hidden" not in plain
    for name in ("items", "targets", "present", "weights", "noise"):
        assert torch.equal(batch[name], plain[name])
    hidden = batch["hidden"].numpy()
    assert not (hidden > batch["present"].numpy()).any()
    assert near(hidden[::2].any(1).mean(), 0.5 * (1 - 0.7**4), 2000)
    assert near(hidden[1::2, 3].mean(), 0.15, 2000)
    assert near((hidden[::2, 0] * hidden[::2, 3]).mean(), 0.5 * 0.09, 2000)


def test_reordering_shuffles_a_part_of_the_window_before_targets_are_read_off() -> None:
    batch = make([[1, 2, 3]] * 3000 + [[5]], reorder=1.0)
    assert torch.equal(batch["items"][:-1, 1], batch["targets"][:-1, 0])
    orders = list(map(tuple, whole(batch)[:-1].tolist()))
    found = {order: orders.count(order) / 3000 for order in set(orders)}
    # All three in any order, or the first or the last two: half the time each.
    shares = {(1, 2, 3): 1 / 12 + 1 / 4, (2, 1, 3): 1 / 12 + 1 / 8, (1, 3, 2): 1 / 12 + 1 / 8}
    shares |= {(2, 3, 1): 1 / 12, (3, 1, 2): 1 / 12, (3, 2, 1): 1 / 12}
    assert found.keys() == shares.keys()
    assert all(near(found[order], share, 3000) for order, share in shares.items())
    assert not batch["present"][-1].any()


def test_reorder_is_the_share_of_epochs_in_which_a_part_is_shuffled() -> None:
    changed = (whole(make([LONG] * 3000, reorder=0.4)) != torch.arange(25, 30)).any(1).float().mean()
    as_it_was = (1 / 2 + 1 / 6 + 1 / 24 + 1 / 120) / 4  # two to five items of five
    assert near(float(changed), 0.4 * (1 - as_it_was), 3000)


def test_negatives_are_uniform_over_the_catalog_and_others_for_each_user_and_epoch() -> None:
    batch = make([[1, 2]] * 400, negatives=100)
    counts = np.bincount(batch["negatives"].flatten().numpy(), minlength=50)
    assert batch["negatives"].shape == (400, 100)
    assert len(counts) == 50
    assert np.abs(counts - 800).max() < 4.5 * np.sqrt(800)
    assert len({tuple(row) for row in batch["negatives"].tolist()}) == 400
    for other in (make([[1, 2]], negatives=100, epoch=1), make([[1, 2]], negatives=100, base=np.uint64(3))):
        same = (other["negatives"][0] == batch["negatives"][0]).float().mean()
        assert same < 0.2
    assert torch.equal(make([[3, 4, 5]], negatives=7)["negatives"][0], batch["negatives"][0, :7])


EVERYTHING = {"crop": 0.5, "mask": 0.5, "reorder": 0.5, "negatives": 5, "mask_share": 0.4}


@pytest.mark.parametrize("objective", ["next", "masked"])
def test_all_that_is_drawn_depends_on_the_user_wherever_he_is_placed(objective: str) -> None:
    lists = [LONG, [1], LONG[:4], [], [1, 2, 3]]
    for epoch in range(4):
        together = make(lists, epoch=epoch, objective=objective, **EVERYTHING)
        for user, items in enumerate(lists):
            alone = make([items], epoch=epoch, first=user, objective=objective, **EVERYTHING)
            for name, tensor in alone.items():
                if name == "user":
                    continue
                wide = together[name][user]
                assert torch.equal(tensor[0], wide[-tensor.shape[1] :] if tensor.ndim == 2 else wide), (name, user)


@pytest.mark.parametrize("objective", ["next", "masked"])
def test_what_is_drawn_differs_by_seed_round_and_epoch(objective: str) -> None:
    lists = [LONG] * 200
    first = make(lists, objective=objective, **EVERYTHING)
    others = [
        make(lists, objective=objective, base=sampling_base(2, 4, "fit"), **EVERYTHING),
        make(lists, objective=objective, base=sampling_base(1, 5, "fit"), **EVERYTHING),
        make(lists, objective=objective, epoch=1, **EVERYTHING),
    ]
    again = make(lists, objective=objective, **EVERYTHING)
    for name in ("items", "hidden", "negatives"):
        assert torch.equal(again[name], first[name])
        for other in others:
            assert (other[name] != first[name]).any(1).float().mean() > 0.4, name


def test_no_two_streams_of_a_fit_are_the_same() -> None:
    bases = [int(sequences.stream(BASE, number)) for number in range(-3000, 3000) if number != -1]
    assert len({int(BASE), *bases}) == 6000


def test_items_are_numbered_by_user_or_all_together() -> None:
    first = {
        "items": torch.tensor([[9, 4], [4, 4]]), "targets": torch.tensor([[4, 7], [4, 9]]),
        "negatives": torch.tensor([[9], [2]]), "weights": torch.ones(2, 2),
    }  # fmt: skip
    second = {**first, "negatives": torch.tensor([[5], [9]])}
    (one, other), met = sequences.renumber([first, second], 12, together=False)
    assert [met[user].tolist() for user in range(2)] == [[9, 4, 7, 5], [4, 9, 2]]
    assert one["items"].tolist() == [[0, 1], [0, 0]]
    assert one["targets"].tolist() == other["targets"].tolist() == [[1, 2], [0, 1]]
    assert (one["negatives"].tolist(), other["negatives"].tolist()) == ([[0], [2]], [[3], [1]])
    assert one["weights"] is first["weights"]
    assert first["items"].tolist() == [[9, 4], [4, 4]]
    (shared,), everything = sequences.renumber([first], 12, together=True)
    assert everything.items.tolist() == [9, 4, 7, 2]
    assert (shared["items"].tolist(), shared["negatives"].tolist()) == ([[0, 1], [1, 1]], [[0], [3]])


def test_a_model_that_declares_nothing_more_has_batches_of_windows_alone() -> None:
    class Old(Recommender):
        sampling, max_length, crop = "sequence", 3, 0.5

    model = Old(4, None)
    assert model.sequence_rules == SequenceRules()
    batch = sequences.make(BASE, 0, np.array([3], dtype=np.uint64), Histories.from_lists([[1, 2]]), model)
    assert sorted(batch) == ["examples", "items", "noise", "present", "share", "targets", "user", "weights"]


def test_rules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sequence_rules: reorder is 50: it must be a share from 0 to 1"):
        SequenceRules(reorder=50)
    with pytest.raises(ConfigError, match=r"sequence_rules: negatives is -1: it must be at least 0"):
        SequenceRules(negatives=-1)
