"""The conformance kit of models: what every Recommender must do, as functions that authors run.

    from fedrec_app.testing.models import CHECKS, ModelCase, applicable, run_all

    CASE = ModelCase(MyModel, {"my_option": 3}, {"train.num-negatives": 4})

    @pytest.mark.parametrize("check", applicable(CASE))
    def test_my_model_conforms(check):
        CHECKS[check](CASE)

    print(run_all(CASE))                                # without pytest

A case is a class, its options, and settings over its recipe; "num-server-rounds" bounds the rounds of the checks that
train it (they end as soon as it has learned enough). A model that recommends the same to everybody says so with the
class attribute `personal = False`.
"""

from __future__ import annotations

import torch

from fedrec_app.conformance import ConformanceError, Report, by_name, run
from fedrec_app.testing.model_case import ModelCase
from fedrec_app.testing.model_declarations import (
    check_cohort,
    check_names,
    check_options,
    check_recipe,
    check_seed,
    check_shapes,
)
from fedrec_app.testing.model_outputs import (
    check_empty_history,
    check_follows_parameters,
    check_inputs_unchanged,
    check_loss,
    check_met_rows,
    check_padding,
    check_scores,
    check_solve_private,
    check_units,
)
from fedrec_app.testing.model_training import (
    check_factorization,
    check_learns_tastes,
    check_placement,
    check_several_steps,
    check_training_reduces_the_loss,
)

__all__ = ["BASIC", "CHECKS", "ConformanceError", "ModelCase", "Report", "applicable", "run_all"]

CHECKS = by_name(
    check_options, check_recipe, check_names, check_shapes, check_loss, check_seed, check_cohort, check_units,
    check_padding, check_met_rows, check_scores, check_inputs_unchanged, check_empty_history, check_follows_parameters,
    check_several_steps, check_factorization, check_solve_private, check_placement, check_training_reduces_the_loss,
    check_learns_tastes,
)  # fmt: skip
"""Every check by name."""

BASIC = ("options", "recipe", "names", "shapes", "loss")
"""Checks without which those that follow mean nothing: `run_all` ends with the first of them that fails."""


def applicable(case: ModelCase) -> list[str]:
    """Returns the checks that a model must pass, by what it says of itself.

    "units", "several_steps" and "placement" are not for models with `couples_users`, "met_rows" not for those with
    `whole_catalog`, "factorization" and "solve_private" for those alone that declare them, and "learns_tastes" not for
    those with `personal = False`.
    """
    try:
        model = case.make()
    except Exception:
        model = case.model  # what keeps it from being made is for the first checks to say
    left_out = {
        **dict.fromkeys(("units", "several_steps", "placement"), model.couples_users),
        "met_rows": model.whole_catalog,
        "factorization": model.factorization is None,
        "solve_private": not model.solves_private,
        "learns_tastes": not getattr(model, "personal", True),
    }
    return [name for name in CHECKS if not left_out.get(name, False)]


def run_all(case: ModelCase) -> Report:
    """Returns what each check that applies found, on one thread: on tensors this small more would only wait.

    Args:
        case: the model, its options and its settings.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(CHECKS, applicable(case), case, BASIC)
    finally:
        torch.set_num_threads(threads)
