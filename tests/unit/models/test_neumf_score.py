from __future__ import annotations

import pytest
import torch

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models import neumf
from fedrec_app.models.base import initialise
from fedrec_app.models.neumf import NeuMF

NUM_USERS, NUM_ITEMS = 9, 37


def bound(layers: tuple[int, ...]) -> NeuMF:
    nothing = Histories.from_lists([[]] * NUM_USERS)
    cohort = Cohort(tuple(f"u{u}" for u in range(NUM_USERS)), NUM_ITEMS, nothing, nothing, nothing, nothing)
    catalog = Catalog.of_ids(f"{item:02d}" for item in range(NUM_ITEMS))
    model = initialise(NeuMF(4, NeuMF.Options(layers=layers)), catalog, cohort, seed=1)
    assert isinstance(model, NeuMF)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return model


@pytest.mark.parametrize("cached", [1, 8, 30, 200, 3000, 10**6])
@pytest.mark.parametrize("layers", [(8,), (6, 3), (3, 8, 2)])
def test_scores_are_the_logits_of_the_loss_for_tiles_of_any_size(monkeypatch, layers, cached):
    monkeypatch.setattr(neumf, "CACHED", cached)
    model = bound(layers)
    items = torch.tensor([5, 0, 36, 5, 17, *range(20)])
    for users in (torch.arange(NUM_USERS), torch.tensor([7]), torch.zeros(0, dtype=torch.int64)):
        state = model.encode(Histories.from_lists([[]] * len(users)), users)
        logits = model._logits(state["gmf"], state["mlp"], items.expand(len(users), -1))
        torch.testing.assert_close(model.score(state, items), logits, rtol=1e-12, atol=1e-12)
    assert model.score(state, torch.zeros(0, dtype=torch.int64)).shape == (0, 0)


def test_scores_have_the_gradients_of_the_logits(monkeypatch):
    monkeypatch.setattr(neumf, "CACHED", 64)
    model, items, users = bound((6, 3)), torch.arange(NUM_ITEMS), torch.arange(NUM_USERS)
    state = model.encode(Histories.from_lists([[]] * NUM_USERS), users)
    weights = torch.linspace(-1, 1, NUM_USERS * NUM_ITEMS, dtype=torch.float64).view(NUM_USERS, NUM_ITEMS)
    names, parameters = zip(*model.named_parameters(), strict=True)
    logits = model._logits(state["gmf"], state["mlp"], items.expand(NUM_USERS, -1))
    expected = torch.autograd.grad((weights * logits).sum(), parameters, retain_graph=True)
    found = torch.autograd.grad((weights * model.score(state, items)).sum(), parameters)
    for name, ours, theirs in zip(names, found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=name)
