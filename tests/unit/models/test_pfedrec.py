"""PFedRec by hand, its personal view laid out item by item, and its training against one torch model a user."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import softplus

from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models import pfedrec
from fedrec_app.models.base import initialise
from fedrec_app.models.pfedrec import PFedRec
from fedrec_app.training import batches, sampling
from fedrec_app.training.plan import FitPlan
from fedrec_app.training.private_rows import fit_private, with_optimizer_state
from fedrec_app.training.users import Engine, fit_users, load_shared
from tests.unit.training.oracle import catalog, private_of, shared_of, train_one_user

LISTS = [[3, 1, 4, 5, 9, 2, 6], [7], [], [*range(10)], [8, 2]]
NUM_ITEMS = 10
HEADS: dict[str, dict[str, Any]] = {"linear": {}, "hidden": {"hidden": 3}}


def cohort_of(lists: list[list[int]], num_items: int = NUM_ITEMS, ordered: bool = True) -> Cohort:
    train, nothing = Histories.from_lists(lists), Histories.from_lists([[]] * len(lists))
    return Cohort(tuple(f"u{u}" for u in range(len(lists))), num_items, train, nothing, nothing, train, ordered)


def make(users: Cohort, **options: Any) -> PFedRec:
    """Returns a model whose parameters are all far from zero."""
    model = PFedRec(4, PFedRec.Options(**{"init_std": 0.7, **options}))
    initialise(model, catalog(users.num_items), users, seed=1)
    return model


def by_hand(**options: Any) -> PFedRec:
    """Returns a model of items (1, 0), (0, 1), (1, 1) and one user with w = (2, -1), b = 1/2, who has the first."""
    model = PFedRec(2, PFedRec.Options(**options))
    initialise(model, catalog(3), cohort_of([[0]], 3), seed=0)
    with torch.no_grad():
        model.item_embedding.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        model.score_weight.copy_(torch.tensor([[2.0, -1.0]]))
        model.score_bias.copy_(torch.tensor([0.5]))
    return model


def scores_of(model: PFedRec, histories: Histories, items: Tensor | None = None) -> Tensor:
    items = torch.arange(len(model.item_embedding)) if items is None else items
    with torch.no_grad():
        return model.score(model.encode(histories, torch.arange(len(histories))), items)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_loss_is_the_mean_cross_entropy_of_the_scores_by_hand() -> None:
    batch = batches.make(np.array([0]), np.array([[[0, 1, 2]]]), np.ones((1, 1), np.float32), np.array([False]),
                         np.ones(1))  # fmt: skip
    # Scores 2.5, -0.5 and 1.5, of which the first is of a positive.
    expected = (math.log1p(math.exp(-2.5)) + math.log1p(math.exp(-0.5)) + math.log1p(math.exp(1.5))) / 3
    assert expected == pytest.approx(0.75146, abs=1e-5)
    assert by_hand().loss(batch).tolist() == pytest.approx([expected], rel=1e-6)


def test_scores_without_and_with_the_view_by_hand() -> None:
    own = Histories.from_lists([[0]])
    assert scores_of(by_hand(personal_view=False), own).tolist() == [[2.5, -0.5, 1.5]]
    # The item that he has moves by 0.1 (1 - sigmoid) w; the others weigh 4 times as much as it together, 2 each.
    # |w|^2 is 5, so scores move by 0.5 and 1.0 times their residuals.
    seen = [2.5 + 0.5 * (1 - sigmoid(2.5)), -0.5 - sigmoid(-0.5), 1.5 - sigmoid(1.5)]
    assert seen == pytest.approx([2.537929, -0.877541, 0.682426], abs=1e-6)
    model = by_hand(view_learning_rate=0.1, view_negatives=4)
    assert scores_of(model, own)[0].tolist() == pytest.approx(seen, rel=1e-6)


def laid_out(model: PFedRec, user: int, history: list[int]) -> Tensor:
    """Returns (num_items,) scores of a user in a table of his own, trained by autograd on his expected loss."""
    options, table = model.options, model.item_embedding.detach().clone().requires_grad_()
    own = {name: model.get_parameter(name).detach()[user] for name in model.private_names()}

    def score(table: Tensor) -> Tensor:
        inputs = (table @ own["hidden_weight"].T + own["hidden_bias"]).relu() if options.hidden else table
        return inputs @ own["score_weight"] + own["score_bias"]

    has = torch.tensor([item in history for item in range(len(table))])
    drawn = options.view_negatives * len(history) / max(len(table) - len(history), 1)
    for _ in range(options.view_epochs):
        scores = score(table)
        loss = softplus(-scores)[has].sum() + drawn * softplus(scores)[~has].sum()
        (gradient,) = torch.autograd.grad(loss, table)
        table = (table - options.view_learning_rate * gradient).detach().requires_grad_()
    return score(table).detach()


@pytest.mark.parametrize("cached", [1, 70, 10**6])
@pytest.mark.parametrize("head", HEADS)
def test_the_view_is_what_training_a_table_of_ones_own_gives(
    monkeypatch: pytest.MonkeyPatch, head: str, cached: int
) -> None:
    monkeypatch.setattr(pfedrec, "CACHED", cached)
    users = cohort_of(LISTS)
    model = make(users, view_epochs=3, view_learning_rate=0.4, view_negatives=2.5, **HEADS[head])
    model.double()
    found, some = scores_of(model, users.train), torch.tensor([9, 1, 1, 4])
    for user, history in enumerate(LISTS):
        torch.testing.assert_close(found[user], laid_out(model, user, history), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scores_of(model, users.train, some), found[:, some], rtol=1e-12, atol=1e-12)
    assert scores_of(model, Histories.from_lists([])).shape == (0, NUM_ITEMS)


def test_the_view_raises_what_a_user_has_and_keeps_the_order_of_what_he_has_not() -> None:
    users = cohort_of(LISTS)
    plain, seen = (make(users, personal_view=view, view_epochs=5) for view in (False, True))
    before, after = scores_of(plain, users.train), scores_of(seen, users.train)
    for user, history in enumerate(LISTS):
        others = [item for item in range(NUM_ITEMS) if item not in history]
        assert (after[user, history] > before[user, history]).all()
        assert (after[user, others] < before[user, others]).all() == (len(history) > 0)
        assert after[user, others].argsort().tolist() == before[user, others].argsort().tolist()
    torch.testing.assert_close(after[2], before[2], rtol=0, atol=0)  # who did nothing sees what all see


@pytest.mark.parametrize("head", HEADS)
def test_gradients_reach_the_items_of_a_user_and_his_own_score_function_alone(head: str) -> None:
    model = make(cohort_of(LISTS), **HEADS[head])
    items = np.array([[[3, 0, 8]]])
    batch = batches.make(np.array([1]), items, np.ones((1, 1), np.float32), np.array([False]), np.ones(1))
    names = [*model.shared_names(), *model.private_names()]
    assert names[0] == "item_embedding"
    gradients = torch.autograd.grad(model.loss(batch).sum(), [model.get_parameter(name) for name in names])
    for name, gradient in zip(names, gradients, strict=True):
        reached = gradient.reshape(len(gradient), -1).abs().sum(1).nonzero()[:, 0].tolist()
        assert reached == ([0, 3, 8] if name == "item_embedding" else [1]), name


def test_items_alone_are_shared() -> None:
    for head, private in (
        ("linear", {"score_weight": (5, 4), "score_bias": (5,)}),
        ("hidden", {"hidden_weight": (5, 3, 4), "hidden_bias": (5, 3), "score_weight": (5, 3), "score_bias": (5,)}),
    ):
        model = make(cohort_of(LISTS), **HEADS[head])
        assert model.shared_names() == model.row_names() == ["item_embedding"]
        assert {name: tuple(model.get_parameter(name).shape) for name in model.private_names()} == private


def test_recent_items_count_more_in_serving_where_there_is_time() -> None:
    assert make(cohort_of(LISTS)).recency() == 1.0
    assert make(cohort_of(LISTS), recency=0.5).recency() == 0.5
    assert make(cohort_of(LISTS, ordered=False)).recency() == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hidden": -1}, "hidden"), ({"view_epochs": 0}, "view_epochs"), ({"view_learning_rate": 0}, "view_learning_rate"),
     ({"view": True}, "view")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PFedRec.Options(**options)


BASE = FitPlan(seed=5, server_round=2, learning_rate=0.3, private_learning_rate=0.4, num_negatives=2)
PLANS: dict[str, tuple[FitPlan, list[Engine | None]]] = {
    "the paper's round": (replace(BASE, private_epochs=2), [None, "one-step", "several-steps"]),
    "both at once": (BASE, [None, "one-step", "several-steps"]),
    "mini-batches": (replace(BASE, private_epochs=1, batch_size=2, local_epochs=2), [None]),
    "clipped": (replace(BASE, batch_size=2, clip_norm=0.1, weighting="users"), [None]),
    "adam": (replace(BASE, batch_size=2, optimizer="adam", learning_rate=0.05), [None]),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("head", HEADS)
def test_engines_equal_one_torch_model_a_user(head: str, plan: str) -> None:
    users, (the_plan, engines) = cohort_of(LISTS), PLANS[plan]
    model = make(users, **HEADS[head])
    shared, first = shared_of(model), with_optimizer_state(private_of(model), the_plan.optimizer)
    begun = {name: array.copy() for name, array in first.items()}
    active, epochs = np.flatnonzero(users.train.lengths > 0), the_plan.private_epochs
    frozen = load_shared(model, shared)
    fit_private(model, frozen, begun, users, active, the_plan, epochs, "private", serving=False)
    trained = {}
    for user in active:
        one = make(users, **HEADS[head])
        for name in one.private_names():
            one.get_parameter(name).data.copy_(torch.from_numpy(begun[name]))
        slow_plan = replace(the_plan, private_learning_rate=0.0) if epochs else the_plan
        trained[int(user)] = train_one_user(one, users, int(user), slow_plan)
    atol = 1e-5 if the_plan.optimizer == "sgd" else 5e-3  # Adam divides a gradient that is nearly zero by its size
    for engine in engines:
        rows = {name: array.copy() for name, array in first.items()}
        sums = fit_users(model, users, shared, rows, the_plan, engine)
        weights = {user: len(LISTS[user]) if the_plan.weighting == "examples" else 1 for user in trained}
        expected = sum(weights[user] * one.delta["item_embedding"] for user, one in trained.items())
        np.testing.assert_allclose(sums.delta["item_embedding"], expected, rtol=1e-4, atol=10 * atol)
        assert sums.loss == pytest.approx(sum(one.loss for one in trained.values()))
        for name in model.private_names():
            for user, one in trained.items():
                own = begun[name][user] if epochs else one.own[name]
                np.testing.assert_allclose(rows[name][user], own, rtol=1e-4, atol=atol, err_msg=f"{engine} {name}")
            np.testing.assert_array_equal(rows[name][2], first[name][2])  # who did nothing learned nothing


def test_a_round_fits_the_score_function_first_and_then_the_items_from_what_the_server_sent() -> None:
    """The paper's round, written out for one user in float64."""
    users = cohort_of(LISTS[:1])
    plan = replace(BASE, private_epochs=2)
    model = make(users)
    table = torch.from_numpy(shared_of(model)["item_embedding"]).double().requires_grad_()
    weight, bias = (t[0].detach().double().requires_grad_() for t in (model.score_weight, model.score_bias))

    def loss(purpose: str, epoch: int, shuffle: bool) -> Tensor:
        base = sampling.sampling_base(plan.seed, plan.server_round, purpose)
        samples, _ = sampling.draw_epoch(base, epoch, users.keys, users.train, users.train, NUM_ITEMS, 2, shuffle)
        logits = table[torch.from_numpy(samples)] @ weight + bias
        return (softplus(-logits[:, 0]).sum() + softplus(logits[:, 1:]).sum()) / logits.numel()

    for epoch in range(2):
        steps = torch.autograd.grad(loss("private", epoch, False), [weight, bias])
        weight, bias = (
            (t - 0.4 * step).detach().requires_grad_() for t, step in zip((weight, bias), steps, strict=True)
        )
    (step,) = torch.autograd.grad(loss("fit", 0, True), [table])
    rows = private_of(model)
    sums = fit_users(model, users, shared_of(model), rows, plan)
    np.testing.assert_allclose(rows["score_weight"][0], weight.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows["score_bias"][0], bias.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sums.delta["item_embedding"] / sums.weight, -0.3 * step.numpy(), rtol=1e-5, atol=1e-7)
