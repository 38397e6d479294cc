"""The kit of models: built-in models pass it, and planted faults are found, each by the check meant for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fedrec_app.cli_check import class_at
from fedrec_app.conformance import ConformanceError
from fedrec_app.models import base
from fedrec_app.models.base import Recommender
from fedrec_app.models.registry import BUILT_IN, MODELS, model_class
from fedrec_app.testing.models import BASIC, CHECKS, SEQUENCES, SOLVING, ModelCase, applicable, run_all
from tests.conformance import model_faults as faults
from tests.conformance import sequence_faults as sequences
from tests.conformance.plain_model import Plain

NEGATIVES = {"train.num-negatives": 4}
CASES: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "mf": [
        ({}, {}),
        ({"recency": 0.0, "unobserved_weight": 0.5, "regularization": 0.0}, {}),
        ({}, {"train.unit": "node", "train.batch-size": 32}),
        ({"loss": "bce"}, NEGATIVES),
        ({"loss": "bce", "init_std": 0.2}, {**NEGATIVES, "train.private-epochs": 2, "model.embedding-dim": 5}),
    ],
    "neumf": [
        ({}, {}),
        ({"layers": [5], "recency": 0.0}, {"model.embedding-dim": 3}),
        ({"init_std": 0.3}, {"train.optimizer": "adam", "train.learning-rate": 0.02,
                             "train.private-learning-rate": 0.05, "train.batch-size": 8}),
    ],
    "pfedrec": [
        ({}, {}),
        ({"personal_view": False, "recency": 0.0}, {"train.private-epochs": 0, "model.embedding-dim": 5}),
        ({"hidden": 4, "view_epochs": 3, "view_learning_rate": 0.5}, {"model.embedding-dim": 8}),
        ({}, {"train.unit": "node", "train.batch-size": 32, "train.optimizer": "adam", "train.learning-rate": 0.02,
              "train.private-learning-rate": 0.05}),
    ],
    "sasrec": [
        ({"max_length": 6, "layers": 1, "heads": 2, "dropout": 0.0}, {"model.embedding-dim": 8}),
        ({"max_length": 6, "layers": 2, "heads": 2, "dropout": 0.3}, {"model.embedding-dim": 8}),
    ],
}  # fmt: skip
"""Options and settings over the recipe that every built-in model is tried with."""

FAULTS: dict[type[Recommender], tuple[set[str], str]] = {
    faults.TakesAnyOption: ({"options"}, r"given the option no_such_option: it was accepted"),
    faults.HasNoName: ({"options"}, r"given the class: its `name` is empty"),
    faults.MistypesASetting: ({"recipe"}, r"'train.lerning-rate'.*did you mean 'train.learning-rate'"),
    faults.LeavesASettingOpen: ({"recipe"}, r"no value of its own for train.num-negatives"),
    faults.SetsWhatIsNeverAuto: ({"recipe"}, r"recipe\['data.protocol'\]: it is never 'auto'"),
    faults.ForgetsAParameter: ({"names"}, r"'bias' is neither shared nor private"),
    faults.SharesItsUsers: ({"names"}, r"shared_names\(\): 'user' is private too"),
    faults.CountsInFloat64: ({"shapes"}, r"'item_bias' is torch.float64, not torch.float32"),
    faults.KeepsARowForTheServer: ({"shapes"}, r"given 0 users: 'user' has shape \(1, 4\), not \(0, ...\)"),
    faults.LossIsOneNumber: ({"loss"}, r"a batch of 5 users: the loss has shape \(\), not \(5,\)"),
    faults.TrainsOnGraphs: ({"loss"}, r"unknown sampling 'graph'"),
    faults.DetachesItsBias: ({"loss"}, r"'bias': the loss does not depend on it"),
    faults.NeverUsesItsBias: ({"loss"}, r"'offset': the loss does not depend on it"),
    faults.DrawsUnseeded: ({"seed"}, r"the same seed and users twice: 'item': it is"),
    faults.DrawsUsersFirst: ({"cohort"}, r"given 1 users, the shared parameters: 'item': it is"),
    faults.HidesUsersAmongShared: ({"cohort"}, r"the shared parameters: 'user_bias': the shape is \(1,\), not \(0,\)"),
    faults.CentresTheBatch: ({"units"}, r"given unit 0 of five alone: it is"),
    faults.AveragesThePadding: ({"padding"}, r"four more cells of weight 0 and item 0: it is"),
    faults.ReadsTheWholeCatalog: ({"met_rows"}, r"item tables cut to the \d+ items of a batch: it is"),
    faults.LooksFeaturesUp: ({"met_rows", "several_steps"}, r"item tables cut to the \d+ items of a batch: it is"),
    faults.DropsOutWhenItScores: ({"scores"}, r"given 3 users and 12 items a second time: it is"),
    faults.NormalisesOverTheItemsAsked: ({"scores"}, r"given items \[9, 1, 1, 4\] alone: it is"),
    faults.ScoresFromTheTop: ({"scores"}, r"items \[9, 1, 1, 4\] alone: the shape is \(3, 12\), not \(3, 4\)"),
    faults.ScoresInPlace: ({"inputs_unchanged"}, r"what there was before score\(\): 'state embedding'"),
    faults.ScalesItsTableToScore: ({"inputs_unchanged"}, r"what there was before encode\(\): 'parameter item'"),
    faults.NeedsAHistory: ({"empty_history"}, r"users with 0, 2, 0 items, the scores: it holds NaN"),
    faults.RemembersItsTable: ({"follows_parameters"}, r"after a first loss and score: 'scores': it is"),
    faults.LooksAtItsLoss: ({"several_steps"}, r"RuntimeError: vmap: It looks like you're"),
    faults.SaysItIsAFactorization: ({"factorization"}, r"the sum of deltas by compiled loops: 'item': it is"),
    faults.SolvesUsersTogether: ({"solve_private"}, r"serving=False, user 0 alone: 'user_embedding': it is"),
    faults.SolvesInFloat64: ({"solve_private"}, r"is torch.float64, not \(5, 32\) and torch.float32"),
    faults.KnowsItsNeighbours: ({"placement"}, r"user 0 on a node of his own, and on one with four others"),
    faults.PunishesWithoutLearning: ({"training_reduces_the_loss"}, r"the loss is [\d.]+ first and [\d.]+ at last"),
    faults.RanksBackwards: ({"learns_tastes"}, r"HR@10 is 0.0\d\d; chance is 0.256 and 0.464 is asked for"),
    faults.TheSameForEverybody: ({"learns_tastes"}, r"HR@10 is 0.\d+; chance is 0.256"),
    sequences.HasNoLength: ({"shapes"}, r"`max_length`: it is 0, not a whole number of at least 1"),
    sequences.CropsTooOften: ({"shapes"}, r"`crop`: it is 50.0, not a share from 0 to 1"),
    sequences.CountsFromTheFront: ({"front_padding"}, r"a user of 2 items beside longer ones: it is"),
    sequences.AttendsThePadding: ({"front_padding"}, r"a user of 2 items beside longer ones: it is"),
    sequences.AveragesTheWidth: ({"front_padding"}, r"a user of 2 items beside longer ones: it is"),
    sequences.LooksAhead: ({"causality"}, r"6 cells of which the first 1 weigh, and other items after them: it is"),
    sequences.LearnsWhatItMayNot: ({"causality"}, r"the first 1 weigh, and other items after them: it is"),
    sequences.ReadsTheFirst: ({"last_items"}, r"the scores of a user of the last 6 of 9 items alone: it is"),
    sequences.NeedsTwoItems: ({"one_item"}, r"given one item, the loss: it is"),
    sequences.DropsOutByChance: (
        {"units", "front_padding", "causality", "several_steps", "placement"},
        r"unit \d of five",
    ),
}
FEW_ROUNDS = {"num-server-rounds": 24}
TRAINED = sorted(name for name in BUILT_IN if ModelCase(model_class(name)).trained)
"""The others are in test_closed_form_models.py."""


def case_of(name: str, number: int) -> ModelCase:
    return ModelCase(model_class(name), *CASES[name][number])


def every_check() -> list[Any]:
    cases = [(name, number) for name in CASES for number in range(len(CASES[name]))]
    return [
        pytest.param(name, number, check, id=f"{name} {number} {check}")
        for name, number in cases
        for check in applicable(case_of(name, number))
    ]


def test_every_built_in_model_is_tried() -> None:
    assert set(CASES) == set(TRAINED)


@pytest.mark.parametrize(("name", "number", "check"), every_check())
def test_a_built_in_model_conforms(name: str, number: int, check: str) -> None:
    CHECKS[check](case_of(name, number))


def test_the_plain_model_that_faults_are_planted_in_conforms() -> None:
    report = run_all(ModelCase(Plain, settings=FEW_ROUNDS))
    assert report.passed, str(report)
    others = {"factorization", "solve_private", *SOLVING, *SEQUENCES}
    assert list(report.results) == [name for name in CHECKS if name not in others]


def test_the_plain_model_of_sequences_conforms() -> None:
    report = run_all(ModelCase(sequences.Means, settings=FEW_ROUNDS))
    assert report.passed, str(report)
    others = {"factorization", "solve_private", "padding", "met_rows", *SOLVING}
    assert list(report.results) == [name for name in CHECKS if name not in others]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found_by_its_check_alone(fault: type[Recommender]) -> None:
    checks, message = FAULTS[fault]
    case = ModelCase(fault, settings=FEW_ROUNDS)
    report = run_all(case)
    assert set(report.failed) == checks, str(report)
    assert not report.passed
    for check in checks:
        with pytest.raises(ConformanceError) as caught:
            CHECKS[check](case)
        assert caught.value.check == check
        later = applicable(case)[applicable(case).index(check) + 1 :]
        assert report.not_run == (tuple(later) if check in BASIC else ())
    assert re.search(message, next(iter(report.failed.values()))), str(report)


def test_every_check_finds_a_planted_fault() -> None:
    assert {check for checks, _ in FAULTS.values() for check in checks} == set(CHECKS) - set(SOLVING)


def test_checks_that_a_model_excludes_do_not_apply() -> None:
    class Coupled(Plain):
        couples_users = True
        whole_catalog = True
        personal = False

    left_out = set(applicable(ModelCase(Plain))) - set(applicable(ModelCase(Coupled)))
    assert left_out == {"units", "several_steps", "placement", "met_rows", "learns_tastes"}
    solved = set(applicable(ModelCase(model_class("mf")))) - set(applicable(ModelCase(Plain)))
    assert solved == {"factorization", "solve_private"}


def test_a_model_that_is_the_same_for_everybody_may_say_so() -> None:
    class Honest(faults.TheSameForEverybody):
        personal = False

    report = run_all(ModelCase(Honest, settings={**FEW_ROUNDS, "train.num-negatives": 8}))
    assert report.passed, str(report)


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_that_the_server_does_not_move_has_learned_nothing(name: str) -> None:
    still = {"strategy.options": '{"learning_rate": 1e-9}', "num-server-rounds": 8}
    report = run_all(ModelCase(model_class(name), settings=still))
    # A score function of one's own learns from items that stand still how often a sample is a positive.
    on_his_own = {"training_reduces_the_loss"} if name == "pfedrec" else set()
    assert set(report.failed) == {"training_reduces_the_loss", "learns_tastes"} - on_his_own, str(report)


def test_the_example_in_the_contract_conforms(tmp_path: Path) -> None:
    imports = "import torch\nfrom torch import nn\nfrom fedrec_app.models.base import Recommender, pointwise_loss\n"
    example = (base.__doc__ or "").partition("class Popularity")
    file = tmp_path / "popularity.py"
    file.write_text(imports + example[1] + example[2])
    report = run_all(ModelCase(class_at(MODELS, str(file)), settings={**Plain.recipe, "num-server-rounds": 8}))
    assert set(report.failed) == {"learns_tastes"}, str(report)


def test_a_model_that_cannot_be_made_is_reported_and_not_raised() -> None:
    class Broken(Plain):
        def __init__(self, embedding_dim: int, options: Any) -> None:
            raise AttributeError("no such thing")

    report = run_all(ModelCase(Broken))
    assert set(report.failed) == {"recipe"}
    assert "AttributeError: no such thing" in report.failed["recipe"]
    assert str(report).splitlines()[-1] == "not run learns_tastes"
