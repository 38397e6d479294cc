"""Checks of models that are solved from sums over users: what nodes that lie can do to them.

Each takes a `ModelCase` of a `ClosedForm` model and raises a ConformanceError where the model breaks its rule.
"""

from __future__ import annotations

import numpy as np

from fedrec_app.conformance import check, described, giving, require
from fedrec_app.data.cohort import Cohort
from fedrec_app.models.closed_form import Sums
from fedrec_app.records import Arrays
from fedrec_app.testing.hostile_statistics import MOST_USERS, beyond, extreme, malformed
from fedrec_app.testing.model_case import (
    NUM_ITEMS,
    ModelCase,
    catalog,
    cohort_of,
    company,
    differing,
    num_training,
)

_MANY_ITEMS = 60
_LIARS = 5
_LARGE = 1e-3


@check
def check_refuses_what_is_malformed(case: ModelCase) -> None:
    """Statistics of wrong names, types, shapes or numbers are refused with a ValueError, and leave nothing behind."""
    few = company(_MANY_ITEMS, 2)
    # Of few pairs among many items other arrays may be sent than of many pairs among few.
    for users, num_items in ((company(), NUM_ITEMS), (few, _MANY_ITEMS)):
        for what, arrays in malformed(case.statistics(users, catalog(num_items))):
            _require_refused(case, users, num_items, arrays, num_training(users), what)


@check
def check_refuses_what_is_beyond_its_users(case: ModelCase) -> None:
    """Statistics that so many users cannot have are refused with a ValueError, and leave nothing behind."""
    users = company()
    for what, arrays, claimed in beyond(case.statistics(users), num_training(users)):
        _require_refused(case, users, NUM_ITEMS, arrays, claimed, what)


def _require_refused(case: ModelCase, users: Cohort, num_items: int, arrays: Arrays, claimed: int, what: str) -> None:
    """Requires that a sum with users in it refuses arrays and goes on as if nobody had sent them.

    Args:
        case: of the model.
        users: of an honest node.
        num_items: of the catalog.
        arrays: of a node that lies.
        claimed: how many users it says it has.
        what: is wrong with them.
    """
    given = f"{what}, of a node of {claimed} users"
    items = catalog(num_items)
    sums, honest = case.sums([users], items), case.sums([users], items)
    try:
        sums.add({name: array.copy() for name, array in arrays.items()}, claimed)
    except ValueError:
        pass
    except Exception as error:
        require(f"it raised {described(error)}, not a ValueError", given)
    else:
        require("it was added", given)
    with giving(f"{given}, what is solved after it"):
        require(differing(sums.solve(), honest.solve(), exact=True), f"{given}, the sum after it")
        for each in (sums, honest):
            _add_a_user(case, each, num_items)
        require(differing(sums.solve(), honest.solve(), exact=True), f"{given}, the sum with a node after it")


def _add_a_user(case: ModelCase, sums: Sums, num_items: int) -> None:
    users = cohort_of([[0, 3, 1]], num_items)
    sums.add(case.statistics(users, catalog(num_items)), 1)


@check
def check_solve_survives_liars(case: ModelCase) -> None:
    """Whatever numbers are taken in from many huge nodes, parameters are solved, finite, and not turned over.

    Numbers that outgrow their type would be: what one huge node says, more of them that say the same do not take back.
    """
    for what, arrays in extreme(case.statistics(company())):
        sums, first = case.sums([company()]), {}
        for number in range(1, _LIARS + 1):
            given = f"{number} nodes of {MOST_USERS} users, {what}"
            try:
                sums.add({name: array.copy() for name, array in arrays.items()}, MOST_USERS)
            except ValueError:
                break
            with giving(given):
                solved = sums.solve()
            first = first or solved
            for name, array in solved.items():
                require("" if np.isfinite(array).all() else "it holds NaN or infinity", f"{given}, {name!r}")
                large = np.abs(first[name]) > _LARGE * np.abs(first[name]).max(initial=0)
                turned = (np.sign(array) != np.sign(first[name])) & large
                require("signs are not those of one such node" if turned.any() else "", f"{given}, {name!r}")
