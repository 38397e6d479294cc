"""The conformance kit of models: what every Recommender must do, as functions that authors run.

    from fedrec_app.testing.models import CHECKS, ModelCase, applicable, run_all

    CASE = ModelCase(MyModel, {"my_option": 3}, {"train.num-negatives": 4})

    @pytest.mark.parametrize("check", applicable(CASE))
    def test_my_model_conforms(check):
        CHECKS[check](CASE)

    print(run_all(CASE))                                # without pytest

A case is a class, its options, and settings over its recipe; "num-server-rounds" bounds the rounds of the checks that
train it (they end as soon as it has learned enough). A model that recommends the same to everybody says so with the
class attribute `personal = False`. Of a model of the class `ClosedForm`, which has no loss, statistics and what is
solved from them are checked in place of its training.
"""

from __future__ import annotations

import torch

from fedrec_app.conformance import ConformanceError, Report, by_name, run
from fedrec_app.testing.model_case import ModelCase
from fedrec_app.testing.model_closed_form import (
    check_additive,
    check_solve,
    check_statistics,
    check_statistics_are_sums,
    check_sums_are_their_own,
)
from fedrec_app.testing.model_declarations import (
    check_cohort,
    check_names,
    check_options,
    check_recipe,
    check_seed,
    check_shapes,
)
from fedrec_app.testing.model_liars import (
    check_refuses_what_is_beyond_its_users,
    check_refuses_what_is_malformed,
    check_solve_survives_liars,
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
from fedrec_app.testing.model_sequences import (
    check_causality,
    check_front_padding,
    check_last_items,
    check_one_item,
)
from fedrec_app.testing.model_training import (
    check_factorization,
    check_learns_tastes,
    check_placement,
    check_several_steps,
    check_training_reduces_the_loss,
)

__all__ = ["BASIC", "CHECKS", "ConformanceError", "ModelCase", "Report", "applicable", "run_all"]

SEQUENCES = by_name(check_front_padding, check_causality, check_last_items, check_one_item)
"""Checks of models with `sampling = "sequence"` alone, by name."""

TRAINING = by_name(
    check_loss, check_units, check_padding, check_met_rows, check_several_steps, check_factorization,
    check_training_reduces_the_loss,
) | SEQUENCES  # fmt: skip
"""Checks of a loss and of training by it, by name."""

SOLVING = by_name(
    check_statistics, check_solve, check_statistics_are_sums, check_additive, check_sums_are_their_own,
    check_refuses_what_is_malformed, check_refuses_what_is_beyond_its_users, check_solve_survives_liars,
)  # fmt: skip
"""Checks of `ClosedForm` models alone, by name."""

CHECKS = by_name(
    check_options, check_recipe, check_names, check_shapes, check_loss, check_statistics, check_solve, check_seed,
    check_cohort, check_statistics_are_sums, check_additive, check_sums_are_their_own, check_refuses_what_is_malformed,
    check_refuses_what_is_beyond_its_users, check_solve_survives_liars, check_units, check_padding, check_met_rows,
    check_front_padding, check_causality, check_last_items, check_one_item, check_scores, check_inputs_unchanged,
    check_empty_history, check_follows_parameters, check_several_steps, check_factorization, check_solve_private,
    check_placement, check_training_reduces_the_loss, check_learns_tastes,
)  # fmt: skip
"""Every check by name."""

BASIC = ("options", "recipe", "names", "shapes", "loss", "statistics", "solve")
"""Checks without which those that follow mean nothing: `run_all` ends with the first of them that fails."""


def applicable(case: ModelCase) -> list[str]:
    """Returns the checks that a model must pass, by what it says of itself.

    "units", "several_steps" and "placement" are not for models with `couples_users`, "met_rows" not for those with
    `whole_catalog`, "factorization" and "solve_private" for those alone that declare them, and "learns_tastes" not for
    those with `personal = False`. Those of `SOLVING` are for models of the class `ClosedForm`, those of `TRAINING` for
    all others; of these `SEQUENCES` take the place of "padding" and "met_rows" where `sampling` is "sequence".
    """
    try:
        model = case.make()
    except Exception:
        model = case.model  # what keeps it from being made is for the first checks to say
    sequences = case.trained and model.sampling == "sequence"
    left_out = {
        **dict.fromkeys(("units", "several_steps", "placement"), model.couples_users),
        **dict.fromkeys(SEQUENCES, not sequences),
        "padding": sequences,
        "met_rows": model.whole_catalog or sequences,
        "factorization": model.factorization is None,
        "solve_private": not model.solves_private,
        "learns_tastes": not getattr(model, "personal", True),
    }
    of_the_other_kind = SOLVING if case.trained else TRAINING
    return [name for name in CHECKS if name not in of_the_other_kind and not left_out.get(name, False)]


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
