"""Item-item models against their formulas in float64, written down with whole matrices."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedrec_app import node_data
from fedrec_app.config import DataConfig
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.histories import Histories
from fedrec_app.models import item_item
from fedrec_app.models.base import bind, with_parameters
from fedrec_app.models.ease import Ease
from fedrec_app.models.item_item import ItemItem
from fedrec_app.models.itemknn import ItemKnn
from fedrec_app.models.popularity import Popularity
from fedrec_app.testing.model_case import catalog
from tests.unit.models.test_cooccurrence import drawn

ITEMS = 12
USERS = [list(dict.fromkeys(items)) for items in drawn(80, ITEMS, 5, seed=3)]
X = np.zeros((len(USERS), ITEMS))
for _user, _items in enumerate(USERS):
    X[_user, _items] = 1


def solved(model: ItemItem, *parts: list[list[int]], items: Catalog | None = None) -> ItemItem:
    """The model as it is after a round in which these nodes took part."""
    bind(model, items or catalog(), None, 0)
    sums = model.sums()
    for part in parts:
        sums.add(model.statistics(users(part)), len(part))
    return with_parameters(model, {n: torch.from_numpy(a) for n, a in sums.solve().items()})  # type: ignore[return-value]


def users(histories: list[list[int]], ordered: bool = True) -> Any:
    """What models look at of a cohort."""
    return SimpleNamespace(train=Histories.from_lists(histories), num_items=ITEMS, ordered=ordered)


def scores(model: ItemItem, histories: list[list[int]]) -> NDArray:
    state = model.encode(Histories.from_lists(histories), torch.arange(len(histories)))
    return model.score(state, torch.arange(model.num_items)).detach().numpy()


def ease_weights(x: NDArray, penalty: float) -> NDArray:
    """B as equation 8 of the paper has it: I - P diag(1 / diag P)."""
    inverse = np.linalg.inv(x.T @ x + penalty * np.eye(x.shape[1]))
    return np.eye(x.shape[1]) - inverse / np.diag(inverse)


def cosine_weights(x: NDArray, k: int, shrinkage: float = 0.0) -> NDArray:
    gram = x.T @ x
    norms = np.sqrt(np.diag(gram))
    similar = gram / (norms[:, None] * norms[None, :] + shrinkage)
    np.fill_diagonal(similar, 0.0)
    for column in similar.T:
        column[np.argsort(-column, kind="stable")[k:]] = 0
    return similar


@pytest.mark.parametrize("penalty", [0.5, 20.0])
def test_ease_is_the_closed_form_of_the_paper(penalty: float) -> None:
    model = solved(Ease(1, Ease.Options(regularization=penalty)), USERS[:1], USERS[1:50], [], USERS[50:])
    np.testing.assert_allclose(scores(model, USERS), X @ ease_weights(X, penalty), atol=1e-5)


@pytest.mark.parametrize("shrinkage", [0.0, 7.0])
def test_itemknn_is_the_cosine_of_the_nearest(shrinkage: float) -> None:
    for k in (1, 4, ITEMS):
        model = solved(ItemKnn(1, ItemKnn.Options(neighbors=k, shrinkage=shrinkage)), USERS[:30], USERS[30:])
        expected = X @ cosine_weights(X, k, shrinkage)
        close = np.isclose(scores(model, USERS), expected, atol=1e-5)
        assert close.mean() > (0.9 if k < ITEMS else 0.999)  # between equal similarities either may be kept


def test_with_few_weights_an_item_keeps_its_largest_ones() -> None:
    full = ease_weights(X, 5.0)
    for column in full.T:
        column[np.argsort(-np.abs(column))[4:]] = 0
    model = solved(Ease(1, Ease.Options(regularization=5.0, neighbors=4)), USERS)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        "weights": (ITEMS, 4),
        "neighbors": (ITEMS, 4),
    }
    np.testing.assert_allclose(scores(model, USERS), X @ full, atol=1e-5)
    state = model.encode(Histories.from_lists(USERS), torch.arange(len(USERS)))
    np.testing.assert_allclose(model._by_torch(state["history"]).numpy(), X @ full, atol=1e-5)
    some = model.score(state, torch.tensor([7, 2])).numpy()
    np.testing.assert_array_equal(some, scores(model, USERS)[:, [7, 2]])


def test_a_large_catalog_keeps_some_weights_of_each_item_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_item, "WHOLE", ITEMS - 1)
    monkeypatch.setattr(item_item, "AT_LEAST", 3)
    model = bind(Ease(1, Ease.Options()), catalog(), None, 0)
    assert isinstance(model, Ease)
    assert model.weights.shape == (ITEMS, 3)
    assert model.sums().remarks() == ["of each item the 3 largest weights are kept (neighbors)"]


def test_the_most_popular_items_alone_have_weights_where_there_are_too_many() -> None:
    popularity = X.sum(0)
    kept = np.sort(np.argsort(-popularity, kind="stable")[:5])
    model = Ease(1, Ease.Options(regularization=5.0, max_items=5))
    found = solved(model, USERS)
    expected = np.zeros((ITEMS, ITEMS))
    expected[np.ix_(kept, kept)] = ease_weights(X[:, kept], 5.0)
    np.testing.assert_allclose(scores(found, USERS), X @ expected, atol=1e-5)
    sums = model.sums()
    sums.add(model.statistics(users(USERS)), 80)
    assert sums.remarks() == [f"the 5 most popular of {ITEMS} items that somebody met have weights (max_items)"]


def test_an_item_that_nobody_met_and_nobody_at_all_score_zero() -> None:
    without = [[item for item in items if item != 4] for items in USERS]
    model = solved(Ease(1, Ease.Options()), without)
    assert not scores(model, USERS)[:, 4].any()
    assert np.isfinite(scores(model, [[4], []])).all()
    for cls in (Ease, ItemKnn):
        assert not scores(solved(cls(1, cls.Options())), USERS).any()


def test_what_was_met_last_weighs_most_where_the_data_has_time() -> None:
    """The histories [5, 2] and [5, 2, 5]: weights 1/2, 1 and, of item 5, 1 for the last time; r = 1."""
    model = solved(Ease(1, Ease.Options(recency=1.0)), USERS)
    state = model.encode(Histories.from_lists([[5, 2], [5, 2, 5]]), torch.arange(2))
    expected = np.zeros((2, ITEMS))
    expected[0, [5, 2]] = [1 / 2, 1]
    expected[1, [5, 2]] = [1, 1 / 2]
    np.testing.assert_allclose(state["history"].numpy(), expected)
    model.bind(catalog(), users([[1]], ordered=False))
    state = model.encode(Histories.from_lists([[5, 2]]), torch.arange(1))
    assert state["history"][0, [5, 2]].tolist() == [1, 1]


def test_popularity_counts_users_and_refuses_what_is_no_count() -> None:
    model = Popularity(1, Popularity.Options())
    bind(model, catalog(), None, 0)
    sums = model.sums()
    for part in ([[0, 0, 3]], [[3], [1]]):
        sums.add(model.statistics(users(part)), len(part))
    for wrong in (np.zeros(ITEMS), np.full(ITEMS, -1), np.full(ITEMS, 4), np.zeros(3, np.int64)):
        with pytest.raises(ValueError, match="counts"):
            sums.add({"counts": wrong}, 3)
    assert sums.solve()["popularity"].tolist() == [1, 1, 0, 2, *[0] * 8]


def test_on_ml_100k_eight_nodes_give_the_central_closed_form(ml_100k: Path) -> None:
    data = DataConfig(name="ml-100k", path=str(ml_100k))
    everybody, items = node_data.cohort(data, None, 1), node_data.catalog(data)
    model = Ease(1, Ease.Options(regularization=100.0))
    bind(model, items, None, 0)
    sums = model.sums()
    for node in range(8):
        cohort = node_data.cohort(data, node, 8)
        sums.add(model.statistics(cohort), len(cohort))
    x = everybody.train.matrix(len(items)).astype(np.float64)
    expected = ease_weights(x[:, x.any(0)], 100.0)
    found = sums.solve()["weights"][np.ix_(x.any(0), x.any(0))].T
    np.testing.assert_allclose(found, expected, atol=1e-6)
