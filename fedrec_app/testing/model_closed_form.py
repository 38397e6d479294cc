"""Checks of models that are solved from sums over users: their statistics, and what the server makes of them.

Each takes a `ModelCase` of a `ClosedForm` model and raises a ConformanceError where the model breaks its rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fedrec_app.conformance import check, giving, require
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.closed_form import ClosedForm, Sums
from fedrec_app.records import Arrays, from_record, to_record
from fedrec_app.testing.model_case import (
    NUM_ITEMS,
    ODD,
    ModelCase,
    catalog,
    cohort_of,
    company,
    differing,
    num_training,
)

_ROUNDING = 1e-6
_NOBODY = (("no users", cohort_of([])), ("two users who did nothing", cohort_of([[], []])))


@check
def check_statistics(case: ModelCase) -> None:
    """Statistics are plain arrays that arrive as they were sent, and asking for them changes nothing.

    A node's model is asked for them, whose parameters have shapes and no values.
    """
    for given, users in (("24 users", company()), ("five users", cohort_of(ODD)), *_NOBODY):
        node, before = case.node(users), _held(users)
        with giving(f"{given}, a model without values"):
            found, again = node.statistics(users), node.statistics(users)
        require(differing(_held(users), before, exact=True), f"{given}, what they did")
        require("" if isinstance(found, dict) and found else f"they are {found!r}, not arrays by name", given)
        for name, array in found.items():
            require(_unfit(name, array, node), f"{given}, {name!r}")
        require(differing(again, found, exact=True), f"{given} a second time")
        arrived = from_record(to_record(found))
        require(differing(arrived, found, exact=True), f"{given}, as they arrive")
        for name in found:
            kinds = arrived[name].dtype, found[name].dtype
            require("" if kinds[0] == kinds[1] else f"it is {kinds[0]}, not {kinds[1]}", f"{given}, {name!r} arrived")


def _held(users: Cohort) -> Arrays:
    """Returns copies of what there is of users."""
    held: dict[str, Histories] = {"train": users.train, "validation": users.validation, "test": users.test}
    return {f"{part} {name}": np.array(vars(lists)[name]) for part, lists in held.items() for name in vars(lists)}


def _unfit(name: str, array: NDArray, node: ClosedForm) -> str:
    """Returns why an array cannot be sent, or ""."""
    if not isinstance(name, str) or not name:
        return "the name is no text"
    if name in node.private_names():
        return "it has the name of private rows"
    if type(array) is not np.ndarray:
        return f"it is a {type(array).__name__}, not a numpy array"
    if array.dtype.kind not in "biuf" or not array.dtype.isnative:
        return f"it is {array.dtype.str}, not of plain numbers"
    return "" if array.flags.c_contiguous else "it is not C-contiguous"


@check
def check_solve(case: ModelCase) -> None:
    """Exactly the shared parameters are solved, float32 and finite; twice the same; of no statistics too."""
    nodes: list[tuple[str, Sequence[Cohort]]] = [("nothing added", [])]
    nodes += [(f"{name} alone", [users]) for name, users in _NOBODY]
    nodes += [("24 users", [company()]), ("24 users and five", [company(), cohort_of(ODD)])]
    for given, cohorts in nodes:
        with giving(given):
            sums = case.sums(cohorts)
            _require_parameters(case, sums, given)
    more = NUM_ITEMS + 3
    given = f"a catalog of {more} items"
    with giving(given):
        sums = case.sums([company(more)], catalog(more))
        _require_parameters(case, sums, given, more)
    nothing, solved = (case.sums(cohorts).solve() for cohorts in ([], [company()]))
    same = not differing(solved, nothing, exact=True)
    require("the parameters are those of nothing added" if same else "", "24 users")


def _require_parameters(case: ModelCase, sums: Sums, given: str, num_items: int = NUM_ITEMS) -> None:
    """Requires of a sum what `check_solve` says."""
    model, solved = case.bound(None, catalog(num_items)), sums.solve()
    wanted = model.shared_names()
    require("" if sorted(solved) == sorted(wanted) else f"there is {sorted(solved)}, not {sorted(wanted)}", given)
    for name, array in solved.items():
        shape = tuple(model.get_parameter(name).shape)
        fits = type(array) is np.ndarray and array.dtype == np.float32 and array.shape == shape
        found = f"it is {type(array).__name__} of {getattr(array, 'dtype', '?')}, {np.shape(array)}"
        require("" if fits else f"{found}, not float32 of {shape}", f"{given}, {name!r}")
        require("" if np.isfinite(array).all() else "it holds NaN or infinity", f"{given}, {name!r}")
    kept = {name: array.copy() for name, array in solved.items()}
    remarks = sums.remarks()
    texts = isinstance(remarks, list) and all(isinstance(remark, str) for remark in remarks)
    require("" if texts else f"they are {remarks!r}, not a list of texts", f"{given}, the remarks")
    for array in solved.values():
        array[...] = -1.0
    require(differing(sums.solve(), kept, exact=True), f"{given}, solved a second time")


@check
def check_statistics_are_sums(case: ModelCase) -> None:
    """Statistics come from what users did in training: not from their order, their names or what is held out.

    Nor do arrays grow with the users: whoever did what another did adds numbers, and no places.
    """
    users = company()
    expected = case.statistics(users)
    backwards = users.select(np.arange(len(users))[::-1].copy())
    renamed = replace(users, user_ids=tuple(f"another {name}" for name in users.user_ids))
    held = Histories.from_lists([[(user + 5) % NUM_ITEMS] for user in range(len(users))])
    others = (
        ("24 users in another order", backwards),
        ("24 users of other names", renamed),
        ("24 users with items held out", replace(users, validation=held, test=held)),
        ("24 users with items that are never negatives", replace(users, never_negative=held)),
    )
    for given, same in others:
        require(differing(case.statistics(same), expected, within=_ROUNDING), given)
    each = np.repeat(np.arange(len(users)), 2)
    twice = replace(users.select(each), user_ids=tuple(f"user {user}" for user in range(len(each))))
    for name, array in case.statistics(twice).items():
        # Where numbers outgrow their type, another form of the same sums may be the shorter one.
        if name in expected and array.dtype == expected[name].dtype:
            grown = array.shape != expected[name].shape
            told = f"it has shape {array.shape}, and {expected[name].shape} for each once: it holds users and not sums"
            require(told if grown else "", f"24 users, each twice, {name!r}")


@check
def check_additive(case: ModelCase) -> None:
    """Nodes give what all their users on one node give, in whatever order; nodes of nobody change nothing."""
    users = company()
    dealt = [users.select(np.arange(first, len(users), 5)) for first in range(5)]
    halves = [users.select(np.arange(12)), users.select(np.arange(12, 24))]
    alone = [users.select(np.array([user])) for user in np.flatnonzero(users.train.lengths)]
    expected = case.sums([users]).solve()
    for given, nodes in (
        ("two halves of 24 users", halves),
        ("24 users on five nodes", dealt),
        ("five nodes in another order", [dealt[at] for at in (3, 0, 4, 2, 1)]),
        (f"{len(alone)} nodes of one user", alone),
    ):
        require(differing(case.sums(nodes).solve(), expected, within=_ROUNDING), given)
    for given, nobody in _NOBODY:
        for nodes in ([nobody, users], [users, nobody]):
            found = case.sums(nodes).solve()
            require(differing(found, expected, exact=True), f"24 users, and a node of {given}")


@check
def check_sums_are_their_own(case: ModelCase) -> None:
    """A sum keeps nothing of the arrays it was given, and no other sum keeps anything of it."""
    nodes = [(case.statistics(users), num_training(users)) for users in (company(), cohort_of(ODD))]
    server = cast(ClosedForm, case.bound(None))
    with giving("nodes of 24 users and of five"):
        sums, other = server.sums(), server.sums()
        empty = other.solve()
        before = [{name: array.copy() for name, array in arrays.items()} for arrays, _ in nodes]
        for arrays, number in nodes:
            sums.add(arrays, number)
            sums.solve()  # what is solved on the way is not what is solved at last
    for (arrays, _), kept in zip(nodes, before, strict=True):
        require(differing(arrays, kept, exact=True), "24 users and five, the arrays that were added")
    for arrays, _ in nodes:
        for array in arrays.values():
            array[...] = 0
    expected = case.sums([company(), cohort_of(ODD)]).solve()
    require(differing(sums.solve(), expected, exact=True), "arrays that were written to after they were added")
    require(differing(other.solve(), empty, exact=True), "another sum that nothing was added to")
    require(differing(server.sums().solve(), empty, exact=True), "a new sum of the same model")
