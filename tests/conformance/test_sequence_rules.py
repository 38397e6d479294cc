"""The kit and models whose sequences are made by more rules: sasrec by all of them, plain models, and faults."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fedrec_app.models.sasrec import SasRec
from fedrec_app.testing.models import ModelCase, run_all
from tests.conformance import sequence_faults as sequences

SMALL = {"max_length": 6, "layers": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "sampled": {"negatives": 5},
    "masked": {"objective": "masked"},
    "augmented": {"mask": 0.7, "reorder": 0.7},
    "everything": {"objective": "masked", "negatives": 4, "mask": 0.5, "reorder": 1.0},
}
FEW_ROUNDS = {"num-server-rounds": 40}


SLOW = ("masked", "augmented")


@pytest.mark.parametrize("options", [pytest.param(o, marks=[pytest.mark.slow] * (o in SLOW)) for o in OPTIONS])
def test_sasrec_conforms_by_every_rule(options: str) -> None:
    case = ModelCase(SasRec, {**SMALL, **OPTIONS[options]}, {"model.embedding-dim": 16, **FEW_ROUNDS})
    report = run_all(case)
    assert report.passed, str(report)


@pytest.mark.parametrize("model", [sequences.Asks, sequences.FillsTheBlank], ids=lambda model: model.__name__)
def test_plain_models_with_rules_conform(model: type[sequences.Means]) -> None:
    report = run_all(ModelCase(model, settings=FEW_ROUNDS))
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("fault", "checks", "message"),
    [
        (sequences.ReadsTheCatalog, {"several_steps"}, r"three users, two epochs, the sum of deltas: 'met': it is"),
        (sequences.LooksUnderTheMask, {"causality"}, r"cells of which \d are hidden, and other items in these: it is"),
    ],
)
def test_a_planted_fault_is_found(fault: type[sequences.Means], checks: set[str], message: str) -> None:
    report = run_all(ModelCase(fault, settings=FEW_ROUNDS))
    assert set(report.failed) == checks, str(report)
    assert re.search(message, next(iter(report.failed.values()))), str(report)
