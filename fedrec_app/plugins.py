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
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from fedrec_app.errors import ConfigError, FedrecError, unknown

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
                else, or it was written for another API.
        """
        return self._checked(name, *_located(self.kind, name, self.built_in, self.group))

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
            raise ConfigError(f"{self.kind} {name!r} is {found.__name__}, which is not a {self.contract}")
        if inspect.isabstract(found):
            lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
            raise ConfigError(f"{self.kind} {name!r}: {found.__name__} does not define {lacking}")
        return found


def find(kind: str, name: str, built_in: Mapping[str, str], group: str) -> type:
    """Returns the class called `name`, whatever it derives from; see `Registry`."""
    return load(kind, name, *_located(kind, name, built_in, group))


def load(kind: str, name: str, path: str, package: str = "") -> type:
    """Returns the class at a path.

    Args:
        kind: what it is, for errors.
        name: what it was asked for as.
        path: "package.module:Class".
        package: which installed package offers it, "" where none does.

    Raises:
        ConfigError: it cannot be imported, is no class, or was written for another API.
    """
    offered = f" of package {package}" if package else ""
    where = f"{kind} {name!r} cannot be loaded from {path!r}{offered}"
    module, _, attributes = path.partition(":")
    if not module or not attributes:
        raise ConfigError(f'{where}: "package.module:Class" is expected')
    try:
        found = functools.reduce(getattr, attributes.split("."), importlib.import_module(module))
    except Exception as error:  # a module of somebody else's may raise anything
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(found, type):
        raise ConfigError(f"{kind} {name!r}: {path!r} is a {type(found).__name__}, a class is expected")
    check_api_version(kind, name, found, package.partition(" ")[0] or module.partition(".")[0])
    return found


def check_api_version(kind: str, name: str, found: type, package: str) -> None:
    """Raises a ConfigError that says what to do where a class was written for another `API_VERSION`.

    Args:
        kind: what it is, for the error.
        name: what it is called.
        found: the class; without an `api_version`, or with None, it is taken.
        package: where it comes from.
    """
    declared = getattr(found, "api_version", None)
    if declared is None or declared == API_VERSION:
        return
    if not isinstance(declared, int):
        raise ConfigError(f"{kind} {name!r}: its api_version is {declared!r}, a whole number is expected")
    newer = f"update fedrec, or install a version of {package!r} for API {API_VERSION}"
    older = f"update {package!r}, or install a fedrec with API {declared}"
    raise ConfigError(
        f"{kind} {name!r} was written for fedrec's plug-in API {declared}, this is {API_VERSION}: "
        f"{newer if declared > API_VERSION else older}"
    )


def _located(kind: str, name: str, built_in: Mapping[str, str], group: str) -> tuple[str, str]:
    """Returns the "package.module:Class" of a name, and which package offers it, "" where none does."""
    offers = _offered(group).get(name, [])
    if name in built_in:
        for point in offers:
            _say_ignored(kind, name, _package(point), _by_path(point))
        return built_in[name], ""
    if ":" in name:
        return name, ""
    if not offers:
        allowed = unknown(kind, name, [*built_in, *_offered(group)])
        raise ConfigError(f'{allowed}, or "package.module:Class" (a plug-in must be installed where the run runs)')
    if len(offers) > 1:
        both = " and ".join(_package(point) for point in offers)
        paths = " or ".join(repr(point.value) for point in offers)
        raise ConfigError(f"{kind} {name!r} is offered by {both}: uninstall one, or name the class, {paths}")
    return offers[0].value, _package(offers[0])


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


def _by_path(point: EntryPoint) -> str:
    return f"its class path {point.value!r} works"
