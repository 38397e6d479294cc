"""Classes by name: built in, "package.module:Class", or an entry point of an installed package.

A built-in wins over an entry point of its name, and the package that is passed over is named in a warning: installing a
package neither changes nor breaks a run that worked before. Two packages that offer one name are an error, because
either choice would depend on what else is installed.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from fedrec_app.errors import ConfigError, FedrecError, unknown
from fedrec_app.options import schema_problem
from fedrec_app.plugin_faults import call_problem, described, import_problem, missing_class, path_problem

API_VERSION = 1
_BUILT_IN = "built-in"

Base = TypeVar("Base")


@dataclass(frozen=True)
class Entry(Generic[Base]):
    """A name that is offered.

    Attributes:
        name: what settings call it.
        source: "built-in", or the package and its version.
        path: "package.module:Class".
        found: the class; None where there is a problem.
        problem: why the name does not lead to this class, or "".
    """

    name: str
    source: str
    path: str
    found: type[Base] | None = None
    problem: str = ""


@dataclass(frozen=True)
class Registry(Generic[Base]):
    """The classes of one kind by name.

    Attributes:
        kind: what they are, for errors ("model").
        built_in: name -> "package.module:Class".
        group: the entry-point group that packages use.
        base: what each of them derives from.
        contract: what `base` is called where authors import it.
    """

    kind: str
    built_in: Mapping[str, str]
    group: str
    base: type[Base]
    contract: str

    def find(self, name: str) -> type[Base]:
        """Returns the class of a name.

        Args:
            name: a built-in name, "package.module:Class", or the name of an entry point.

        Raises:
            ConfigError: nothing of that name, two packages offer it, it cannot be imported, it derives from something
                else, its options are no schema, or it was written for another API.
        """
        return self._checked(name, *self._located(name))

    def names(self) -> list[str]:
        """Returns the names that `find` takes, sorted; whether their classes can be imported is not looked at."""
        unambiguous = (name for name, points in _offered(self.group).items() if len(points) == 1)
        return sorted({*self.built_in, *unambiguous})

    def listing(self) -> list[Entry[Base]]:
        """Returns everything that is offered, built-ins first, then by name; a broken plug-in comes with its reason."""
        entries = [self._entry(name, _BUILT_IN, path, "") for name, path in sorted(self.built_in.items())]
        for name, points in sorted(_offered(self.group).items()):
            for point in points:
                others = [_package(other) for other in points if other is not point]
                problem = ""
                if name in self.built_in:
                    problem = f"ignored: {name!r} is the name of a built-in {self.kind}; {_by_path(point)}"
                elif others:
                    problem = f"ignored: {' and '.join(others)} offers {name!r} too; {_by_path(point)}"
                entries.append(self._entry(name, _package(point), point.value, problem))
        return entries

    def _entry(self, name: str, source: str, path: str, problem: str) -> Entry[Base]:
        if problem:
            return Entry(name, source, path, None, problem)
        try:
            return Entry(name, source, path, self._checked(name, path, "" if source == _BUILT_IN else source))
        except FedrecError as error:
            return Entry(name, source, path, None, f"broken: {error}")

    def _checked(self, name: str, path: str, package: str) -> type[Base]:
        found = load(self.kind, name, path, package)
        if not issubclass(found, self.base):
            raise ConfigError(
                f"{self.kind} {name!r} is the class {path!r}{_of(package)}, which does not derive from {self.contract}"
            )
        if inspect.isabstract(found):
            lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
            raise ConfigError(f"{self.kind} {name!r}: {found.__name__} does not define {lacking}")
        return found

    def _located(self, name: str) -> tuple[str, str]:
        """Returns the "package.module:Class" of a name, and which package offers it, "" where none does."""
        offers = _offered(self.group).get(name, [])
        if name in self.built_in:
            for point in offers:
                _say_ignored(self.kind, name, _package(point), _by_path(point))
            return self.built_in[name], ""
        if ":" in name:
            return name, ""
        if not offers:
            raise self._unknown(name)
        if len(offers) > 1:
            both = " and ".join(_package(point) for point in offers)
            paths = " or ".join(repr(point.value) for point in offers)
            raise ConfigError(f"{self.kind} {name!r} is offered by {both}: uninstall one, or name the class, {paths}")
        return offers[0].value, _package(offers[0])

    def _unknown(self, name: str) -> ConfigError:
        if problem := path_problem(name) if "." in name or "/" in name else "":
            return ConfigError(f"unknown {self.kind} {name!r}: {problem}")
        works = {entry.name for entry in self.listing() if entry.found is not None}
        return ConfigError(
            f'{unknown(self.kind, name, works)}, or "package.module:Class" (a plug-in must be installed where the run '
            "runs)"
        )


def load(kind: str, name: str, path: str, package: str = "") -> type:
    """Returns the class at a path.

    Args:
        kind: what it is, for errors.
        name: what it was asked for as.
        path: "package.module:Class".
        package: which installed package offers it, "" where none does.

    Raises:
        ConfigError: it cannot be imported, is no class, its options are no schema, or it was written for another API.
    """
    where = f"{kind} {name!r} cannot be loaded{'' if name == path else f' from {path!r}'}{_of(package)}"
    if problem := path_problem(path):
        raise ConfigError(f"{where}: {problem}")
    module, _, attributes = path.partition(":")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module of somebody else's may raise anything
        raise ConfigError(f"{where}: {import_problem(error, module, package)}") from error
    try:
        found = functools.reduce(getattr, attributes.split("."), imported)
    except AttributeError as error:
        raise ConfigError(f"{where}: {missing_class(imported, attributes, package)}") from error
    if not isinstance(found, type):
        raise ConfigError(f"{kind} {name!r}: {path!r}{_of(package)} is a {type(found).__name__}, a class is expected")
    check_declarations(kind, name, found, package.partition(" ")[0] or module.partition(".")[0])
    return found


@contextmanager
def plug_in_code(kind: str, name: str, found: type, group: str, called_with: Sequence[str]) -> Iterator[None]:
    """Runs what may be somebody else's constructor; what it raises becomes an error that names it and its line.

    Args:
        kind: what it is, for the error.
        name: what settings call it.
        found: the class that is called.
        group: the entry-point group of its kind.
        called_with: names of the arguments, which are given by position.

    Raises:
        ConfigError: anything was raised that is no FedrecError.
    """
    try:
        yield
    except FedrecError:
        raise
    except (Exception, SystemExit) as error:
        path = f"{found.__module__}:{found.__qualname__}"
        points = [point for offers in _offered(group).values() for point in offers if point.value == path]
        # A name that is a path says it already.
        where = "" if ":" in name or name.endswith(".py") else f" ({path}{_of(_package(points[0])) if points else ''})"
        why = call_problem(error, found, called_with) or described(error, found.__module__)
        raise ConfigError(f"{kind} {name!r}{where} cannot be made: {why}") from error


def check_declarations(kind: str, name: str, found: type, package: str) -> None:
    """Raises a ConfigError that says what to do where a class was written for another `API_VERSION`, or its `Options`
    are no schema or have a default that does not fit.

    Args:
        kind: what it is, for the error.
        name: what it is called.
        found: the class; without an `api_version`, or with None, it is taken.
        package: where it comes from.
    """
    declared = getattr(found, "api_version", None)
    if declared is not None and not isinstance(declared, int):
        raise ConfigError(f"{kind} {name!r}: its api_version is {declared!r}, a whole number is expected")
    if declared not in (None, API_VERSION):
        newer = f"update fedrec, or install a version of {package!r} for API {API_VERSION}"
        older = f"update {package!r}, or install a fedrec with API {declared}"
        raise ConfigError(
            f"{kind} {name!r} was written for fedrec's plug-in API {declared}, this is {API_VERSION}: "
            f"{newer if declared > API_VERSION else older}"
        )
    if hasattr(found, "Options") and (problem := schema_problem(found.Options)):
        raise ConfigError(f"{kind} {name!r}: {problem}")


def _offered(group: str) -> dict[str, list[EntryPoint]]:
    return _scanned(group, tuple(sys.path))


@functools.lru_cache(maxsize=16)
def _scanned(group: str, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """Returns the entry points by name; remembered, because nodes look models up for each message."""
    by_name: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=group), key=_package):
        by_name.setdefault(point.name, []).append(point)
    return by_name


@functools.lru_cache(maxsize=64)
def _say_ignored(kind: str, name: str, package: str, hint: str) -> None:
    logging.getLogger("fedrec").warning(
        "%s %r is the built-in one: that of package %s is ignored; %s", kind, name, package, hint
    )


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "?"


def _of(package: str) -> str:
    return f" of package {package}" if package else ""


def _by_path(point: EntryPoint) -> str:
    return f"its class path {point.value!r} works"
