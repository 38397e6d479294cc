"""SasRec against a model of loops and whole numbers, one history at a time in float64; and what it promises."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import opacus
import pytest
import torch
from pydantic import ValidationError
from torch.func import functional_call, grad, vmap

from fedrec_app.data.histories import Histories
from fedrec_app.errors import ConfigError
from fedrec_app.models.base import Batch, bind
from fedrec_app.models.sasrec import SasRec
from fedrec_app.seeding import user_key
from fedrec_app.training import sequences
from fedrec_app.training.sampling import sampling_base
from tests.unit.models import slow_masked, slow_sasrec
from tests.unit.training.oracle import catalog

LISTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [2, 8], [], [0, 1, 2, 3, 4, 5], [9, 9, 9, 9, 9]]
CASES: dict[str, dict[str, Any]] = {
    "one layer": {"layers": 1, "heads": 2, "dropout": 0.0},
    "one head": {"layers": 2, "heads": 1, "dropout": 0.0},
    "dropout": {"layers": 2, "heads": 4, "dropout": 0.4},
}


def make(**options: Any) -> SasRec:
    """Returns a model of ten items whose parameters are all far from zero."""
    model = SasRec(8, SasRec.Options(**{"max_length": 5, "crop": 0, **options}))
    bind(model, catalog(10), None, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def batch_of(model: SasRec, lists: list[list[int]]) -> Batch:
    keys = np.array([user_key(str(user)) for user in range(len(lists))], dtype=np.uint64)
    return sequences.make(sampling_base(0, 1, "fit"), 0, keys, Histories.from_lists(lists), model)


def scores(model: SasRec, lists: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        return model.score(model.encode(Histories.from_lists(lists), torch.arange(len(lists))), torch.arange(10))


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_the_slow_model_a_history_at_a_time(case: str) -> None:
    model = make(**CASES[case])
    slow = copy.deepcopy(model).double()
    batch = batch_of(model, LISTS)
    losses = model.loss(batch)
    expected = [
        slow_sasrec.loss(slow, items[-6:], noise) for items, noise in zip(LISTS, batch["noise"].tolist(), strict=True)
    ]
    np.testing.assert_allclose(losses.detach(), [one.item() for one in expected], rtol=1e-5, atol=1e-6)
    weights = torch.arange(1.0, 1.0 + len(LISTS))
    (losses * weights).sum().backward()
    sum(weight * one for weight, one in zip(weights.double(), expected, strict=True)).backward()
    for (name, parameter), other in zip(model.named_parameters(), slow.parameters(), strict=True):
        np.testing.assert_allclose(parameter.grad, other.grad, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_slow_model_without_dropout(case: str) -> None:
    model = make(**CASES[case])
    slow = copy.deepcopy(model).double()
    found = scores(model, LISTS)
    for user, items in enumerate(LISTS):
        state = slow_sasrec.states(slow, items[-5:], None)[-1] if items else torch.zeros(8)
        np.testing.assert_allclose(found[user], (slow.item_embedding @ state.double()).detach(), rtol=1e-4, atol=1e-5)


def test_a_user_scores_the_same_alone_and_beside_longer_ones_and_without_history_zero() -> None:
    model = make()
    together = scores(model, LISTS)
    for user, items in enumerate(LISTS):
        torch.testing.assert_close(scores(model, [items])[0], together[user], rtol=1e-5, atol=1e-6)
    assert not together[3].any()
    assert not scores(model, [[], []]).any()


def test_training_predicts_with_the_state_that_serves() -> None:
    model = make(dropout=0.0)
    batch = batch_of(model, [[3, 1, 4, 2]])
    batch["weights"] = torch.tensor([[0.0, 0.0, 1.0]])
    served = scores(model, [[3, 1, 4]])[0].log_softmax(0)
    assert model.loss(batch).item() == pytest.approx(-served[2].item(), rel=1e-5)


@pytest.mark.parametrize("cell", range(5))
def test_no_state_follows_what_comes_after_it(cell: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(dropout=0.0)
    batch = batch_of(model, [[3, 1, 4, 1, 5, 9]])
    inputs = model.item_embedding.detach()[batch["items"]].requires_grad_()
    monkeypatch.setattr(torch.nn.functional, "embedding", lambda items, table: inputs)
    states = model._states(batch["items"], batch["present"], None, None)
    (gradient,) = torch.autograd.grad(states[0, cell].square().sum(), inputs)
    assert (gradient[0].abs().sum(1) > 0).tolist() == [place <= cell for place in range(5)]


def test_masked_every_state_follows_every_item_that_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(dropout=0.0, objective="masked", mask_last=1.0)
    batch = batch_of(model, [[3, 1, 4, 1, 5, 9]])
    inputs = model.item_embedding.detach()[batch["items"]].requires_grad_()
    monkeypatch.setattr(torch.nn.functional, "embedding", lambda items, table: inputs)
    states = model._states(batch["items"], batch["present"], batch["hidden"], None)
    for cell in range(6):
        (gradient,) = torch.autograd.grad(states[0, cell].square().sum(), inputs, retain_graph=True)
        assert (gradient[0].abs().sum(1) > 0).tolist() == [True] * 5 + [False]


@pytest.mark.parametrize("items", [[3, 1, 4, 2], [9, 3, 1, 4, 1, 5]])
def test_masked_training_predicts_with_the_state_that_serves(items: list[int]) -> None:
    model = make(dropout=0.0, objective="masked", mask_last=1.0)
    batch = batch_of(model, [items, [1, 2]])
    assert batch["items"].shape[1] == len(items)
    served = scores(model, [items[:-1]])[0].log_softmax(0)
    assert model.loss(batch)[0].item() == pytest.approx(-served[items[-1]].item(), rel=1e-5)


def test_masked_scores_are_those_of_the_slow_model_with_a_mask_after_the_last_items() -> None:
    model = make(dropout=0.0, objective="masked")
    slow = copy.deepcopy(model).double()
    found = scores(model, LISTS)
    for user, items in enumerate(LISTS):
        state = slow_masked.states(slow, [*items[-5:], None], None)[-1] if items else torch.zeros(8)
        np.testing.assert_allclose(found[user], (slow.item_embedding @ state.double()).detach(), rtol=1e-4, atol=1e-5)


def test_a_sampled_softmax_is_over_the_target_and_the_negatives_that_are_not_it() -> None:
    model = make(negatives=3)
    with torch.no_grad():
        model.item_embedding.zero_()
        model.item_embedding[:4, 0] = torch.tensor([2.0, 1.0, 0.0, -1.0])
    states = torch.zeros(1, 2, 8)
    states[..., 0] = 1.0
    targets, negatives = torch.tensor([[0, 1]]), torch.tensor([[1, 2, 1]])
    found = model._sampled_softmax(states, targets, negatives)
    # 0 against 1, 2 and 1 again; 1 against 2 alone, because the two others are itself.
    e = math.e
    expected = [math.log(e**2 + 2 * e + 1) - 2, math.log(e + 1) - 1]
    np.testing.assert_allclose(found[0].detach(), expected, rtol=1e-6)
    found.sum().backward()
    assert not model.item_embedding.grad[3:].any()
    assert model.item_embedding.grad[:3].any(dim=1).all()


def test_every_item_as_a_negative_once_is_the_full_softmax() -> None:
    full, sampled = make(dropout=0.3), make(dropout=0.3, negatives=10)
    batch = batch_of(full, LISTS)
    everything = torch.arange(10).expand(len(LISTS), 10)
    torch.testing.assert_close(sampled.loss({**batch, "negatives": everything}), full.loss(batch), rtol=1e-5, atol=1e-6)


def test_options_that_are_off_leave_the_parameters_of_a_model_as_they_are() -> None:
    plain, augmented = make(), make(mask=0.5, reorder=0.5, negatives=3, mask_share=0.4)
    masked = make(objective="masked")
    assert augmented.shared_names() == plain.shared_names()
    assert set(masked.shared_names()) - set(plain.shared_names()) == {"mask_embedding"}
    assert masked.position_embedding.shape == (6, 8)
    assert (plain.whole_catalog, augmented.whole_catalog, masked.whole_catalog) == (True, False, True)


def test_a_new_model_is_as_sure_as_chance() -> None:
    model = SasRec(64, SasRec.Options())
    bind(model, catalog(1000), None, seed=1)
    assert model.loss(batch_of(model, [list(range(30))])).item() == pytest.approx(math.log(1000), rel=0.02)


def test_every_parameter_can_matter() -> None:
    model = make(dropout=0.0).double()
    batch = {n: t.double() if t.is_floating_point() else t for n, t in batch_of(model, LISTS).items()}
    model.loss(batch).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": -0.1}, r"dropout\n.*greater than or equal to 0"),
        ({"dropout": 1.0}, r"dropout\n.*less than 1"),
        ({"crop": 1.5}, r"crop\n.*less than or equal to 1"),
        ({"negatives": -1}, r"negatives\n.*greater than or equal to 0"),
        ({"mask": 1.5}, r"mask\n.*less than or equal to 1"),
        ({"reorder": -0.5}, r"reorder\n.*greater than or equal to 0"),
        ({"mask_share": 0}, r"mask_share\n.*greater than 0"),
        ({"objective": "both"}, r"objective\n.*'next' or 'masked'"),
        ({"layers": 0}, r"layers\n.*greater than or equal to 1"),
        ({"max_length": 0}, r"max_length\n.*greater than or equal to 1"),
        ({"hidden": 3}, r"hidden\n.*not permitted"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SasRec.Options(**options)


def test_heads_that_do_not_divide_the_width_are_named() -> None:
    with pytest.raises(ConfigError, match=r"heads is 3: it must divide model.embedding-dim = 8"):
        SasRec(8, SasRec.Options(heads=3))


class Packed(SasRec):
    """A batch in one tensor: Opacus' per-example gradients by functorch know modules of one tensor only."""

    CELLS = ("items", "targets", "present", "weights")

    @classmethod
    def pack(cls, batch: Batch) -> torch.Tensor:
        """Returns (B, 5, T) int64, the noise in every cell."""
        noise = batch["noise"][:, None].expand_as(batch["items"])
        return torch.stack([*(batch[name].long() for name in cls.CELLS), noise], dim=1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Returns (B,) losses."""
        items, targets, present, weights, noise = batch.unbind(1)
        cells = {"items": items, "targets": targets, "present": present.float(), "weights": weights.float()}
        return self.loss({**cells, "noise": noise[:, 0]})


@pytest.mark.filterwarnings("ignore:Full backward hook is firing", "ignore:In CPU autocast")
def test_gradients_of_each_user_by_opacus_equal_those_by_vmap() -> None:
    model = make(dropout=0.4, heads=2)
    batch = batch_of(model, LISTS)

    def loss_of_one(params: dict[str, torch.Tensor], one: Batch) -> torch.Tensor:
        return functional_call(model, params, ({name: tensor[None] for name, tensor in one.items()},))[0]

    params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expected = vmap(grad(loss_of_one), in_dims=(None, 0))(params, batch)
    packed = Packed(8, model.options)
    bind(packed, catalog(10), None, seed=1)
    packed.load_state_dict(model.state_dict())
    hooked = opacus.GradSampleModule(packed, loss_reduction="sum")
    hooked(Packed.pack(batch)).sum().backward()
    for name, parameter in packed.named_parameters():
        np.testing.assert_allclose(parameter.grad_sample, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_opacus_cannot_hook_a_model_that_is_given_a_dictionary() -> None:
    model = make()
    with pytest.raises(AttributeError, match="'dict' object has no attribute 'detach'"):
        opacus.GradSampleModule(model, loss_reduction="sum")(batch_of(model, LISTS))
