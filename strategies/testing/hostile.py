"""Replies that must not be used, and the check that they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Message

from fedrec_app.client_part import ClientPart
from fedrec_app.conformance import check, described, require
from fedrec_app.records import CONTROL, DELTA, ROWS, Arrays, Said
from strategies.testing.harness import Make, Run, difference, not_finite
from strategies.testing.nodes import (
    PARAMS,
    TABLE,
    UNITS,
    Answer,
    contents,
    drawn,
    error_to,
    honest,
    reply_to,
    silent,
    trained_rows,
    whole,
)
from strategies.update import Update


def _spoiled(
    change: Callable[[Arrays, dict[str, Any]], Any], form: Callable[[Update], Update] = whole
) -> Callable[[Update], Answer]:
    """Returns how a node answers that changes the arrays and metrics of an honest reply in this form."""

    def spoil(update: Update) -> Answer:
        def answer(message: Message) -> list[Message]:
            arrays, said = contents(message, form(update))
            change(arrays, said)
            return [reply_to(message, arrays, said)]

        return answer

    return spoil


def _bad_rows(change: Callable[[Any], Any]) -> Callable[[Update], Answer]:
    """Returns how a node answers that sends trained rows alone and changes their positions."""
    return _spoiled(lambda a, s: a.update({ROWS + TABLE: change(a[ROWS + TABLE])}), trained_rows)


_TABLE = DELTA + TABLE
HOSTILE: dict[str, Callable[[Update], Answer]] = {
    "NaN": _spoiled(lambda a, s: a[_TABLE].__setitem__((0, 0), np.nan)),
    "infinity": _spoiled(lambda a, s: a[_TABLE].__setitem__((0, 0), np.inf)),
    "a wrong shape": _spoiled(lambda a, s: a.update({_TABLE: a[_TABLE][:2]})),
    "a shape that would broadcast": _spoiled(lambda a, s: a.update({_TABLE: a[_TABLE][:1]})),
    "a wrong dtype": _spoiled(lambda a, s: a.update({_TABLE: a[_TABLE].astype(np.float16)})),
    "a missing array": _spoiled(lambda a, s: a.pop(_TABLE)),
    "an extra array": _spoiled(lambda a, s: a.update({DELTA + "extra": np.ones(1, dtype=np.float32)})),
    "a negative weight": _spoiled(lambda a, s: s.update({Said.WEIGHT: -2.0})),
    "a huge weight": _spoiled(lambda a, s: s.update({Said.WEIGHT: 1e12})),
    "a weight above its number of users and examples": _spoiled(lambda a, s: s.update({Said.WEIGHT: 2.0 * UNITS})),
    "a weight of NaN": _spoiled(lambda a, s: s.update({Said.WEIGHT: float("nan")})),
    "another round": _spoiled(lambda a, s: s.update({Said.ROUND: 7})),
    "no weight": _spoiled(lambda a, s: s.pop(Said.WEIGHT)),
    "the same row twice": _bad_rows(lambda rows: rows[[0, 0, *range(2, len(rows))]]),
    "rows that go down": _bad_rows(lambda rows: rows[::-1]),
    "a negative row": _bad_rows(lambda rows: rows - rows[0] - 1),
    "a row beyond the last": _bad_rows(lambda rows: rows + len(PARAMS[TABLE])),
    "rows that are not int32": _bad_rows(lambda rows: rows.astype(np.int64)),
    "more rows than deltas": _bad_rows(lambda rows: np.arange(len(rows) + 1, dtype=np.int32)),
    "rows of a parameter that has none": _spoiled(lambda a, s: a.update({ROWS + "bias": np.arange(4, dtype=np.int32)})),
    "an error": lambda update: lambda message: [error_to(message)],
}
"""What a node may send that must not be used, by what is wrong with it: how it answers, given its honest update."""

_CONTROL = CONTROL + TABLE
_CONTROLS: dict[str, Callable[[Update], Answer]] = {
    "no control": _spoiled(lambda a, s: a.pop(_CONTROL)),
    "a control of NaN": _spoiled(lambda a, s: a[_CONTROL].__setitem__((0, 0), np.nan)),
    "an infinite control": _spoiled(lambda a, s: a[_CONTROL].__setitem__((0, 0), np.inf)),
    "a control of a wrong shape": _spoiled(lambda a, s: a.update({_CONTROL: a[_CONTROL][:2]})),
    "a control of a shape that would broadcast": _spoiled(lambda a, s: a.update({_CONTROL: a[_CONTROL][:1]})),
    "a control of a wrong dtype": _spoiled(lambda a, s: a.update({_CONTROL: a[_CONTROL].astype(np.float64)})),
    "a control of a parameter that there is not": _spoiled(
        lambda a, s: a.update({CONTROL + "extra": np.ones(1, dtype=np.float32)})
    ),
}


def hostile_answers(part: type[ClientPart] | None) -> dict[str, Callable[[Update], Answer]]:
    """Returns `HOSTILE`, and what may be wrong with the scalars and controls that a client part sends, or does not."""
    answers = dict(HOSTILE)
    for name in part.scalars if part is not None else ():
        answers[f"no {name}"] = _spoiled(lambda a, s, name=name: s.pop(name))
        for given, value in (("a negative", -1.0), ("a huge", 1e300), ("a NaN for", float("nan")), ("a list for", [1])):
            answers[f"{given} {name}"] = _spoiled(lambda a, s, name=name, value=value: s.update({name: value}))
    if part is not None and part.has_controls:
        return {**answers, **_CONTROLS}
    unasked = _spoiled(lambda a, s: a.update({_CONTROL: np.zeros_like(PARAMS[TABLE])}))
    return {**answers, "a control that nobody asked for": unasked}


@check
def check_hostile_replies(make: Make) -> None:
    """A bad reply is dropped and counted, and the rest is aggregated as if it had not come."""
    updates = [drawn(label) for label in range(6)]
    good = [honest(update) for update in updates]
    complete, incomplete = Run(make, good).round(), Run(make, [good[0], silent, *good[2:]]).round()
    answers = hostile_answers(make().client_part)
    cases = {given: (lie(updates[1]), incomplete) for given, lie in answers.items()}
    cases["a second reply of the same node"] = (lambda message: good[1](message) + good[2](message), complete)
    cases["a reply of a node that was not asked, beside that"] = (_with_stranger(good[1]), complete)
    problems = {}
    for given, (answer, right) in cases.items():
        if problem := _problem(Run(make, [good[0], answer, *good[2:]]), right):
            problems[given] = problem
    if problems:
        given, problem = next(iter(problems.items()))
        others = f" (and {len(problems) - 1} others: {', '.join([*problems][1:])})" if len(problems) > 1 else ""
        require(problem, f"{given} from one of six nodes{others}")


def _with_stranger(answer: Answer) -> Answer:
    def both(message: Message) -> list[Message]:
        stranger = Message(message.content, 9999, message.metadata.message_type, group_id=message.metadata.group_id)
        return answer(message) + answer(stranger)

    return both


def _problem(run: Run, right: Arrays) -> str:
    try:
        found = run.round(may_skip=True)
    except Exception as error:
        return f"raised {described(error)}"
    if problem := not_finite(found) or difference(found, right):
        return problem
    return "" if run.dropped() == 1 else f"{run.dropped()} replies are counted under 'dropped/...', not 1"
