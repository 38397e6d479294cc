from __future__ import annotations

import numpy as np
import pytest
import torch

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories, recency_weights
from fedrec_app.models.base import initialise
from fedrec_app.models.mf import MatrixFactorization, _ridge_rows
from fedrec_app.models.ridge import ridge_rows

UNOBSERVED, REGULARIZATION = 0.1, 0.02


@pytest.mark.parametrize("recency", [0.0, 1.0])
@pytest.mark.parametrize("d", [1, 3, 32])
def test_the_compiled_and_the_batched_regression_equal_numpy_a_user(d: int, recency: float) -> None:
    generator = np.random.default_rng(d)
    table = generator.normal(0, 0.3, (60, d)).astype(np.float32)
    histories = Histories.from_lists([generator.permutation(60)[:n] for n in (1, 2, 3, 4, 5, 17, 60)])
    longest = 60
    back = recency_weights(np.array([longest]), longest, recency)[0, ::-1]
    compiled = ridge_rows(table, histories, back, UNOBSERVED, REGULARIZATION)
    weights = recency_weights(histories.lengths, longest, recency)
    items = np.zeros(weights.shape, dtype=np.int64)
    items[weights > 0] = histories.items
    batched = _ridge_rows(
        torch.from_numpy(table), torch.from_numpy(items), torch.from_numpy(weights).float(), UNOBSERVED, REGULARIZATION
    )
    for user in range(len(histories)):
        mine, all_items = table[histories[user]].astype(np.float64), table.astype(np.float64)
        weight = (1.0 + np.arange(len(mine))[::-1]) ** -recency
        gram = (weight[:, None] * mine).T @ mine + UNOBSERVED * all_items.T @ all_items
        gram += REGULARIZATION * (weight.sum() + UNOBSERVED * 60) * np.eye(d)
        expected = np.linalg.solve(gram, weight @ mine)
        np.testing.assert_allclose(compiled[user], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(batched[user].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_threads_do_not_change_a_bit() -> None:
    generator = np.random.default_rng(0)
    table = generator.normal(0, 0.3, (60, 8)).astype(np.float32)
    histories = Histories.from_lists([generator.permutation(60)[: 1 + i % 9] for i in range(50)])
    back = np.ones(9)
    alone = ridge_rows(table, histories, back, UNOBSERVED, REGULARIZATION)
    torch.set_num_threads(3)
    try:
        np.testing.assert_array_equal(ridge_rows(table, histories, back, UNOBSERVED, REGULARIZATION), alone)
    finally:
        torch.set_num_threads(1)


def test_without_regularisation_rows_are_finite_though_items_are_fewer_than_dimensions() -> None:
    histories, nothing = Histories.from_lists([[1, 2], np.arange(10)]), Histories.from_lists([[], []])
    cohort = Cohort(("a", "b"), 10, histories, nothing, nothing, histories)
    model = MatrixFactorization(32, MatrixFactorization.Options(init_std=0.3, regularization=0))
    initialise(model, Catalog.of_ids(f"{item}" for item in range(10)), cohort, seed=0)
    rows = model.solve_private(histories, serving=False)["user_embedding"]
    # A user with every item is told to score 1 / (1 + a) everywhere.
    scores = (model.item_embedding @ rows[1]).detach().numpy()
    np.testing.assert_allclose(scores, 1 / (1 + model.options.unobserved_weight), rtol=1e-2)
