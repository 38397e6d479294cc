"""Low-rank adapters against the plain models that they stand around."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedrec_app import node_data
from fedrec_app.config import RunConfig
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.errors import ConfigError
from fedrec_app.models import adapted
from fedrec_app.models.adapted import Adapted, Base
from fedrec_app.models.base import Recommender, initialise, model_hash, with_parameters
from fedrec_app.models.mf import MatrixFactorization
from fedrec_app.models.neumf import NeuMF
from fedrec_app.models.sasrec import SasRec
from fedrec_app.training.node import fit_node
from fedrec_app.training.plan import Arrays, FitPlan
from fedrec_app.training.private_rows import with_optimizer_state
from fedrec_app.training.users import fit_users
from tests.unit.training.oracle import private_of, shared_of, small_cohort, train_one_user

NUM_ITEMS, DIM = 30, 8
CASES = ("mf", "mf bce", "neumf", "sasrec")
ONE_STEP = FitPlan(seed=5, server_round=2, learning_rate=0.3, num_negatives=2)


@pytest.fixture(autouse=True)
def _small_matrices_are_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapted, "SMALLEST", 100)


def plain(case: str, users: Cohort | None) -> Recommender:
    models: dict[str, Recommender] = {
        "mf": MatrixFactorization(DIM, MatrixFactorization.Options(init_std=0.3)),
        "mf bce": MatrixFactorization(DIM, MatrixFactorization.Options(init_std=0.3, loss="bce")),
        "neumf": NeuMF(DIM, NeuMF.Options(init_std=0.3, layers=(10, 4))),
        "sasrec": SasRec(DIM, SasRec.Options(layers=1, heads=2, max_length=5, dropout=0.0, crop=0.0)),
    }
    return initialise(models[case], Catalog.of_ids(f"{i:04d}" for i in range(NUM_ITEMS)), users, seed=1)


def around(case: str, users: Cohort | None, rank: int) -> Adapted:
    return Adapted(plain(case, users), Base.of(plain(case, None), rank, seed=4))


def full_rank(case: str, users: Cohort | None) -> Adapted:
    """Returns adapters whose fixed factors are square, which `Base.of` would leave out: they save nothing."""
    base = Base.of(plain(case, None), 3, seed=4)
    directions = {n: adapted._directions(w.shape, min(w.shape), 4, n) for n, w in base.start.items()}
    return Adapted(plain(case, users), Base(base.start, directions))


def trained(model: Recommender, users: Cohort, plan: FitPlan) -> Arrays:
    """Returns the shared parameters after one round over the users of one node, of equal weight."""
    shared = shared_of(model)
    sums = fit_users(model, users, shared, private_of(model), replace(plan, weighting="users"))
    return {name: (value + sums.delta[name] / sums.weight).astype(np.float32) for name, value in shared.items()}


def randomised(model: Adapted) -> Adapted:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in model.shared_names():
            value = model.get_parameter(name)
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return model


def scores(model: Recommender, users: Cohort) -> np.ndarray:
    with torch.no_grad():
        state = model.encode(users.train, torch.arange(len(users)))
        return model.score(state, torch.arange(NUM_ITEMS)).numpy()


@pytest.mark.parametrize("case", CASES)
def test_before_training_an_adapted_model_is_the_plain_one(case: str) -> None:
    users = small_cohort()
    before, after = plain(case, users), around(case, users, 3)
    np.testing.assert_array_equal(scores(after, users), scores(before, users))
    merged = after.merged(shared_of(after))
    assert list(merged) == before.shared_names()
    for name, array in shared_of(before).items():
        np.testing.assert_array_equal(merged[name], array)
    assert after.plain_hash == model_hash(before) != model_hash(after)
    assert after.private_names() == before.private_names()
    if before.solves_private:
        solved = before.solve_private(users.train, serving=True)["user_embedding"]
        assert torch.equal(after.solve_private(users.train, serving=True)["user_embedding"], solved)


@pytest.mark.parametrize("case", CASES)
def test_what_scores_is_what_is_written(case: str) -> None:
    users = small_cohort()
    model, written = randomised(around(case, users, 3)), plain(case, users)
    merged = model.merged(shared_of(model))
    with torch.no_grad():
        for name, array in merged.items():
            written.get_parameter(name).copy_(torch.from_numpy(array))
    assert np.abs(scores(model, users) - scores(plain(case, users), users)).max() > 0.01
    np.testing.assert_array_equal(scores(model, users), scores(written, users))


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_step_is_the_plain_one_projected_onto_the_directions(case: str) -> None:
    users = small_cohort()
    before, model = plain(case, users), around(case, users, 3)
    start, moved = shared_of(before), trained(before, users, ONE_STEP)
    found = model.merged(trained(model, users, ONE_STEP))
    for name, array in moved.items():
        step = array.astype(np.float64) - start[name]
        if name in model.base.start:
            fixed = model.base.directions[name].astype(np.float64)
            rank = np.linalg.matrix_rank(fixed)
            assert rank == 3
            step = step @ fixed.T @ fixed if fixed.shape[0] == 3 else fixed @ fixed.T @ step
        np.testing.assert_allclose(found[name] - start[name], step, rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_adapters_of_full_rank_take_the_plain_step(case: str) -> None:
    users = small_cohort()
    moved, model = trained(plain(case, users), users, ONE_STEP), full_rank(case, users)
    found = model.merged(trained(model, users, ONE_STEP))
    for name, array in moved.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("case", ["mf bce", "neumf"])
def test_the_vectorised_engine_trains_factors_as_one_torch_model_a_user_does(case: str) -> None:
    users = small_cohort()
    plan = replace(
        ONE_STEP, optimizer="adam", learning_rate=0.01, private_learning_rate=0.01, local_epochs=2, batch_size=3
    )
    model = randomised(around(case, users, 3))
    shared = shared_of(model)
    sums = fit_users(
        model, users, shared, with_optimizer_state(private_of(model), "adam"), replace(plan, weighting="users")
    )
    alone = [train_one_user(randomised(around(case, users, 3)), users, user, plan) for user in range(len(users))]
    for name, total in sums.delta.items():
        np.testing.assert_allclose(total, sum(one.delta[name] for one in alone), rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("case", ["sasrec", "mf bce"])
def test_engines_agree_on_factors(case: str) -> None:
    users = small_cohort()
    plan = replace(ONE_STEP, weighting="users", num_negatives=0 if case == "sasrec" else 2)
    deltas = []
    for engine in ("one-step", "several-steps"):
        model = randomised(around(case, users, 3))
        deltas.append(fit_users(model, users, shared_of(model), private_of(model), plan, engine).delta)
    for name, delta in deltas[0].items():
        np.testing.assert_allclose(deltas[1][name], delta, rtol=0, atol=1e-5, err_msg=name)


def test_a_pooled_node_trains_factors_and_nothing_else() -> None:
    users = small_cohort()
    model = around("sasrec", users, 3)
    plan = replace(ONE_STEP, unit="node", optimizer="adamw", learning_rate=0.01, weight_decay=0.1, num_negatives=0)
    sums = fit_node(model, users, shared_of(model), {}, plan, partition_id=0)
    assert list(sums.delta) == model.shared_names()
    assert all(np.abs(sums.delta[name]).max() > 0 for name in sums.delta)
    for name, array in shared_of(plain("sasrec", None)).items():
        if name in model.base.start:
            np.testing.assert_array_equal(model.base.start[name], array)


def test_large_matrices_have_factors_of_their_longer_side_and_small_parameters_train_whole() -> None:
    model = around("sasrec", None, 3)
    shapes = {name: tuple(model.get_parameter(name).shape) for name in model.shared_names()}
    assert shapes["item_embedding.factor"] == (NUM_ITEMS, 3)
    assert shapes["blocks.0.expand.weight.factor"] == (4 * DIM, 3)
    assert shapes["blocks.0.contract.weight.factor"] == (3, 4 * DIM)
    assert shapes["blocks.0.query.weight"] == (DIM, DIM)  # 64 numbers are fewer than SMALLEST
    assert shapes["norm.bias"] == (DIM,)
    assert model.row_names() == ["item_embedding.factor"]
    assert model.factorization is None
    bce = around("mf bce", None, 3)
    assert bce.factorization is None
    assert bce.whole_catalog
    assert not plain("mf bce", None).whole_catalog


def test_directions_are_orthonormal_and_follow_the_seed_and_the_name() -> None:
    one, again = (Base.of(plain("neumf", None), 3, seed=4) for _ in range(2))
    assert one.digest == again.digest != Base.of(plain("neumf", None), 3, seed=5).digest
    for name, fixed in one.directions.items():
        wide = fixed if fixed.shape[0] == 3 else fixed.T
        np.testing.assert_allclose(wide @ wide.T, np.eye(3), atol=1e-6, err_msg=name)
    assert np.abs(one.directions["item_gmf"] - one.directions["item_mlp"]).max() > 0.1


def test_the_digest_follows_every_number_and_name() -> None:
    base = Base.of(plain("mf", None), 3, seed=4)
    digests = {base.digest}
    for part in ("start", "directions"):
        arrays = {name: array.copy() for name, array in getattr(base, part).items()}
        arrays["item_embedding"][-1, -1] += 1e-6
        digests.add(Base(**{"start": base.start, "directions": base.directions, part: arrays}).digest)
    digests.add(Base({"other": base.start["item_embedding"]}, {"other": base.directions["item_embedding"]}).digest)
    assert len(digests) == 4


def test_a_rank_that_saves_nothing_is_refused_with_the_largest_that_does() -> None:
    with pytest.raises(ConfigError, match=r"adapter-rank is 8: no shared matrix of model 'mf' .* allowed is 0 to 7"):
        Base.of(plain("mf", None), DIM, seed=0)
    Base.of(plain("mf", None), DIM - 1, seed=0)


def test_copies_of_an_adapted_model_share_no_module() -> None:
    users = small_cohort()
    skeleton = around("neumf", users, 3)
    values = {name: value.detach().clone() for name, value in skeleton.named_parameters()}
    one, other = (with_parameters(skeleton, values) for _ in range(2))
    assert not {id(module) for module in one.modules()} & {id(module) for module in other.modules()}
    with one._filled() as plain_model:
        np.testing.assert_array_equal(scores(other, users), scores(skeleton, users))
        assert torch.equal(plain_model._parameters["item_bias"], values["item_bias"])


@pytest.mark.parametrize(("key", "value"), [("train.adapter-rank", 2), ("model.init-from", "model.safetensors")])
def test_a_model_that_is_solved_has_nothing_to_adapt_and_nowhere_to_start(key: str, value: Any) -> None:
    config = RunConfig.from_flat({"model.name": "ease", "model.embedding-dim": 1, key: value})
    with pytest.raises(ConfigError, match=rf"model 'ease' is solved in closed form.*set {key} = "):
        node_data.unbound_model(config)
