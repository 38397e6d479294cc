"""The kit on models that are solved: built-in ones pass, planted faults are found, runs agree wherever users are."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import UserState
from fedrec_app.models.cooccurrence import Cooccurrences
from fedrec_app.models.registry import BUILT_IN, model_class
from fedrec_app.records import Arrays
from fedrec_app.simulate import simulate
from fedrec_app.testing.model_case import NUM_ITEMS, company
from fedrec_app.testing.models import BASIC, CHECKS, SOLVING, TRAINING, ModelCase, applicable, run_all
from tests.conformance import closed_form_faults as faults
from tests.conformance.plain_closed_form import Pairs

CASES: dict[str, list[dict[str, Any]]] = {
    "ease": [{}, {"neighbors": 3}, {"regularization": 1.0, "recency": 0.5}, {"neighbors": 5, "max_items": 40}],
    "itemknn": [{}, {"neighbors": 3, "shrinkage": 2.0}, {"recency": 1.0, "max_items": 40}],
    "popularity": [{}],
}
"""Options that every built-in model of this kind is tried with."""

Faults = dict[type[Pairs], tuple[set[str], str]]
MALFORMED, BEYOND, SURVIVES = (
    "refuses_what_is_malformed", "refuses_what_is_beyond_its_users", "solve_survives_liars"
)  # fmt: skip
IN_THE_MODEL: Faults = {
    faults.IsToBeAveraged: ({"recipe"}, r"the strategy 'fedavg': a model that is solved needs 'closed-form'"),
    faults.NeverFillsItsRows: ({"names"}, r"the private 'user_bias': nothing gives it values"),
    faults.SendsColumns: ({"statistics"}, r"24 users, 'met': it is not C-contiguous"),
    faults.SendsTensors: ({"statistics"}, r"'met': it is a Tensor, not a numpy array"),
    faults.StartsFromItsParameters: ({"statistics"}, r"24 users, a model without values: \w*Error: .*meta"),
    faults.SortsWhatUsersDid: ({"statistics"}, r"24 users, what they did: 'train items': it is"),
    faults.AddsNoise: ({"statistics"}, r"24 users a second time: 'late': it is"),
    faults.LooksAtWhatIsHeldOut: ({"statistics_are_sums"}, r"24 users with items held out: 'met': it is"),
    faults.KeepsOneSum: ({"sums_are_their_own"}, r"another sum that nothing was added to: 'similarity': it is"),
    faults.RemembersItsSimilarities: ({"follows_parameters"}, r"after a first loss and score: 'scores': it is"),
    faults.WeighsByItsNode: ({"placement"}, r"user 0 on a node of his own, and on one with four others, his scores"),
    faults.RanksBackwards: ({"learns_tastes"}, r"given 1 rounds of 40 users, 60 items: HR@10 is 0.0\d\d"),
}
IN_THE_SUMS: Faults = {
    faults.with_sums(sums, model): (checks, message)
    for sums, model, checks, message in (
        (faults.SumsInFloat64, Pairs, {"solve"}, r"nothing added, 'similarity': it is ndarray of float64, \(12, 12\)"),
        (faults.SumsWithoutTheBias, Pairs, {"solve"}, r"there is \['similarity'\], not \['bias', 'similarity'\]"),
        (faults.SumsDividedByNobody, Pairs, {"solve"}, r"nothing added, 'bias': it holds NaN or infinity"),
        (faults.SumsThatAreSpent, Pairs, {"solve"}, r"24 users, solved a second time: 'similarity': it is 0"),
        (faults.SumsOfNothing, Pairs, {"solve"}, r"24 users: the parameters are those of nothing added"),
        (faults.SumsAndLengths, faults.SendsANumberAUser, {"statistics_are_sums", MALFORMED, BEYOND},
         r"24 users, each twice, 'lengths': it has shape \(48,\), and \(24,\) for each once"),
        (faults.SumsOfMeans, Pairs, {"additive"}, r"two halves of 24 users: 'bias': it is"),
        (faults.SumsThatCountNodes, Pairs, {"additive"}, r"24 users, and a node of no users: 'bias': it is"),
        (faults.SumsInTheFirstArrays, Pairs, {"sums_are_their_own"}, r"the arrays that were added: 'met': it is"),
        (faults.SumsOfAnyNames, Pairs, {MALFORMED}, r"given one more name, of a node of 23 users: it was added"),
        (faults.SumsOfWhatIsThere, Pairs, {MALFORMED}, r"given nothing, .*: it raised KeyError: 'met' at .* not a Val"),
        (faults.SumsOfAnyType, Pairs, {MALFORMED}, r"given 'met' as float64, of a node of 23 users: it was added"),
        (faults.SumsOfAnyShape, Pairs, {MALFORMED}, r"'met' of shape \(1, 12, 12\)|'met' of shape \(\)"),
        (faults.SumsOfNaN, Pairs, {MALFORMED}, r"'late' with nan, of a node of 23 users: it was added"),
        (faults.SumsOfNegatives, Pairs, {MALFORMED}, r"'met' with -1, of a node of 23 users: it was added"),
        (faults.SumsAddedBeforeTheyAreChecked, Pairs, {MALFORMED, BEYOND}, r"the sum after it: 'similarity': it is"),
        (faults.SumsThatCountTheRefused, Pairs, {MALFORMED, BEYOND}, r"the sum after it: 'bias': it is"),
        (faults.SumsOfAnyNumberOfUsers, Pairs, {BEYOND}, r"the statistics of 23 users as those of one, .* was added"),
        (faults.SumsOf32Bits, Pairs, {SURVIVES}, r"given 3 nodes of 1000000000 users, .*signs are not those of one"),
    )
}  # fmt: skip
FAULTS: Faults = {**IN_THE_MODEL, **IN_THE_SUMS}


def every_check() -> list[Any]:
    return [
        pytest.param(name, options, check, id=f"{name} {options} {check}")
        for name in CASES
        for options in CASES[name]
        for check in applicable(ModelCase(model_class(name), options))
    ]


@pytest.mark.parametrize(("name", "options", "check"), every_check())
def test_a_built_in_model_conforms(name: str, options: dict[str, Any], check: str) -> None:
    CHECKS[check](ModelCase(model_class(name), options))


def test_what_needs_a_loss_is_not_asked_of_a_model_that_is_solved() -> None:
    report = run_all(ModelCase(Pairs))
    assert report.passed, str(report)
    assert list(report.results) == [name for name in CHECKS if name not in {*TRAINING, "solve_private"}]
    assert not set(SOLVING) & set(applicable(ModelCase(model_class("mf"))))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found_by_its_checks_alone(fault: type[Pairs]) -> None:
    checks, message = FAULTS[fault]
    case = ModelCase(fault)
    report = run_all(case)
    assert set(report.failed) == checks, str(report)
    assert re.search(message, next(iter(report.failed.values()))), str(report)
    (first, *_) = report.failed
    later = applicable(case)[applicable(case).index(first) + 1 :]
    assert report.not_run == (tuple(later) if first in BASIC else ())


def test_every_check_of_solved_models_finds_a_planted_fault() -> None:
    assert {check for checks, _ in FAULTS.values() for check in checks} >= set(SOLVING)


class WithRows(Pairs):
    """Keeps what goes with each user's history as his row, in closed form."""

    solves_private = True

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        super().bind(catalog, cohort)
        self.user = nn.Parameter(torch.zeros(0 if cohort is None else len(cohort), len(catalog)))

    def private_names(self) -> list[str]:
        return ["user"]

    def solve_private(self, histories: Histories, serving: bool) -> dict[str, Tensor]:
        had = torch.from_numpy(histories.matrix(self.num_items).astype(np.float32))
        return {"user": (had @ self.similarity).detach()}

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        return {"user": self.user[users]}

    def score(self, state: UserState, items: Tensor) -> Tensor:
        return state["user"][:, items] + 0.01 * self.bias[items]


def test_private_rows_in_closed_form_go_with_parameters_in_closed_form() -> None:
    report = run_all(ModelCase(WithRows))
    assert report.passed, str(report)
    assert "solve_private" in report.results


def test_the_kit_tries_both_forms_of_counts_of_pairs() -> None:
    case = ModelCase(model_class("ease"))
    assert set(case.statistics(company())) == {"triangle"}
    assert set(case.statistics(company(60, 2))) == {"starts", "items", "counts"}


SMALL = '{"num_users": 120, "num_items": 60, "mean_interactions": 12, "min_interactions": 5}'
SOLVED = [*CASES, "tests.conformance.plain_closed_form:Pairs"]


@pytest.mark.parametrize("name", SOLVED)
def test_a_whole_run_gives_the_same_parameters_on_two_and_on_five_nodes(tmp_path: Path, name: str) -> None:
    flat = {"model.name": name, "data.options": SMALL, "output-dir": str(tmp_path), "evaluate.bootstrap": 0}
    two, five = (simulate(flat, nodes).folder.read_model()[0] for nodes in (2, 5))
    assert list(two) == list(five)
    for parameter, array in two.items():
        np.testing.assert_allclose(five[parameter], array, atol=1e-6, rtol=0)
        assert array.any()


def indefinite() -> Arrays:
    """Returns counts that pass for those of 1000 users pair by pair, and are those of none."""
    gram = np.diag(np.full(NUM_ITEMS, 1000, dtype=np.uint16))
    gram[0] = 1000
    return {"triangle": gram[np.triu_indices(NUM_ITEMS)]}


def test_counts_that_no_users_have_do_not_keep_ease_from_being_solved() -> None:
    sums = ModelCase(model_class("ease")).sums([company()])
    with contextlib.suppress(ValueError):
        sums.add(indefinite(), 1000)
    assert all(np.isfinite(array).all() for array in sums.solve().values())


def test_starts_that_overflow_are_refused_before_anything_is_read_at_them() -> None:
    starts = np.ones(NUM_ITEMS + 1, dtype=np.int64)
    starts[:3] = 0, 2**63 - 1, -(2**63) + 64
    lies = {"starts": starts, "items": np.zeros(1, dtype=np.int32), "counts": np.ones(1, dtype=np.uint8)}
    with pytest.raises(ValueError, match="'starts' does not go from 0 up"):
        Cooccurrences(NUM_ITEMS).add(lies, 1)


def test_every_model_that_is_built_in_is_tried_by_one_kit_or_the_other() -> None:
    assert set(CASES) == {name for name in BUILT_IN if not ModelCase(model_class(name)).trained}
