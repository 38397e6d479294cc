"""What the conformance kits have in common: checks that say what they were given and what they found, and a report.

    @check
    def check_is_sorted(make: Callable[[], list[int]]) -> None:
        "The list is sorted."
        found = make()
        require("" if found == sorted(found) else f"it is {found}", "a new list")

A check takes a subject of whatever kind and raises a ConformanceError where the subject breaks a rule. No kit needs
pytest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Subject = TypeVar("Subject")


class ConformanceError(AssertionError):
    """A subject does not do what every subject of its kind must do.

    Args:
        check: which rule it breaks.
        given: what it was given.
        found: what it did.
    """

    def __init__(self, check: str, given: str, found: str) -> None:
        super().__init__(f"{check}: given {given}: {found}")
        self.check, self.given, self.found = check, given, found


class _Broken(Exception):
    """A rule is broken; the check's name is added by `check`."""

    def __init__(self, given: str, found: str) -> None:
        super().__init__(found)
        self.given, self.found = given, found


def require(problem: str, given: str) -> None:
    """Ends a check with what was found, unless that is "".

    Args:
        problem: what the subject did wrong.
        given: what it had been given.
    """
    if problem:
        raise _Broken(given, problem)


def check(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
    """Returns the check with whatever goes wrong in it raised as a ConformanceError that names it."""

    @functools.wraps(function)
    def checked(subject: Subject) -> None:
        try:
            function(subject)
        except _Broken as broken:
            raise ConformanceError(name_of(function), broken.given, broken.found) from None
        except Exception as error:
            rule = (function.__doc__ or "").split("\n")[0]
            raise ConformanceError(
                name_of(function), f"input for {rule!r}", f"{type(error).__name__}: {error}"
            ) from error

    return checked


def name_of(function: Callable[..., None]) -> str:
    """Returns the name of a check: its function's without "check_"."""
    return function.__name__.removeprefix("check_")


def by_name(*checks: Callable[[Subject], None]) -> dict[str, Callable[[Subject], None]]:
    """Returns checks by their names, in this order."""
    return {name_of(function): function for function in checks}


@dataclass(frozen=True)
class Report:
    """What a kit found.

    Attributes:
        results: for each check that was run "", or how the subject failed it.
        not_run: checks that say nothing while one that comes before them fails.
    """

    results: Mapping[str, str]
    not_run: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check was run and passed."""
        return not self.failed and not self.not_run

    @property
    def failed(self) -> dict[str, str]:
        """The checks that failed, with what was found."""
        return {name: message for name, message in self.results.items() if message}

    def __str__(self) -> str:
        lines = [f"FAILED  {message}" if message else f"passed  {name}" for name, message in self.results.items()]
        return "\n".join([*lines, *(f"not run {name}" for name in self.not_run)])


def run(
    checks: Mapping[str, Callable[[Subject], None]],
    names: Iterable[str],
    subject: Subject,
    basic: Collection[str] = (),
) -> Report:
    """Returns what checks found.

    Args:
        checks: every check of the kit, by name.
        names: those that apply, in order.
        subject: what is checked.
        basic: checks without which those after them mean nothing: the first of these to fail is the last to run.
    """
    results: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        try:
            checks[name](subject)
        except ConformanceError as error:
            results[name] = str(error)
            if name in basic:
                break
        else:
            results[name] = ""
    return Report(results, tuple(waiting))
