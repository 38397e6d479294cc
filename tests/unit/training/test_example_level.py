"""DP-SGD inside a node: gradients of single examples against plain autograd and Opacus, and the promises of privacy,
each of which a planted bug breaks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from scipy.stats import chi2, chisquare

from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.errors import ConfigError
from fedrec_app.models import adapted
from fedrec_app.models.adapted import Adapted, Base
from fedrec_app.models.base import Batch, Recommender, initialise
from fedrec_app.models.ease import Ease
from fedrec_app.models.mf import MatrixFactorization
from fedrec_app.models.neumf import NeuMF
from fedrec_app.models.pfedrec import PFedRec
from fedrec_app.models.sasrec import SasRec
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.node_accountant import NodeAccountant
from fedrec_app.privacy.sampling import poisson
from fedrec_app.training import example_level, optimizers, sampling
from fedrec_app.training.example_level import clipped_sum, example_level_problem, fit_examples, with_negatives
from fedrec_app.training.job import Job
from fedrec_app.training.plan import Arrays, FitPlan, FitSums
from fedrec_app.training.private_rows import with_optimizer_state
from fedrec_app.training.users import load_shared
from strategies.fednova import FedNova
from tests.unit.training.oracle import catalog, private_of, shared_of, small_cohort

PLAN = FitPlan(
    seed=5, server_round=2, unit="node", learning_rate=0.3, private_learning_rate=0.4, num_negatives=2,
    weighting="users",
)  # fmt: skip
BUILD: dict[str, Callable[[], Recommender]] = {
    "mf": lambda: MatrixFactorization(4, MatrixFactorization.Options(init_std=0.3, loss="bce")),
    "neumf": lambda: NeuMF(4, NeuMF.Options(init_std=0.3, layers=(6, 3))),
    "pfedrec": lambda: PFedRec(4, PFedRec.Options(init_std=0.3)),
    "pfedrec, hidden": lambda: PFedRec(4, PFedRec.Options(init_std=0.3, hidden=3)),
    "sasrec": lambda: SasRec(8, SasRec.Options(layers=1, max_length=5, dropout=0.3)),
    "sasrec, sampled": lambda: SasRec(8, SasRec.Options(layers=1, max_length=5, dropout=0.3, negatives=4)),
    "sasrec, masked": lambda: SasRec(8, SasRec.Options(layers=1, max_length=5, objective="masked", mask=0.3)),
    "mf, adapted": lambda: MatrixFactorization(8, MatrixFactorization.Options(init_std=0.3, loss="bce")),
    "sasrec, adapted": lambda: SasRec(8, SasRec.Options(layers=1, max_length=5, dropout=0.3)),
}


@pytest.fixture(autouse=True)
def _small_matrices_are_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapted, "SMALLEST", 100)


def bound(case: str, cohort: Cohort) -> Recommender:
    model = initialise(BUILD[case](), catalog(cohort.num_items), cohort, seed=1)
    if case.endswith("adapted"):
        plain = initialise(BUILD[case](), catalog(cohort.num_items), None, seed=1)
        model = Adapted(model, Base.of(plain, 3, seed=4))
    return model


def job_of(model: Recommender, cohort: Cohort, plan: FitPlan = PLAN) -> tuple[Job, dict[str, torch.Tensor]]:
    """Returns a fit, and every parameter."""
    shared = load_shared(model, shared_of(model))
    own = {name: torch.from_numpy(rows) for name, rows in private_of(model).items()}
    return Job(model, cohort, shared, {}, plan, FitSums.zeros(shared_of(model), [])), {**shared, **own}


def fit(
    model: Recommender, cohort: Cohort, folder: Path, release: Gaussian, clip_norm: float = 1.0, plan: FitPlan = PLAN
) -> tuple[Arrays, Arrays, FitSums]:
    """Returns how far shared parameters and private rows moved, and the sums."""
    rows = with_optimizer_state(private_of(model), plan.optimizer)
    before = {name: array.copy() for name, array in rows.items()}
    accountant = NodeAccountant(folder, "line", 0)
    sums = fit_examples(model, cohort, shared_of(model), rows, plan, release, clip_norm, accountant)
    moved = {name: rows[name] - before[name] for name in model.private_names()}
    return {name: delta / sums.weight for name, delta in sums.delta.items()}, moved, sums


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, Batch]]:
    """Returns a list that fills with blocks of examples and their batches, of items as in the catalog."""
    drawn: list[tuple[np.ndarray, Batch]] = []
    real = example_level._draw

    def draw(job: Job, block: np.ndarray) -> tuple[Batch, Histories | None]:
        batch, met = real(job, block)
        plain = dict(batch)
        if met is not None:
            places = torch.from_numpy(met.padded())
            for name in {"items", "targets", "negatives"} & set(batch):
                plain[name] = places.gather(1, batch[name])
        drawn.append((block, plain))
        return batch, met

    monkeypatch.setattr(example_level, "_draw", draw)
    return drawn


def plain_gradients(
    model: Recommender, job: Job, drawn: list[tuple[np.ndarray, Batch]]
) -> tuple[list[str], list[torch.Tensor]]:
    """Returns names of parameters, and the gradients of each example with respect to all of them, by autograd."""
    names = [*model.shared_names(), *model.private_names()]
    each: list[list[torch.Tensor]] = []
    for block, batch in drawn:
        owners = example_level._owners(job, block)
        for at, owner in enumerate(owners):
            one = {name: tensor[at : at + 1] for name, tensor in batch.items()} | {"user": torch.tensor([owner])}
            values = [model.get_parameter(name) for name in names]
            grads = torch.autograd.grad(model.loss(one)[0], values, materialize_grads=True)
            each.append([grad.detach() for grad in grads])
    return names, [torch.stack(parts) for parts in zip(*each, strict=True)]


@pytest.mark.parametrize("case", BUILD)
def test_sums_equal_plain_autograd_of_each_example_clipped_by_opacus(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = small_cohort()
    model = bound(case, cohort)
    if case.endswith("adapted"):
        with torch.no_grad():
            for name in model.shared_names():
                model.get_parameter(name).add_(0.1)
    job, values = job_of(model, cohort)
    drawn = recorded(monkeypatch)
    monkeypatch.setattr(example_level, "CPU_FLOATS", 1000)  # several blocks
    num_examples = len(cohort) if model.sampling == "sequence" else len(cohort.train.items)
    found = clipped_sum(job, values, np.arange(num_examples), 0.2)
    assert len(drawn) > 1
    names, stacks = plain_gradients(model, job, drawn)
    norms = torch.stack([stack.flatten(1).norm(dim=1) for stack in stacks]).norm(dim=0)
    assert norms.min() < 0.2 < norms.max() or (norms > 0.2).all()
    parameters: list[Any] = [torch.nn.Parameter(torch.zeros(stack.shape[1:])) for stack in stacks]
    oracle = DPOptimizer(
        torch.optim.SGD(parameters), noise_multiplier=0, max_grad_norm=0.2, expected_batch_size=None,
        loss_reduction="sum",
    )  # fmt: skip
    for parameter, stack in zip(parameters, stacks, strict=True):
        parameter.grad_sample = stack
    oracle.clip_and_accumulate()
    for name, parameter in zip(names, parameters, strict=True):
        np.testing.assert_allclose(found[name], parameter.summed_grad, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", BUILD)
def test_every_model_takes_two_steps_and_tells_no_number(case: str, tmp_path: Path) -> None:
    cohort = small_cohort()
    model = bound(case, cohort)
    delta, moved, sums = fit(model, cohort, tmp_path, Gaussian(0.5, 0.5, 2), plan=replace(PLAN, optimizer="adamw"))
    assert set(delta) == set(model.shared_names())
    for name, array in {**delta, **moved}.items():
        assert np.isfinite(array).all(), name
        assert np.all(array != 0), name  # noise is everywhere
    assert (sums.weight, sums.num_users, sums.num_examples, sums.loss, sums.count) == (7.0, 0, 0, 0.0, {})
    assert NodeAccountant(tmp_path, "line", 0).releases() == [Gaussian(0.5, 0.5, 2)]


@pytest.mark.parametrize("case", ["neumf", "sasrec"])
def test_without_noise_a_whole_step_is_plain_gradient_descent_on_the_mean(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = small_cohort()
    model = bound(case, cohort)
    job, _ = job_of(model, cohort)
    drawn = recorded(monkeypatch)
    delta, moved, _ = fit(model, cohort, tmp_path, Gaussian(0.0, 1.0), clip_norm=1e6)
    names, stacks = plain_gradients(model, job, drawn)
    for name, stack in zip(names, stacks, strict=True):
        mean = stack.sum(0).numpy() / len(stack)
        if name in delta:
            np.testing.assert_allclose(delta[name], -0.3 * mean, rtol=1e-4, atol=1e-6, err_msg=name)
        else:  # on average the mean over a user's own examples
            np.testing.assert_allclose(moved[name], -0.4 * len(cohort) * mean, rtol=1e-3, atol=1e-6, err_msg=name)


def test_the_denominator_is_the_expected_number_and_not_that_of_those_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = small_cohort()
    model = bound("mf", cohort)
    monkeypatch.setattr(example_level, "with_negatives", determined)
    steps = []
    for number in (1, 5):
        monkeypatch.setattr(example_level, "poisson", lambda n, rate, number=number: np.arange(n) < number)
        delta, *_ = fit(model, cohort, tmp_path, Gaussian(0.0, 0.5), clip_norm=1e-3)
        steps.append(sum(float(np.square(array).sum()) for array in delta.values()) ** 0.5)
    whole = 0.3 * 1e-3 / (0.5 * len(cohort.train.items))
    assert steps[0] <= whole * 1.001
    assert steps[0] < steps[1] <= 5.005 * whole


def test_fedprox_pulls_after_the_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = small_cohort()
    model = bound("mf", cohort)
    monkeypatch.setattr(example_level, "poisson", lambda n, rate: np.zeros(n, dtype=bool))
    monkeypatch.setattr(example_level, "add_noise", lambda sums, z, bound: {n: a + 1.0 for n, a in sums.items()})
    delta, *_ = fit(model, cohort, tmp_path, Gaussian(1.0, 0.5, 2), plan=replace(PLAN, proximal_mu=2.0))
    step = 0.3 / (0.5 * len(cohort.train.items))
    np.testing.assert_allclose(delta["item_embedding"], -(step + step * (1 - 0.3 * 2.0)), rtol=1e-3)


def determined(items: np.ndarray, num_items: int, num_negatives: int) -> np.ndarray:
    """Returns the positives with negatives that follow from them alone."""
    return (items[:, None] + 3 * np.arange(1 + num_negatives)) % num_items


# --- what a privacy engineer checks, and the bugs that each check is for ---------------------------------------------


def lists_of(cohort: Cohort) -> list[np.ndarray]:
    return [cohort.train[user] for user in range(len(cohort))]


def cohort_of(lists: list[Any], num_items: int) -> Cohort:
    train, nothing = Histories.from_lists(lists), Histories.from_lists([[]] * len(lists))
    return Cohort(tuple(f"u{u}" for u in range(len(lists))), num_items, train, nothing, nothing, train)


def sensitivity(scales: dict[str, float], item: int = 29, broken: bool = False) -> float:
    """Returns how far one more example moves the sum of clipped gradients, over shared and private parameters.

    Args:
        scales: what parameters are multiplied with.
        item: of the new example; nobody else meets it or what it draws.
        broken: the item's row is not a number.
    """
    lists = lists_of(small_cohort(num_items=22))
    longer = [np.append(items, item) if u == 2 else items for u, items in enumerate(lists)]
    model = bound("mf", cohort_of(lists, 30))
    sums = []
    for users in (cohort_of(lists, 30), cohort_of(longer, 30)):
        job, values = job_of(model, users)
        values = {name: tensor * scales.get(name, 1.0) for name, tensor in values.items()}
        if broken:
            values["item_embedding"][item] = torch.nan
        sums.append(clipped_sum(job, values, np.arange(len(users.train.items)), 0.5))
    return sum(float((after - sums[0][name]).square().sum()) for name, after in sums[1].items()) ** 0.5


def noise_tail(folder: Path, model: Recommender, cohort: Cohort) -> dict[str, float]:
    """Returns how likely noise of the right size is to be as far off as what steps without examples moved."""
    steps = 40
    delta, moved, _ = fit(model, cohort, folder, Gaussian(1.5, 0.25, steps), clip_norm=0.7)
    expected = 0.25 * len(cohort.train.items)
    rates = {"shared": PLAN.learning_rate, "private": PLAN.private_learning_rate * len(cohort)}
    found = {}
    for kind, arrays in {"shared": delta, "private": moved}.items():
        numbers = np.concatenate([array.ravel() for array in arrays.values()]).astype(np.float64)
        std = rates[kind] * 1.5 * 0.7 / expected * steps**0.5
        square = float(np.square(numbers / std).sum())
        found[kind] = 2 * min(chi2.cdf(square, len(numbers)), chi2.sf(square, len(numbers)))
    return found


def broken_promises(folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Returns what does not hold."""
    found = set()
    with monkeypatch.context() as patch:
        patch.setattr(example_level, "with_negatives", determined)
        heavy = [
            {}, {"user_embedding": 1e-3, "item_embedding": 1e3}, {"user_embedding": 1e3, "item_embedding": 1e-3},
            {"item_embedding": 1e18}, {"user_embedding": 0.0},
        ]  # fmt: skip
        if max(sensitivity(scales) for scales in heavy) > 0.5 * (1 + 1e-6):
            found.add("sensitivity")
        if sensitivity({}, broken=True) != 0:
            found.add("not finite")
    cohort = cohort_of([list(range(9))], 12)
    job, _ = job_of(bound("mf", cohort), cohort, replace(PLAN, num_negatives=400))
    batch, met = example_level._draw(job, np.array([4]))
    assert met is not None
    drawn = np.bincount(met.items[batch["items"][0, 1:].numpy()], minlength=12)
    if drawn[4] or chisquare(np.delete(drawn, 4)).pvalue < 1e-6:
        found.add("negatives")
    with monkeypatch.context() as patch:
        patch.setattr(example_level, "poisson", lambda n, rate: np.zeros(n, dtype=bool))
        tails = noise_tail(folder, bound("neumf", small_cohort()), small_cohort())
    return found | {f"{kind} noise" for kind, tail in tails.items() if tail < 1e-6}


def test_the_promises_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert broken_promises(tmp_path, monkeypatch) == set()


REAL_CLIP, REAL_NOISE, REAL_DRAW = optimizers.clip, example_level.add_noise, example_level._draw


def clip_shared_only(grads: dict[str, torch.Tensor], bound: float, each: bool) -> dict[str, torch.Tensor]:
    shared = {name: grad for name, grad in grads.items() if "user" not in name}
    return {**grads, **REAL_CLIP(shared, bound, each)}


def clip_each_array(grads: dict[str, torch.Tensor], bound: float, each: bool) -> dict[str, torch.Tensor]:
    return {name: REAL_CLIP({name: grad}, bound, each)[name] for name, grad in grads.items()}


def clip_nothing(grads: dict[str, torch.Tensor], bound: float, each: bool) -> dict[str, torch.Tensor]:
    return grads


def clip_the_sum(grads: dict[str, torch.Tensor], bound: float, each: bool) -> dict[str, torch.Tensor]:
    sums = REAL_CLIP({name: grad.sum(0) for name, grad in grads.items()}, bound * len(next(iter(grads.values()))))
    return {name: (sums[name] / len(grad)).expand(grad.shape) for name, grad in grads.items()}


def let_all_through(grads: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: grad.double() for name, grad in grads.items()}


def half_noise(sums: Arrays, multiplier: float, bound: float) -> Arrays:
    return REAL_NOISE(sums, multiplier / 2, bound)


def noise_on_shared_only(sums: Arrays, multiplier: float, bound: float) -> Arrays:
    noised = REAL_NOISE(sums, multiplier, bound)
    return {name: array if "user" in name else noised[name] for name, array in sums.items()}


def replayed_noise(sums: Arrays, multiplier: float, bound: float) -> Arrays:
    generator = np.random.default_rng(3)
    return {name: a + multiplier * bound * generator.standard_normal(a.shape) for name, a in sums.items()}


def negatives_that_know_the_user(job: Job, block: np.ndarray) -> tuple[Batch, Histories | None]:
    samples, _ = sampling.draw_epoch(
        np.uint64(random.getrandbits(64)), 0, job.cohort.keys, job.cohort.train, job.cohort.train,
        job.cohort.num_items, job.plan.num_negatives, shuffle=False,
    )  # fmt: skip
    batch, _ = REAL_DRAW(job, block)
    met = Histories(*sampling.rename(samples := samples[block], np.arange(len(block) + 1), 1, job.cohort.num_items))
    return {**batch, "items": torch.from_numpy(samples)}, met


BUGS: dict[str, tuple[Any, str, Any, str]] = {
    "private rows are left out of the norm": (optimizers, "clip", clip_shared_only, "sensitivity"),
    "each array has a norm of its own": (optimizers, "clip", clip_each_array, "sensitivity"),
    "nothing is clipped": (optimizers, "clip", clip_nothing, "sensitivity"),
    "the sum is clipped": (optimizers, "clip", clip_the_sum, "sensitivity"),
    "not a number passes": (example_level, "_finite", let_all_through, "not finite"),
    "negatives know the user's other items": (example_level, "_draw", negatives_that_know_the_user, "negatives"),
    "half the noise": (example_level, "add_noise", half_noise, "shared noise"),
    "no noise on private rows": (example_level, "add_noise", noise_on_shared_only, "private noise"),
    "the same noise in every step": (example_level, "add_noise", replayed_noise, "shared noise"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_breaks_its_promise(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, fault, promise = BUGS[bug]
    monkeypatch.setattr(where, name, fault)
    assert promise in broken_promises(tmp_path, monkeypatch)


@pytest.mark.parametrize("case", ["sasrec", "sasrec, sampled", "sasrec, masked"])
def test_one_more_sequence_moves_the_sum_by_the_bound_at_most_and_no_other_sequence(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_level.os, "urandom", lambda n: bytes(k % 256 for k in range(n)))
    cohort = small_cohort()
    lists = lists_of(cohort)
    without = replace(cohort, train=Histories.from_lists([[] if u == 2 else items for u, items in enumerate(lists)]))
    model = bound(case, cohort)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    sums = [clipped_sum(*job_of(model, users), np.arange(len(users)), 0.05) for users in (cohort, without)]
    square = sum(float((sums[0][name] - sums[1][name]).square().sum()) for name in sums[0])
    assert square**0.5 <= 0.05 * (1 + 1e-5)
    assert square**0.5 >= 0.05 * 0.99  # it was there


def test_what_a_batch_says_of_an_example_is_the_same_for_users_with_few_and_many() -> None:
    cohort = small_cohort()
    job, _ = job_of(bound("mf", cohort), cohort)
    batch, _ = example_level._draw(job, np.arange(len(cohort.train.items)))
    np.testing.assert_allclose(batch["share"], len(cohort) / len(cohort.train.items), rtol=1e-6)
    assert bool((batch["weights"] == 1).all())
    assert bool((batch["user"] == 0).all())


def test_negatives_are_all_items_but_the_positive_as_likely() -> None:
    drawn = with_negatives(np.array([0, 3, 9]), 10, 9000)
    assert drawn[:, 0].tolist() == [0, 3, 9]
    for row in drawn:
        counts = np.bincount(row[1:], minlength=10)
        assert counts[row[0]] == 0
        assert chisquare(np.delete(counts, row[0])).pvalue > 1e-6


def test_of_a_catalog_of_one_item_negatives_weigh_nothing() -> None:
    cohort = cohort_of([[0]], 1)
    batch, _ = example_level._draw(job_of(bound("mf", cohort), cohort)[0], np.array([0]))
    assert batch["weights"].tolist() == [[1.0, 0.0, 0.0]]


def test_no_seed_has_a_part_in_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = small_cohort()
    model = bound("mf", cohort)
    chosen: list[list[int]] = []

    def drawn(num_examples: int, rate: float) -> np.ndarray:
        mask = poisson(num_examples, rate)
        chosen.append(np.flatnonzero(mask).tolist())
        return mask

    monkeypatch.setattr(example_level, "poisson", drawn)
    deltas = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        deltas.append(fit(model, cohort, tmp_path, Gaussian(1.0, 0.5, 3))[0]["item_embedding"])
    assert chosen[:3] != chosen[3:]
    assert len({str(who) for who in chosen}) == 6
    assert not np.isclose(*deltas).any()


@pytest.mark.parametrize(("case", "drawn"), [("mf", "items"), ("sasrec", "noise"), ("sasrec, sampled", "negatives")])
def test_every_step_draws_anew(case: str, drawn: str) -> None:
    cohort = cohort_of([list(range(12))] * 8, 200)
    job, _ = job_of(bound(case, cohort), cohort, replace(PLAN, num_negatives=8))
    batches = [example_level._draw(job, np.arange(8)) for _ in range(2)]
    met = [str(batch[drawn].tolist()) + str(lists and lists.items.tolist()) for batch, lists in batches]
    assert met[0] != met[1]


def test_the_round_is_charged_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = small_cohort()
    monkeypatch.setattr(example_level, "clipped_sum", SimpleNamespace())  # training fails
    with pytest.raises(TypeError):
        fit(bound("mf", cohort), cohort, tmp_path, Gaussian(1.0, 0.5, 3))
    assert NodeAccountant(tmp_path, "line", 0).releases() == [Gaussian(1.0, 0.5, 3)]


@pytest.mark.parametrize("case", ["mf", "sasrec"])
def test_users_without_examples_count_for_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = lists_of(small_cohort())
    monkeypatch.setattr(example_level.np.random, "default_rng", lambda: np.random.Generator(np.random.PCG64(1)))
    monkeypatch.setattr(example_level.os, "urandom", lambda n: bytes(k % 256 for k in range(n)))
    found = []
    for cohort in (cohort_of(lists, 30), cohort_of([*lists, [], []], 30)):
        folder = tmp_path / str(len(cohort))
        delta, moved, sums = fit(bound(case, cohort), cohort, folder, Gaussian(0.0, 1.0), clip_norm=0.1)
        assert sums.weight == len(lists)
        found.append({**delta, **{name: rows[: len(lists)] for name, rows in moved.items()}})
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("case", BUILD)
def test_a_fit_keeps_its_tensors_on_the_device(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_cpu = torch.Tensor.cpu

    def zeros(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.device.type == "meta" else to_cpu(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", zeros)
    plan = replace(PLAN, device="meta", optimizer="adam", proximal_mu=0.1, weight_decay=0.1)
    delta, _, _ = fit(bound(case, small_cohort()), small_cohort(), tmp_path, Gaussian(1.0, 1.0, 2), plan=plan)
    assert not any(array.any() for array in delta.values())


def test_a_node_without_examples_sends_nothing(tmp_path: Path) -> None:
    cohort = small_cohort()
    nothing = replace(cohort, train=Histories.from_lists([[]] * len(cohort)))
    rows = private_of(model := bound("mf", nothing))
    sums = fit_examples(
        model, nothing, shared_of(model), rows, PLAN, Gaussian(1.0), 1.0, NodeAccountant(tmp_path, "line", 0)
    )
    assert sums.weight == 0
    assert not sums.delta["item_embedding"].any()


class Coupled(MatrixFactorization):
    couples_users = True


REFUSED: dict[str, tuple[Recommender, FitPlan, str]] = {
    "solved": (Ease(1, Ease.Options()), PLAN, "model 'ease' is solved from counts .* another model"),
    "coupled": (Coupled(4, Coupled.Options(loss="bce")), PLAN, "couples users"),
    "closed form": (
        MatrixFactorization(4, MatrixFactorization.Options()), PLAN,
        'model.options=\'{"loss": "bce"}\' and train.num-negatives=4',
    ),
    "reconstruction": (BUILD["pfedrec"](), replace(PLAN, private_epochs=1), "train.private-epochs=1.*private-epochs=0"),
    "bounded mini-batches": (
        BUILD["mf"](), replace(PLAN, max_grad_norm=2.0), "train.max-grad-norm=2 .*privacy.clip-norm",
    ),
    "users": (BUILD["mf"](), replace(PLAN, unit="user"), 'train.unit="node"'),
    "fraction": (BUILD["mf"](), replace(PLAN, user_fraction=0.5), "train.user-fraction=0.5.*privacy.sampling-rate"),
    "weights": (BUILD["mf"](), replace(PLAN, weighting="examples"), 'weighting \'examples\'.*"users" or "uniform"'),
    "client part": (
        BUILD["mf"](), replace(PLAN, part=FedNova.client_part(None, {}, {})), "client part may learn more",  # type: ignore[misc]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_private_is_refused_and_says_what_to_set(case: str, tmp_path: Path) -> None:
    model, plan, message = REFUSED[case]
    accountant = NodeAccountant(tmp_path, "line", 0)
    with pytest.raises(ConfigError, match=message):
        fit_examples(model, small_cohort(), {}, {}, plan, Gaussian(1.0), 1.0, accountant)
    assert accountant.releases() == []


def test_a_model_without_private_rows_may_be_told_to_reconstruct_none() -> None:
    assert example_level_problem(BUILD["sasrec"](), replace(PLAN, private_epochs=3)) == ""
