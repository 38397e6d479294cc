"""What the conformance kits have in common: checks that say what they were given and what they found, and a report.

    @check
    def check_is_sorted(make: Callable[[], list[int]]) -> None:
        "The list is sorted."
        with giving("a new list"):
            found = make()
        require("" if found == sorted(found) else f"it is {found}", "a new list")

A check takes a subject of whatever kind and raises a ConformanceError where the subject breaks a rule. No kit needs
pytest.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

Subject = TypeVar("Subject")

_UNKNOWN = "no_such_option"
_OURS = {"fedrec_app", "strategies"}
_KITS = ("fedrec_app.conformance", "fedrec_app.testing", "strategies.testing")
_LIBRARIES = {"flwr", "numba", "numpy", "pandas", "pyarrow", "pydantic", "pydantic_core", "safetensors", "torch"}


class ConformanceError(AssertionError):
    """A subject does not do what every subject of its kind must do.

    Args:
        check: which rule it breaks.
        given: what it was given.
        found: what it did.
        raised: whether that was to raise an error of another kind.
    """

    def __init__(self, check: str, given: str, found: str, raised: bool = False) -> None:
        super().__init__(f"{check}: given {given}: {found}")
        self.check, self.given, self.found, self.raised = check, given, found, raised


class _Broken(Exception):
    """A rule is broken; the check's name is added by `check`."""

    def __init__(self, given: str, found: str) -> None:
        super().__init__(found)
        self.given, self.found = given, found


class _Raised(Exception):
    """The subject raised an error while it was given something."""

    def __init__(self, given: str, error: Exception) -> None:
        super().__init__(str(error))
        self.given, self.error = given, error


def require(problem: str, given: str) -> None:
    """Ends a check with what was found, unless that is "".

    Args:
        problem: what the subject did wrong.
        given: what it had been given.
    """
    if problem:
        raise _Broken(given, problem)


def require_options(schema: type[BaseModel], base: type[BaseModel]) -> None:
    """Ends a check where options are not of their base, have a default that does not do, or take any name.

    Args:
        schema: the options.
        base: what they must derive from.
    """
    if not issubclass(schema, base):
        require(f"{schema.__name__} does not derive from {base.__name__}", "`Options`")
    schema()
    try:
        schema.model_validate({_UNKNOWN: 1})
    except ValidationError:
        return
    require("it was accepted", f"the option {_UNKNOWN}")


@contextmanager
def giving(given: str) -> Iterator[None]:
    """Says what the subject is given meanwhile, for whatever it raises; blocks may be nested.

    Args:
        given: "six updates to aggregate".
    """
    try:
        yield
    except _Broken:
        raise
    except _Raised as raised:
        raise _Raised(f"{given}, {raised.given}", raised.error) from raised.error
    except Exception as error:
        raise _Raised(given, error) from error


def check(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
    """Returns the check with whatever goes wrong in it raised as a ConformanceError that names it."""

    @functools.wraps(function)
    def checked(subject: Subject) -> None:
        try:
            function(subject)
        except _Broken as broken:
            raise ConformanceError(name_of(function), broken.given, broken.found) from None
        except _Raised as raised:
            raise ConformanceError(name_of(function), raised.given, described(raised), True) from raised.error
        except Exception as error:
            rule = (function.__doc__ or "").split("\n")[0]
            raise ConformanceError(name_of(function), f"input for {rule!r}", described(error), True) from error

    return checked


def described(error: Exception) -> str:
    """Returns "KeyError: 'tabl' at halve.py:12": an exception in one line, and where the author's code raised it."""
    if isinstance(error, _Broken):
        return error.found
    error = error.error if isinstance(error, _Raised) else error
    text = " ".join(str(error).split())
    return (
        f"{type(error).__name__}: {text} at {_place(error)}" if text else f"{type(error).__name__} at {_place(error)}"
    )


def _place(error: Exception) -> str:
    """Returns the last "file:line" in a file of the author's that an exception came through, or else in one of fedrec's
    that is not the kit's."""
    frames = [
        (str(frame.f_globals.get("__name__", "")), f"{_shown(frame.f_code.co_filename)}:{line}")
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    own = [(name, place) for name, place in frames if not name.startswith(_KITS)]
    others = _LIBRARIES | sys.stdlib_module_names
    authors = [place for name, place in own if name.partition(".")[0] not in _OURS | others]
    ours = [place for name, place in own if name.partition(".")[0] in _OURS]
    return (authors or ours or [place for _, place in frames] or ["an unknown place"])[-1]


def _shown(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


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
        same: of failed checks that found the same as one before them, which one.
    """

    results: Mapping[str, str]
    not_run: tuple[str, ...] = ()
    same: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every check was run and passed."""
        return not self.failed and not self.not_run

    @property
    def failed(self) -> dict[str, str]:
        """The checks that failed, with what was found."""
        return {name: message for name, message in self.results.items() if message}

    def lines(self) -> list[tuple[str, str]]:
        """Returns ("passed", check), ("FAILED", what was found) and ("not run", check): one line for failures that are
        the same, which says in which checks."""
        found = []
        for name, message in self.results.items():
            again = [other for other, first in self.same.items() if first == name]
            if name not in self.same:
                also = f" (and the same in {', '.join(again)})" if again else ""
                found.append(("FAILED", message + also) if message else ("passed", name))
        return [*found, *(("not run", name) for name in self.not_run)]

    def __str__(self) -> str:
        return "\n".join(f"{word:<7} {text}" for word, text in self.lines())


def run(
    checks: Mapping[str, Callable[[Subject], None]],
    names: Iterable[str],
    subject: Subject,
    basic: Collection[str] = (),
    without: Mapping[str, Collection[str]] | None = None,
) -> Report:
    """Returns what checks found.

    Args:
        checks: every check of the kit, by name.
        names: those that apply, in order.
        subject: what is checked.
        basic: checks without which those after them mean nothing: the first of these to fail is the last to run.
        without: check -> checks after it whose failures follow from it, where it fails and raised no error.
    """
    results: dict[str, str] = {}
    not_run: list[str] = []
    same: dict[str, str] = {}
    first: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        results[name] = ""
        try:
            checks[name](subject)
        except ConformanceError as error:
            results[name] = str(error)
            if (before := first.setdefault(error.found, name)) != name:
                same[name] = before
            following = () if error.raised else (without or {}).get(name, ())
            blocked = waiting if name in basic else [other for other in waiting if other in following]
            if blocked:
                results[name] += "; what would fail for that alone is not run"
            not_run += blocked
            waiting = [other for other in waiting if other not in blocked]
    return Report(results, tuple(not_run), same)
