"""Every engine clips each user's delta as Opacus does, over all shared arrays together; nobody moves a sum by more."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Recommender, initialise
from fedrec_app.models.mf import MatrixFactorization
from fedrec_app.models.neumf import NeuMF
from fedrec_app.models.pfedrec import PFedRec
from fedrec_app.models.sasrec import SasRec
from fedrec_app.privacy.clipping import Clipped, clip_and_sum
from fedrec_app.training import clipped_sums, sequences, users
from fedrec_app.training.plan import Arrays, FitPlan, FitSums
from fedrec_app.training.sampling import sampling_base
from fedrec_app.training.users import Engine, fit_users
from tests.unit.training.oracle import catalog, private_of, shared_of, train_one_user

NUM_ITEMS = 14
POISON = 8
"""Length of the history of the user whose loss is NaN, where a model has no private row to spoil."""
LISTS: list[Any] = [
    [3, 1, 4, 1, 5, 9, 2], [7], [2, 8, 12], [6, 6, 6, 0], [], range(12, 1, -1), [0, 4, 8], [5, 10, 9, 8, 7, 1, 2, 3]
]  # fmt: skip
ACTIVE = [0, 1, 2, 3, 5, 6, 7]
HEAVY, ABSENT, ODD = 5, 4, 7
MODELS: dict[str, Callable[[], Recommender]] = {
    "mf": lambda: MatrixFactorization(4, MatrixFactorization.Options(init_std=0.5)),
    "mf bce": lambda: MatrixFactorization(4, MatrixFactorization.Options(loss="bce", init_std=0.5)),
    "neumf": lambda: NeuMF(4, NeuMF.Options(layers=(6, 3), init_std=0.4)),
    "pfedrec": lambda: PFedRec(4, PFedRec.Options(hidden=3, init_std=0.5)),
    "sasrec": lambda: SasRec(8, SasRec.Options(max_length=4, heads=2, layers=1, crop=0.5)),
    "sasrec sampled": lambda: SasRec(8, SasRec.Options(max_length=4, heads=2, layers=1, negatives=3, crop=0.5)),
}
ONE = FitPlan(seed=5, server_round=2, weighting="users", learning_rate=0.4, private_learning_rate=0.3, num_negatives=2)
MANY = replace(ONE, local_epochs=2, batch_size=3)
CASES: list[tuple[str, Engine, FitPlan]] = [
    ("mf", "fused", ONE),
    ("mf", "one-step", ONE),
    ("mf", "several-steps", MANY),
    ("mf bce", "fused", ONE),
    ("mf bce", "fused", MANY),
    ("mf bce", "one-step", ONE),
    ("mf bce", "several-steps", MANY),
    ("neumf", "one-step", ONE),
    ("neumf", "several-steps", ONE),
    ("neumf", "several-steps", MANY),
    ("pfedrec", "one-step", ONE),
    ("pfedrec", "several-steps", MANY),
    ("sasrec", "one-step", ONE),
    ("sasrec", "several-steps", MANY),
    ("sasrec sampled", "one-step", ONE),
    ("sasrec sampled", "several-steps", MANY),
]
every_case = pytest.mark.parametrize(
    ("name", "engine", "plan"), CASES, ids=[f"{n}, {e}, {p.local_epochs}" for n, e, p in CASES]
)


def cohort_of(chosen: list[int]) -> Cohort:
    train, nothing = Histories.from_lists([LISTS[u] for u in chosen]), Histories.from_lists([[]] * len(chosen))
    return Cohort(tuple(f"u{u}" for u in chosen), NUM_ITEMS, train, nothing, nothing, train)


def made(name: str, cohort: Cohort) -> Recommender:
    """Returns the model with every shared parameter moved, so that no gradient is next to nothing."""
    model = initialise(MODELS[name](), catalog(NUM_ITEMS), cohort, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for shared in model.shared_names():
            parameter = model.get_parameter(shared)
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def fitted(
    name: str, chosen: list[int], plan: FitPlan, engine: Engine | None, spoil: Callable[[Arrays], None] | None = None
) -> tuple[FitSums, Arrays]:
    """Returns the sums over these users, and their private rows after it; `spoil` may change those before it."""
    cohort = cohort_of(chosen)
    model = made(name, cohort)
    rows = private_of(model)
    if spoil is not None:
        spoil(rows)
    return fit_users(model, cohort, shared_of(model), rows, plan, engine), rows


def autograd_deltas(name: str, plan: FitPlan) -> list[Arrays]:
    """Returns what one torch model a user learns, by autograd in float64, without clipping."""
    cohort = cohort_of(list(range(len(LISTS))))
    model = made(name, cohort)
    if model.sampling != "sequence":
        if model.solves_private:
            with torch.no_grad():
                model.user_embedding.copy_(model.solve_private(cohort.train, serving=False)["user_embedding"])
            plan = replace(plan, private_learning_rate=0.0)
        return [train_one_user(model, cohort, user, plan).delta for user in ACTIVE]
    deltas, base = [], sampling_base(plan.seed, plan.server_round, "fit")
    for user in ACTIVE:
        mine, alone = copy.deepcopy(model).double(), np.array([user])
        optimizer = torch.optim.SGD(mine.parameters(), lr=plan.learning_rate)
        for epoch in range(plan.local_epochs):
            batch = sequences.make(base, epoch, cohort.keys[alone], cohort.train.select(alone), mine)
            optimizer.zero_grad()
            mine.loss({n: t.double() if t.is_floating_point() else t for n, t in batch.items()}).sum().backward()
            optimizer.step()
        before = shared_of(model)
        deltas.append({n: after - before[n] for n, after in shared_of(mine).items()})
    return deltas


def by_opacus(deltas: list[Arrays], clip_norm: float) -> Arrays:
    """Returns the sum of clipped deltas by Opacus' optimiser, handed the negative deltas as gradients of samples."""
    stacks = {name: torch.from_numpy(np.stack([delta[name] for delta in deltas])) for name in deltas[0]}
    parameters = [nn.Parameter(torch.zeros_like(stack[0])) for stack in stacks.values()]
    optimizer = DPOptimizer(
        torch.optim.SGD(parameters), noise_multiplier=0.0, max_grad_norm=clip_norm, expected_batch_size=None,
        loss_reduction="sum",
    )  # fmt: skip
    for parameter, stack in zip(parameters, stacks.values(), strict=True):
        parameter.grad_sample = -stack
    optimizer.clip_and_accumulate()
    return {name: -parameter.summed_grad.numpy() for name, parameter in zip(stacks, parameters, strict=True)}


def norm(arrays: Arrays) -> float:
    return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays.values())))


def difference(some: FitSums, others: FitSums) -> float:
    return norm({name: delta - others.delta[name] for name, delta in some.delta.items()})


def assert_alike(found: Arrays, expected: Arrays, tolerance: float = 1e-5) -> None:
    assert sorted(found) == sorted(expected)
    off = norm({name: delta - expected[name] for name, delta in found.items()})
    assert off <= tolerance * norm(expected), f"off by {off / norm(expected):.2g}"


@every_case
def test_sums_equal_opacus_on_the_deltas_of_models_of_their_own(name: str, engine: Engine, plan: FitPlan) -> None:
    deltas = autograd_deltas(name, plan)
    norms = sorted(norm(delta) for delta in deltas)
    assert (norms[0] == 0) == name.startswith("sasrec")  # there a single item predicts nothing
    assert norms[-1] > 1.2 * norms[1]
    for clip_norm in (norms[1] * 1.01, norms[3] * 1.01, norms[1] / 50):
        sums, _ = fitted(name, list(range(8)), replace(plan, clip_norm=clip_norm), engine)
        assert_alike(sums.delta, by_opacus(deltas, clip_norm))
        assert sums.centred_unclipped == sum(each <= clip_norm for each in norms) - 0.5 * len(norms)
        assert (sums.weight, sums.num_users, sums.num_not_finite) == (7, 7, 0)


@every_case
def test_a_bound_that_nobody_reaches_changes_nothing(name: str, engine: Engine, plan: FitPlan) -> None:
    free, free_rows = fitted(name, list(range(8)), plan, engine)
    clipped, rows = fitted(name, list(range(8)), replace(plan, clip_norm=1e6), engine)
    assert_alike(clipped.delta, free.delta, 1e-6)
    assert clipped.loss == pytest.approx(free.loss, rel=1e-6)
    assert (clipped.centred_unclipped, free.centred_unclipped) == (3.5, 0)
    tight, tight_rows = fitted(name, list(range(8)), replace(plan, clip_norm=1e-3), engine)
    assert norm(tight.delta) <= 7e-3
    for private, values in free_rows.items():
        np.testing.assert_allclose(rows[private], values, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(tight_rows[private], values, rtol=1e-6, atol=1e-7)


def not_a_number(name: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Arrays], None]:
    """Returns what spoils the private rows of the last user; where there are none, his loss or his solution is NaN."""
    if name == "mf":
        solve = MatrixFactorization.solve_private

        def solved(self: MatrixFactorization, histories: Histories, serving: bool) -> dict[str, Tensor]:
            values = solve(self, histories, serving)
            values["user_embedding"][torch.from_numpy(histories.lengths == POISON)] = torch.nan
            return values

        monkeypatch.setattr(MatrixFactorization, "solve_private", solved)
    if name.startswith("sasrec"):
        loss = SasRec.loss
        monkeypatch.setattr(
            SasRec, "loss", lambda self, batch: loss(self, batch) * torch.where(batch["examples"] == POISON, np.nan, 1)
        )

    def spoil(rows: Arrays) -> None:
        for values in rows.values():
            values[-1] = np.nan

    return spoil


@every_case
def test_a_user_whose_delta_is_not_finite_leaves_no_trace(
    name: str, engine: Engine, plan: FitPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil = not_a_number(name, monkeypatch)
    plan = replace(plan, clip_norm=0.05, weighting="rows")
    with np.errstate(invalid="ignore"):
        sums, rows = fitted(name, [*range(8)], plan, engine, spoil)
    others, other_rows = fitted(name, [*range(7)], plan, engine)
    assert_alike(sums.delta, others.delta, 1e-6)
    for item_table, count in others.count.items():
        np.testing.assert_array_equal(sums.count[item_table], count)
    assert (sums.weight, sums.num_users, sums.num_examples) == (6, 6, others.num_examples)
    assert sums.loss == pytest.approx(others.loss, rel=1e-6)
    assert (sums.num_not_finite, others.num_not_finite) == (1, 0)
    assert sums.centred_unclipped == others.centred_unclipped - 0.5
    begun = private_of(made(name, cohort_of([*range(8)])))
    spoil(begun)
    for private, values in rows.items():
        np.testing.assert_array_equal(values[-1], begun[private][-1])
        np.testing.assert_allclose(values[:-1], other_rows[private], rtol=1e-6, atol=1e-7)


def test_rows_that_were_fitted_before_are_put_back_too() -> None:
    plan = replace(ONE, private_epochs=2, private_learning_rate=1e30, clip_norm=0.1)
    sums, rows = fitted("pfedrec", [0, 5], replace(plan, learning_rate=1e30), None)
    assert sums.num_not_finite == 2
    assert not any(delta.any() for delta in sums.delta.values())
    for name, values in private_of(made("pfedrec", cohort_of([0, 5]))).items():
        np.testing.assert_array_equal(rows[name], values)


@pytest.mark.parametrize("name", ["mf", "mf bce", "neumf"])
def test_parameters_that_are_not_finite_give_zeros(name: str) -> None:
    cohort = cohort_of([0, 5])
    model = made(name, cohort)
    shared = shared_of(model)
    shared["item_gmf" if name == "neumf" else "item_embedding"][:] = np.nan
    with np.errstate(invalid="ignore"):
        sums = fit_users(model, cohort, shared, private_of(model), replace(ONE, clip_norm=0.1))
    assert (sums.num_not_finite, sums.num_users, sums.loss) == (2, 0, 0.0)
    assert not any(delta.any() for delta in sums.delta.values())


def scaled(by: float) -> Callable[[Arrays], None]:
    def spoil(rows: Arrays) -> None:
        for values in rows.values():
            values[-1] *= by

    return spoil


def check_sensitivity(name: str, engine: Engine, plan: FitPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asserts that no user who is added moves the node's sum by more than the bound."""
    bound = plan.clip_norm * (1 + 1e-5)
    others = [0, 1, 2, 3, 6]
    without, _ = fitted(name, others, plan, engine)
    assert norm(without.delta) > 1.5 * bound  # there is something that could be moved
    moved = {"heavy": (HEAVY, None), "absent": (ABSENT, None), "zero": (ODD, scaled(0.0)), "huge": (ODD, scaled(1e6))}
    for who, (user, spoil) in moved.items():
        added, _ = fitted(name, [*others, user], plan, engine, spoil)
        assert difference(added, without) <= bound, who
        assert abs(added.centred_unclipped - without.centred_unclipped) <= 0.5, who
    far = replace(plan, learning_rate=1e4 * plan.learning_rate)
    huge = [fitted(name, chosen, far, engine)[0] for chosen in (others, [*others, HEAVY])]
    if plan.local_epochs == 1:
        assert difference(huge[1], huge[0]) == pytest.approx(plan.clip_norm, rel=1e-4)
    assert difference(huge[1], huge[0]) <= bound
    with np.errstate(invalid="ignore"):
        spoiled, _ = fitted(name, [*others, ODD], plan, engine, not_a_number(name, monkeypatch))
    assert difference(spoiled, without) <= bound


@every_case
def test_no_user_moves_a_sum_by_more_than_the_bound(
    name: str, engine: Engine, plan: FitPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_sensitivity(name, engine, replace(plan, clip_norm=0.02), monkeypatch)


def unclipped(deltas: dict[str, Tensor], clip_norm: float) -> Clipped:
    return replace(clip_and_sum(deltas, clip_norm), sums={n: d.nan_to_num().sum(0) for n, d in deltas.items()})


def each_array_alone(deltas: dict[str, Tensor], clip_norm: float) -> Clipped:
    alone = {n: clip_and_sum({n: d}, clip_norm).sums[n] for n, d in deltas.items()}
    return replace(clip_and_sum(deltas, clip_norm), sums=alone)


def not_a_number_passes(deltas: dict[str, Tensor], clip_norm: float) -> Clipped:
    norms = torch.stack([d.flatten(1).norm(dim=1) for d in deltas.values()]).norm(dim=0)
    factors = torch.tensor([min(1.0, clip_norm / (each + 1e-6)) for each in norms.tolist()])
    sums = {n: torch.einsum("u,u...", factors, d) for n, d in deltas.items()}
    return replace(clip_and_sum(deltas, clip_norm), sums=sums)


@pytest.mark.parametrize("fault", [unclipped, each_array_alone, not_a_number_passes])
@pytest.mark.parametrize(("engine", "plan"), [("one-step", ONE), ("several-steps", MANY)])
def test_clipping_that_is_wrong_is_found(
    fault: Any, engine: Engine, plan: FitPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clipped_sums, "clip_and_sum", fault)
    with pytest.raises(AssertionError):
        check_sensitivity("neumf", engine, replace(plan, clip_norm=0.02), monkeypatch)


@pytest.mark.parametrize("name", ["mf", "mf bce"])
def test_weights_by_examples_would_be_found_and_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(ONE, clip_norm=0.02, weighting="examples")
    with pytest.raises(ValueError, match="would weigh him by more than 1"):
        fitted(name, [0, 1], plan, "fused")
    monkeypatch.setattr(users, "_refuse_weights", lambda plan: None)
    with pytest.raises(AssertionError):
        check_sensitivity(name, "fused", plan, monkeypatch)


@pytest.mark.parametrize(("name", "engine", "plan"), [("neumf", "one-step", ONE), ("neumf", "several-steps", MANY)])
def test_memory_for_one_user_at_a_time_gives_the_same_sums(
    name: str, engine: Engine, plan: FitPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(plan, clip_norm=0.02, weighting="rows")
    together, rows = fitted(name, [*range(8)], plan, engine)
    monkeypatch.setattr(clipped_sums, "CPU_FLOATS", 1)
    alone, rows_alone = fitted(name, [*range(8)], plan, engine)
    assert_alike(alone.delta, together.delta, 1e-6)
    for item_table, count in together.count.items():
        np.testing.assert_array_equal(alone.count[item_table], count)
    for private, values in rows.items():
        np.testing.assert_allclose(rows_alone[private], values, rtol=1e-6, atol=1e-7)


def test_a_block_of_users_never_holds_more_numbers_than_it_may() -> None:
    from fedrec_app.training.job import Job

    cohort = cohort_of([*range(8)])
    model = made("neumf", cohort)
    job = Job(model, cohort, {n: model.get_parameter(n) for n in model.shared_names()}, {}, ONE, FitSums({}))
    fixed, row = job.sizes
    assert (fixed, row) == (8 * 6 + 6 + 6 * 3 + 3 + 7 + 1, 9)
    for num_met in (1, 3, NUM_ITEMS):
        size = clipped_sums.users_at_a_time(job, num_met)
        held = [n * (fixed + row * min(NUM_ITEMS, n * num_met)) for n in (size, size + 1)]
        assert held[0] <= clipped_sums.CPU_FLOATS < held[1]


def test_deltas_are_shortened_to_the_bound_and_what_is_not_finite_is_left_out() -> None:
    deltas = {
        "table": torch.tensor([[[3.0, 0.0]], [[0.0, 0.0]], [[np.nan, 0.0]], [[0.6, 0.0]], [[1e15, 0.0]]]),
        "bias": torch.tensor([4.0, 0.0, 1.0, 0.8, np.inf]),
    }
    clipped = clip_and_sum(deltas, 2.5)
    assert clipped.finite.tolist() == [True, True, False, True, False]
    assert clipped.num_unclipped == 2
    torch.testing.assert_close(clipped.sums["table"], torch.tensor([[1.5 + 0.6, 0.0]]), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(clipped.sums["bias"], torch.tensor(2.0 + 0.8), rtol=1e-6, atol=0.0)
    nobody = clip_and_sum({name: delta[4:] for name, delta in deltas.items()}, 2.5)
    assert (nobody.num_unclipped, float(nobody.sums["bias"]), nobody.sums["table"].tolist()) == (0, 0.0, [[0.0, 0.0]])
