"""Finding a class by name: built in, "package.module:Class", or an entry point of an installed package."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points

from fedrec_app.errors import ConfigError, unknown


def find(kind: str, name: str, built_in: Mapping[str, str], group: str) -> type:
    """Returns the class called `name`.

    Args:
        kind: what it is, for errors ("model").
        name: a built-in name, "package.module:Class", or the name of an entry point.
        built_in: name -> "package.module:Class"; an entry point never takes the place of one of these.
        group: the entry-point group that third-party packages use.

    Raises:
        ConfigError: nothing of that name, or it cannot be imported.
    """
    if name in built_in:
        return _load(kind, name, built_in[name])
    if ":" in name:
        return _load(kind, name, name)
    offered = {point.name: point for point in entry_points(group=group)}
    if name in offered:
        return _load(kind, name, offered[name].value)
    raise ConfigError(unknown(kind, name, [*built_in, *offered]) + ', or "package.module:Class"')


def names(built_in: Mapping[str, str], group: str) -> dict[str, str]:
    """Returns every name with where it comes from: "built-in" or the entry point's value."""
    third_party = {p.name: p.value for p in entry_points(group=group) if p.name not in built_in}
    return {**{name: "built-in" for name in built_in}, **third_party}


def _load(kind: str, name: str, path: str) -> type:
    module, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{kind} {name!r} cannot be loaded from {path!r}: {error}") from error
    if not isinstance(found, type):
        raise ConfigError(f"{kind} {name!r}: {path!r} is a {type(found).__name__}, a class is expected")
    return found
