"""The built-in models against what their papers say, worked out by hand in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedrec_app.config import RunConfig
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.errors import ConfigError
from fedrec_app.models.base import Batch, Recommender, initial_private, initialise, with_parameters
from fedrec_app.models.mf import MatrixFactorization
from fedrec_app.models.neumf import NeuMF
from fedrec_app.node_data import unbound_model
from fedrec_app.training.batches import make as make_batch
from fedrec_app.training.batches import whole_users

NUM_ITEMS, DIM = 11, 3
HISTORIES = [[4, 0, 7, 2, 9], [1], [10, 5, 3], [6, 8]]
NAMES = {
    "mf": ({"item_embedding"}, {"user_embedding"}),
    "mf bce": ({"item_embedding"}, {"user_embedding"}),
    "neumf": (
        {"item_gmf", "item_mlp", "item_bias", "output.weight", "output.bias"}
        | {f"mlp.{layer}.{kind}" for layer in range(2) for kind in ("weight", "bias")},
        {"user_gmf", "user_mlp"},
    ),
}


def cohort(users: Sequence[int] = range(4), ordered: bool = True) -> Cohort:
    train = Histories.from_lists([HISTORIES[user] for user in users])
    nothing = Histories.from_lists([[]] * len(train))
    return Cohort(tuple(f"user {user}" for user in users), NUM_ITEMS, train, nothing, nothing, train, ordered)


def unbound(case: str) -> Recommender:
    if case == "neumf":
        return NeuMF(DIM, NeuMF.Options(layers=(5, 2)))
    return MatrixFactorization(DIM, MatrixFactorization.Options(loss="bce" if case == "mf bce" else "all-items"))


def bound(case: str, users: Cohort | None) -> Recommender:
    return initialise(unbound(case), Catalog.of_ids(f"{item:02d}" for item in range(NUM_ITEMS)), users, seed=3)


def grown(case: str, users: Cohort) -> Recommender:
    """Returns the model in float64 with every parameter, biases included, of size one: nothing may hide in zeros."""
    model = bound(case, users).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def drawn_samples(users: Cohort, num_negatives: int) -> NDArray[np.int64]:
    """Returns (num_rows, 1 + num_negatives) positives with items that their users have not."""
    generator = np.random.default_rng(5)
    never = [sorted(set(range(NUM_ITEMS)) - set(users.train[user].tolist())) for user in range(len(users))]
    owners = users.train.rows()
    negatives = [generator.choice(never[owner], num_negatives) for owner in owners]
    return np.column_stack([users.train.items, np.array(negatives).reshape(len(owners), num_negatives)])


def batch_of(users: Cohort, num_negatives: int = 2) -> Batch:
    samples = drawn_samples(users, num_negatives)
    return in_float64(whole_users(samples, users.train, np.zeros(len(users), dtype=bool)))


def unit_of(user: int, samples: NDArray[np.int64], share: float) -> Batch:
    """Returns the batch of one unit that holds this share of a user's positives."""
    ones, allowed = np.ones((1, len(samples)), dtype=np.float32), np.zeros(1, dtype=bool)
    return in_float64(make_batch(np.array([user]), samples[None], ones, allowed, np.array([share])))


def in_float64(batch: Batch) -> Batch:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


def array(model: Recommender, name: str) -> NDArray[np.float64]:
    return model.get_parameter(name).detach().double().numpy()


@pytest.mark.parametrize("case", NAMES)
def test_shared_and_private_parameters_are_disjoint_and_complete(case: str) -> None:
    model = bound(case, cohort())
    shared, private = model.shared_names(), model.private_names()
    assert (set(shared), set(private)) == NAMES[case]
    assert sorted([*shared, *private]) == sorted(name for name, _ in model.named_parameters())
    assert set(model.row_names()) <= set(shared)
    for name in private:
        assert len(model.get_parameter(name)) == 4
    for name in model.row_names():
        assert len(model.get_parameter(name)) == NUM_ITEMS


@pytest.mark.parametrize("case", NAMES)
def test_losses_states_and_scores_have_a_row_for_each_unit_or_user(case: str) -> None:
    model, users = bound(case, cohort()), cohort()
    loss = model.loss(batch_of(users))
    assert loss.shape == (4,)
    assert torch.isfinite(loss).all()
    chosen = torch.tensor([2, 0])
    state = model.encode(users.train.select(chosen.numpy()), chosen)
    assert {len(value) for value in state.values()} == {2}
    assert model.score(state, torch.arange(NUM_ITEMS)).shape == (2, NUM_ITEMS)


@pytest.mark.parametrize("case", NAMES)
def test_the_score_of_an_item_and_a_user_does_not_depend_on_what_else_is_scored(case: str) -> None:
    users = cohort()
    model = grown(case, users)
    everything = model.score(model.encode(users.train, torch.arange(4)), torch.arange(NUM_ITEMS))
    items = torch.tensor([9, 1, 1, 4])
    one = model.score(model.encode(users.train.select(np.array([2])), torch.tensor([2])), items)
    torch.testing.assert_close(one, everything[2:3, items], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", NAMES)
def test_the_loss_of_a_user_does_not_depend_on_the_others_in_the_batch_or_on_padding(case: str) -> None:
    users = cohort()
    model = grown(case, users)
    together = model.loss(batch_of(users))
    samples = drawn_samples(users, 2)
    for user in range(4):
        mine = samples[users.train.indptr[user] : users.train.indptr[user + 1]]
        torch.testing.assert_close(model.loss(unit_of(user, mine, 1.0))[0], together[user], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", NAMES)
def test_initial_private_rows_do_not_depend_on_company_and_shared_ones_not_on_the_node(case: str) -> None:
    everyone, two, server = bound(case, cohort()), bound(case, cohort([3, 1])), bound(case, None)
    for name in everyone.private_names():
        np.testing.assert_array_equal(array(everyone, name)[[3, 1]], array(two, name))
        assert len(np.unique(array(everyone, name))) == array(everyone, name).size
        assert server.get_parameter(name).shape == (0, DIM)
    for name in everyone.shared_names():
        np.testing.assert_array_equal(array(everyone, name), array(two, name))
        np.testing.assert_array_equal(array(everyone, name), array(server, name))
    keys = cohort().keys
    for name, rows in initial_private(everyone, keys, seed=3).items():
        assert not np.array_equal(rows, initial_private(everyone, keys, seed=4)[name])


@pytest.mark.parametrize("case", NAMES)
def test_new_private_rows_have_the_spread_that_the_options_name(case: str) -> None:
    model = bound(case, cohort())
    for rows in initial_private(model, np.arange(2000, dtype=np.uint64), seed=0).values():
        assert rows.mean() == pytest.approx(0.0, abs=0.05 * model.options.init_std)
        assert rows.std() == pytest.approx(model.options.init_std, rel=0.05)


def test_new_private_rows_are_the_same_numbers_in_every_version() -> None:
    rows = initial_private(bound("neumf", cohort()), np.array([1, 2**63], dtype=np.uint64), seed=0)
    np.testing.assert_allclose(rows["user_gmf"][0], [-0.02460319, 0.27158529, 0.07518705], rtol=1e-6)
    np.testing.assert_allclose(rows["user_mlp"][1], [0.1196178, 0.02976023, 0.06800321], rtol=1e-6)


@pytest.mark.parametrize("case", NAMES)
def test_a_copy_with_other_parameters_computes_with_them_and_leaves_the_model_alone(case: str) -> None:
    users = cohort()
    model, other = grown(case, users), bound(case, users).double()
    before = {name: parameter.detach().clone() for name, parameter in other.named_parameters()}
    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    twin = with_parameters(other, values)
    torch.testing.assert_close(twin.loss(batch_of(users)), model.loss(batch_of(users)), rtol=0, atol=0)
    assert twin.shared_names() == model.shared_names()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.add_(1.0)
            torch.testing.assert_close(values[name], model.get_parameter(name) + 1.0, rtol=0, atol=0)
            torch.testing.assert_close(other.get_parameter(name), before[name], rtol=0, atol=0)


class Tied(Recommender):
    """One layer and one parameter under two names each, a buffer, and something else."""

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        self.one = self.two = torch.nn.Linear(2, 2)
        self.table = torch.nn.Parameter(torch.ones(2, 2))
        self.one.weight = self.table
        self.register_buffer("seen", torch.zeros(2))
        self.register_parameter("absent", None)
        self.note = ["shared"]


def test_what_a_model_has_under_two_names_stays_one_thing_in_a_copy() -> None:
    model = Tied(2, None)
    model.bind(Catalog.of_ids(["a"]), None)
    twin = with_parameters(model, {name: p.detach() + 1 for name, p in model.named_parameters()})
    assert isinstance(twin, Tied)
    assert twin.one is twin.two
    assert twin.one is not model.one
    assert twin.one.weight is twin.table
    assert twin.absent is None
    torch.testing.assert_close(twin.one(torch.ones(2)), torch.full((2,), 4.0) + model.one.bias + 1)
    twin.seen += 1
    assert model.seen.tolist() == [0, 0]
    assert twin.note is model.note
    twin.eval()
    assert model.training


class Coupled(MatrixFactorization):
    """A model whose users are trained together."""

    couples_users = True


def test_a_model_that_couples_users_is_refused_where_each_trains_alone() -> None:
    asked = {"model.name": "tests.unit.models.test_models:Coupled", "train.unit": "user"}
    settings = RunConfig.from_flat(asked).resolve(Coupled.recipe)
    with pytest.raises(ConfigError, match=r'it needs train\.unit = "node", not "user"'):
        unbound_model(settings)
    pooled = settings.model_copy(update={"train": settings.train.model_copy(update={"unit": "node"})})
    assert isinstance(unbound_model(pooled), Coupled)


def test_the_all_items_loss_is_the_sum_over_every_item() -> None:
    """Rendle et al., RecSys 2022, eq. 3 and 5 with nu = 1, item by item."""
    users = cohort()
    model = grown("mf", users)
    rows, table = array(model, "user_embedding"), array(model, "item_embedding")
    a, l2 = model.options.unobserved_weight, model.options.regularization
    losses = model.loss(batch_of(users, num_negatives=0)).detach().numpy()
    for user, history in enumerate(HISTORIES):
        total = 0.0
        for item in range(NUM_ITEMS):
            score = float(rows[user] @ table[item])
            norms = float(table[item] @ table[item] + rows[user] @ rows[user])
            if item in history:
                total += (1 - score) ** 2 + l2 * norms
            total += a * score**2 + l2 * a * norms
        assert losses[user] == pytest.approx(0.5 * total / len(history), rel=1e-10)


def test_the_all_items_loss_ignores_sampled_negatives() -> None:
    users = cohort()
    model = grown("mf", users)
    torch.testing.assert_close(model.loss(batch_of(users, 0)), model.loss(batch_of(users, 4)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", NAMES)
def test_units_that_share_a_user_add_up_to_his_loss(case: str) -> None:
    """Weighted by their positives: what a node that pools its users takes apart into mini-batches."""
    users = cohort()
    model = grown(case, users)
    samples = drawn_samples(users, 2)
    whole = model.loss(batch_of(users))
    for user, history in enumerate(HISTORIES):
        mine = samples[users.train.indptr[user] : users.train.indptr[user + 1]]
        total = torch.zeros((), dtype=torch.float64)
        for part in (mine[:1], mine[1:3], mine[3:]):
            if len(part):
                total = total + model.loss(unit_of(user, part, len(part) / len(mine)))[0] * len(part)
        assert total.item() == pytest.approx(whole[user].item() * len(history), rel=1e-6)  # share is float32


def test_solved_rows_minimise_the_all_items_loss() -> None:
    users = cohort()
    model = grown("mf", users)
    with torch.no_grad():
        model.user_embedding.copy_(model.solve_private(users.train, serving=False)["user_embedding"])
    counts = torch.from_numpy(users.train.lengths)
    objective = (model.loss(batch_of(users, 0)) * counts).sum()
    (gradient,) = torch.autograd.grad(objective, model.user_embedding)
    smallest = objective.item()
    assert float(gradient.abs().max()) < 1e-6  # the ridge is float32
    for step in 1e-3 * torch.eye(DIM, dtype=torch.float64):
        for sign in (1, -1):
            with torch.no_grad():
                model.user_embedding.add_(sign * step)
                assert (model.loss(batch_of(users, 0)) * counts).sum().item() > smallest
                model.user_embedding.sub_(sign * step)


@pytest.mark.parametrize("ordered", [True, False])
def test_rows_that_serve_solve_the_normal_equations_with_recent_items_first(ordered: bool) -> None:
    users = cohort(ordered=ordered)
    model = grown("mf", users)
    table = array(model, "item_embedding")
    a, l2 = model.options.unobserved_weight, model.options.regularization
    solved = model.solve_private(users.train, serving=True)["user_embedding"].numpy()
    for user, history in enumerate(HISTORIES):
        left, right, weights = a * table.T @ table, np.zeros(DIM), 0.0
        for back, item in enumerate(reversed(history)):
            weight = 1 / (1 + back) if ordered else 1.0
            left = left + weight * np.outer(table[item], table[item])
            right = right + weight * table[item]
            weights += weight
        left = left + l2 * (weights + a * NUM_ITEMS) * np.eye(DIM)
        np.testing.assert_allclose(left @ solved[user], right, rtol=0, atol=1e-6)  # the weights are float32
    training = model.solve_private(users.train, serving=False)["user_embedding"].numpy()
    assert np.allclose(training, solved, rtol=0, atol=1e-9) == (not ordered)


def test_a_user_without_a_history_is_solved_to_zero_and_alone_as_in_company() -> None:
    model = grown("mf", cohort())
    together = model.solve_private(Histories.from_lists([[], *HISTORIES]), serving=True)["user_embedding"]
    np.testing.assert_array_equal(together[0].numpy(), np.zeros(DIM))
    alone = model.solve_private(Histories.from_lists([HISTORIES[1]]), serving=True)["user_embedding"]
    torch.testing.assert_close(alone[0], together[2], rtol=1e-12, atol=1e-12)
    nobody = model.solve_private(Histories.from_lists([]), serving=False)["user_embedding"]
    assert nobody.shape == (0, DIM)


def neumf_logit(model: Recommender, user: int, item: int) -> float:
    """He et al., WWW 2017, eq. 8 to 12: one user, one item."""
    product = array(model, "user_gmf")[user] * array(model, "item_gmf")[item]
    hidden = np.concatenate([array(model, "user_mlp")[user], array(model, "item_mlp")[item]])
    for layer in range(2):
        hidden = np.maximum(array(model, f"mlp.{layer}.weight") @ hidden + array(model, f"mlp.{layer}.bias"), 0.0)
    joined = np.concatenate([product, hidden])
    bias = array(model, "output.bias")[0] + array(model, "item_bias")[item]
    return float(array(model, "output.weight")[0] @ joined + bias)


def test_neumf_scores_as_the_paper_says() -> None:
    users = cohort()
    model = grown("neumf", users)
    scores = model.score(model.encode(users.train, torch.arange(4)), torch.arange(NUM_ITEMS)).detach().numpy()
    expected = [[neumf_logit(model, user, item) for item in range(NUM_ITEMS)] for user in range(4)]
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["mf bce", "neumf"])
def test_the_pointwise_loss_is_the_mean_cross_entropy_of_a_users_samples(case: str) -> None:
    users = cohort()
    model = grown(case, users)
    losses = model.loss(batch_of(users, num_negatives=2)).detach().numpy()
    samples = drawn_samples(users, 2)
    rows, table = (array(model, n) for n in ("user_embedding", "item_embedding")) if case == "mf bce" else (None, None)
    for user, history in enumerate(HISTORIES):
        total = 0.0
        for row in samples[users.train.indptr[user] : users.train.indptr[user + 1]]:
            for place, item in enumerate(row):
                logit = neumf_logit(model, user, item) if rows is None else float(rows[user] @ table[item])
                total += math.log1p(math.exp(-logit)) if place == 0 else math.log1p(math.exp(logit))
        assert losses[user] == pytest.approx(total / (3 * len(history)), rel=1e-10)
