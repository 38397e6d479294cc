"""What strategies change on the nodes, in every engine that can do it, against one torch model a user."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedrec_app.client_part import ClientPart, Units
from fedrec_app.data.cohort import Cohort
from fedrec_app.models.base import Recommender
from fedrec_app.training import batches, node, sampling
from fedrec_app.training.job import Job
from fedrec_app.training.node import fit_node
from fedrec_app.training.plan import FitPlan, FitSums
from fedrec_app.training.users import Engine, engines, fit_users, load_shared
from strategies.fednova import STEPS as WEIGHTED_STEPS
from strategies.fednova import FedNovaPart
from strategies.qfedavg import CURVATURE, QFedAvg, QFedAvgPart
from strategies.scaffold import ScaffoldPart
from tests.unit.training.oracle import (
    Trained,
    make,
    private_of,
    shared_of,
    small_cohort,
    train_one_user,
    train_pooled,
)

BASE = FitPlan(seed=5, server_round=2, learning_rate=0.3, private_learning_rate=0.4, num_negatives=2)
PLANS = {
    "one step": BASE,
    "full batches": replace(BASE, local_epochs=3),
    "mini-batches": replace(BASE, local_epochs=2, batch_size=3),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mf": ("mf", {"loss": "bce"}),
    "mf all items": ("mf", {"loss": "all-items"}),
    "neumf": ("neumf", {"layers": (4,)}),
}
COHORT = small_cohort()
EVERYBODY = np.arange(len(COHORT))
LENGTHS = COHORT.train.lengths
TABLE = make("neumf", COHORT, layers=(4,)).row_names()[0]


class Halve(ClientPart):
    """Half of every gradient of shared parameters."""

    def gradient(self, name: str, grad: torch.Tensor, param: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        return grad / 2


class Pull(ClientPart):
    """The proximal term of FedProx."""

    def gradient(self, name: str, grad: torch.Tensor, param: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        return grad + 0.5 * (param - start)


class TableOnly(ClientPart):
    """Moves the item table and nothing else."""

    def gradient(self, name: str, grad: torch.Tensor, param: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        return grad if name == TABLE else torch.zeros_like(grad)


def steps_of(plan: FitPlan) -> NDArray[np.int64]:
    return plan.local_epochs * (-(-LENGTHS // plan.batch_size) if plan.batch_size else np.ones_like(LENGTHS))


def start_of(case: str) -> Recommender:
    """A model whose private rows are those that training starts from."""
    name, options = MODELS[case]
    model = make(name, COHORT, **options)
    if model.solves_private:
        with torch.no_grad():
            solved = model.solve_private(COHORT.train, serving=False)["user_embedding"]
        model.user_embedding.data.copy_(solved)  # type: ignore[union-attr,operator]
    return model


def trained_users(case: str, plan: FitPlan) -> list[Trained]:
    model = start_of(case)
    still = replace(plan, private_learning_rate=0.0) if model.solves_private else plan
    return [train_one_user(model, COHORT, user, still) for user in range(len(COHORT))]


def first_losses(case: str) -> NDArray[np.float64]:
    """Each user's mean loss over the samples of the first epoch, before anything has moved."""
    model = start_of(case).double()
    base = sampling.sampling_base(BASE.seed, BASE.server_round, "fit")
    samples, full = sampling.draw_epoch(
        base, 0, COHORT.keys, COHORT.train, COHORT.never_negative, COHORT.num_items, BASE.num_negatives
    )
    losses = []
    for user in EVERYBODY:
        rows = samples[None, COHORT.train.indptr[user] : COHORT.train.indptr[user + 1]]
        batch = batches.make(np.array([user]), rows, np.ones(rows.shape[:2], np.float32), full[[user]], np.ones(1))
        batch = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
        losses.append(model.loss(batch).sum().item())
    return np.array(losses)


def squared_norm(trained: Trained) -> float:
    return sum(float((delta**2).sum()) for delta in trained.delta.values())


def fitted(case: str, plan: FitPlan, engine: Engine | None = None) -> FitSums:
    name, options = MODELS[case]
    model = make(name, COHORT, **options)
    return fit_users(model, COHORT, shared_of(model), private_of(model), plan, engine)


def able(case: str, plan: FitPlan) -> list[Engine | None]:
    """The engines that can do this fit of everybody: the rest say that they cannot."""
    found: list[Engine | None] = [None]
    for engine in get_args(Engine):
        try:
            fitted(case, plan, engine)
        except ValueError:
            continue
        found.append(engine)
    return found


def assert_deltas(sums: FitSums, users: list[Trained], factors: NDArray, message: object) -> None:
    for name, found in sums.delta.items():
        expected = sum(factor * user.delta[name] for factor, user in zip(factors, users, strict=True))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5, err_msg=f"{message} {name}")


@pytest.mark.parametrize("weighting", ["examples", "users"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", MODELS)
def test_fednova_divides_deltas_by_steps_and_counts_weighted_steps(case: str, plan: str, weighting: str) -> None:
    the_plan = replace(PLANS[plan], weighting=weighting, part=FedNovaPart(None, {}, {}))
    users, steps = trained_users(case, the_plan), steps_of(the_plan)
    if plan == "mini-batches":
        assert len(set(steps)) > 2
    weights = LENGTHS if weighting == "examples" else np.ones(len(COHORT))
    ways = able(case, the_plan)
    assert ways == ([None, "fused", "several-steps"] if case == "mf" else [None, "several-steps"])
    for engine in ways:
        sums = fitted(case, the_plan, engine)
        assert_deltas(sums, users, weights / steps, engine)
        assert sums.scalars == {WEIGHTED_STEPS: pytest.approx((weights * steps).sum(), rel=1e-12)}
        assert sums.weight == weights.sum()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", MODELS)
def test_qfedavg_weighs_deltas_by_the_loss_at_the_start(case: str, plan: str) -> None:
    part = QFedAvgPart(QFedAvg({"q": 1.5}).options, {}, {})
    the_plan = replace(PLANS[plan], weighting="examples", part=part)
    users, losses = trained_users(case, the_plan), first_losses(case)
    factors = LENGTHS * losses**1.5
    bends = 1.5 / the_plan.learning_rate * losses**0.5 * np.array([squared_norm(user) for user in users])
    assert able(case, the_plan) == [None, "several-steps"]
    sums = fitted(case, the_plan)
    assert_deltas(sums, users, factors, "")
    assert sums.scalars == {CURVATURE: pytest.approx((factors + LENGTHS * bends).sum(), rel=1e-4)}
    assert sums.weight == LENGTHS.sum()


def test_a_part_that_weighs_cannot_have_clipped_deltas() -> None:
    part = QFedAvgPart(QFedAvg({"q": 1.5}).options, {}, {})
    with pytest.raises(ValueError, match="QFedAvgPart would weigh him by more than 1"):
        fitted("mf", replace(BASE, weighting="users", part=part, clip_norm=0.1))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", MODELS)
def test_gradients_of_shared_parameters_follow_the_part(case: str, plan: str) -> None:
    weights = LENGTHS.astype(np.float64)
    for part, same in (
        (Halve, {"learning_rate": BASE.learning_rate / 2}),
        (Pull, {"proximal_mu": 0.5}),
    ):
        the_plan = replace(PLANS[plan], part=part(None, {}, {}))
        assert able(case, the_plan) == [None, "several-steps"]
        users = trained_users(case, replace(PLANS[plan], **same))  # type: ignore[arg-type]
        assert_deltas(fitted(case, the_plan), users, weights, part.__name__)


def test_a_part_is_asked_about_each_shared_parameter_by_its_name() -> None:
    sums = fitted("neumf", replace(PLANS["mini-batches"], part=TableOnly(None, {}, {})))
    assert {name for name, delta in sums.delta.items() if delta.any()} == {TABLE}


def chosen(case: str, plan: FitPlan) -> list[str]:
    name, options = MODELS[case]
    model = make(name, COHORT, **options)
    sums = FitSums.zeros(shared_of(model), [])
    job = Job(model, COHORT, load_shared(model, shared_of(model)), private_of(model), plan, sums)
    return [engine for engine, users in engines(job, EVERYBODY) if len(users)]


@pytest.mark.parametrize(
    ("part", "fastest"),
    [(FedNovaPart, "fused"), (Halve, "several-steps"), (QFedAvgPart, "several-steps"), (ScaffoldPart, "several-steps")],
)
def test_compiled_loops_take_parts_that_weigh_and_one_step_takes_none(part: type[ClientPart], fastest: str) -> None:
    plan = replace(BASE, part=part(None, {}, {}))
    assert chosen("mf", BASE) == ["fused"]
    assert chosen("mf", plan) == [fastest]
    assert chosen("neumf", BASE) == ["one-step"]
    assert chosen("neumf", plan) == chosen("mf all items", plan) == ["several-steps"]


@pytest.mark.parametrize("engine", ["fused", "one-step"])
def test_an_engine_that_cannot_follow_a_part_says_so(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"no kernel|more than one plain step"):
        fitted("mf", replace(BASE, part=Halve(None, {}, {})), engine)


@pytest.mark.parametrize("engine", ["fused", "several-steps"])
def test_a_part_that_adds_up_other_sums_than_it_declares_is_refused(engine: Engine) -> None:
    class Undeclared(FedNovaPart):
        scalars = ("something-else",)

    with pytest.raises(ValueError, match=r"Undeclared.weigh gives \['weighted-steps'\], it declares"):
        fitted("mf", replace(BASE, part=Undeclared(None, {}, {})), engine)


def pooled(case: str, plan: FitPlan, cohort: Cohort = COHORT) -> FitSums:
    name, options = MODELS[case]
    model = make(name, cohort, **options)
    return fit_node(model, cohort, shared_of(model), private_of(model), replace(plan, unit="node"), 3)


def pooled_oracle(case: str, plan: FitPlan) -> dict[str, NDArray]:
    model = start_of(case)
    still = replace(plan, private_learning_rate=0.0) if model.solves_private else plan
    return train_pooled(model, COHORT, still, 3)[0]


@pytest.mark.parametrize("case", MODELS)
def test_a_pooled_node_follows_parts_too(case: str) -> None:
    plan = replace(BASE, local_epochs=2, batch_size=5)
    steps = 2 * -(-int(LENGTHS.sum()) // 5)
    total = float(LENGTHS.sum())
    fednova = pooled(case, replace(plan, part=FedNovaPart(None, {}, {})))
    halved = pooled(case, replace(plan, part=Halve(None, {}, {})))
    plain, half = pooled_oracle(case, plan), pooled_oracle(case, replace(plan, learning_rate=0.15))
    assert fednova.scalars == {WEIGHTED_STEPS: total * steps}
    assert (fednova.weight, halved.weight) == (total, total)
    for name, delta in plain.items():
        np.testing.assert_allclose(fednova.delta[name], total / steps * delta, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(halved.delta[name], total * half[name], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", MODELS)
def test_a_pooled_node_judges_itself_by_its_loss_at_the_start(case: str) -> None:
    """The loss of a node is the mean over its positives: of user losses, weighted by their positives."""
    plan = replace(BASE, local_epochs=2, batch_size=5, part=QFedAvgPart(QFedAvg({"q": 2}).options, {}, {}))
    sums, delta = pooled(case, plan), pooled_oracle(case, plan)
    loss = float(LENGTHS @ first_losses(case)) / float(LENGTHS.sum())
    if case == "mf all items":  # there a unit is one positive, and its loss is over that alone
        loss = start_loss_by_positive()
    weight = float(LENGTHS.sum())
    square = sum(float((d**2).sum()) for d in delta.values())
    for name, array in delta.items():
        np.testing.assert_allclose(sums.delta[name], weight * loss**2 * array, rtol=1e-4, atol=1e-3)
    assert sums.scalars == {CURVATURE: pytest.approx(weight * (loss**2 + 2 / 0.3 * loss * square), rel=1e-4)}


def start_loss_by_positive() -> float:
    model = start_of("mf all items").double()
    total = 0.0
    for batch, members in node._mini_batches(model, COHORT, EVERYBODY, replace(BASE, batch_size=1), 0, 3):
        doubled = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
        users = torch.from_numpy(members)[batch["user"]]
        total += model.loss({**doubled, "user": users}).sum().item()
    return total / float(LENGTHS.sum())


@pytest.mark.parametrize("unit", ["user", "node"])
def test_without_users_a_part_has_nothing_to_say(unit: str) -> None:
    nobody = small_cohort(num_users=0)
    model = make("mf", nobody, loss="bce")
    plan = replace(BASE, part=FedNovaPart(None, {}, {}))
    if unit == "user":
        sums = fit_users(model, nobody, shared_of(model), private_of(model), plan)
    else:
        sums = fit_node(model, nobody, shared_of(model), private_of(model), plan, 0)
    assert (sums.weight, sum(sums.scalars.values()), sums.controls) == (0.0, 0.0, {})


def test_units_without_judgement_have_no_losses() -> None:
    seen: list[Units] = []

    class Look(ClientPart):
        def weigh(self, units: Units) -> tuple[NDArray, dict[str, NDArray]]:
            seen.append(units)
            return super().weigh(units)

    plan = replace(BASE, part=Look(None, {}, {}))
    fitted("mf", plan)
    fitted("neumf", plan)
    pooled("mf", plan)
    assert len(seen) == 3
    assert all(units.losses is None and units.squared_norms is None for units in seen)
    assert [units.learning_rate for units in seen] == [0.3] * 3


def test_a_strong_pull_holds_one_user_where_the_formula_says() -> None:
    """The all-items loss of a user with embedding p and n items is quadratic in each item's row v: for an item that he
    has, 1/(2n) [(1 - p.v)^2 + l |v|^2 + a (p.v)^2 + a l |v|^2], for others 1/(2n) [a (p.v)^2 + a l |v|^2]. With FedProx
    the minimum is (H + mu)^-1 (b + mu v_0), where H = ((1 + a) or a) (p p' + l) / n and b = p / n or 0."""
    cohort = small_cohort(num_users=1)
    model = make("mf", cohort, loss="all-items")
    options: Any = model.options
    a, l2, table = options.unobserved_weight, options.regularization, shared_of(model)["item_embedding"].astype(float)
    with torch.no_grad():
        solved: Any = model.solve_private(cohort.train, serving=False)["user_embedding"]
    p, mine = solved[0].double().numpy(), set(cohort.train[0].tolist())
    moved = {}
    for mu in (0.5, 50.0):
        plan = replace(BASE, local_epochs=400, learning_rate=0.5 / (mu + 1), proximal_mu=mu, weighting="users")
        delta = fit_users(model, cohort, shared_of(model), private_of(model), plan).delta["item_embedding"]
        for item, start in enumerate(table):
            weight = (item in mine) + a
            hessian = weight * (np.outer(p, p) + l2 * np.eye(len(p))) / len(mine) + mu * np.eye(len(p))
            best = np.linalg.solve(hessian, (item in mine) * p / len(mine) + mu * start)
            np.testing.assert_allclose(delta[item], best - start, rtol=1e-3, atol=1e-5)
        moved[mu] = np.linalg.norm(delta)
    assert moved[50.0] < 0.05 * moved[0.5]
