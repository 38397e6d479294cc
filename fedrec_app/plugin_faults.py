"""What is wrong with a class of somebody else's, and what to do about it, in words."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import PurePath
from types import ModuleType

from fedrec_app.errors import did_you_mean

_EXPECTED = '"package.module:Class" is expected'
_OURS = {"fedrec_app", "strategies", "importlib", "_frozen_importlib", "pydantic", "contextlib"}
_SHOWN = 8


def path_problem(path: str) -> str:
    """Returns why a text is no "package.module:Class", with what it may have meant, or ""."""
    if re.fullmatch(r"[^\W\d]\w*(\.\w+)*:\w+(\.\w+)*", path) and not re.search(r"\.py:", path):
        return ""
    file, _, name = path.partition(":")
    if file.endswith(".py") or "/" in file:
        module = f"{PurePath(file).stem}:{name or 'Class'}"
        return (
            f"{_EXPECTED}, and this is a file: put its folder on PYTHONPATH and say {module!r}, or make it a package "
            "and install that"
        )
    if re.fullmatch(r"[^\W\d]\w*(\.\w+)+", path):
        module, _, name = path.rpartition(".")
        return f"{_EXPECTED} (did you mean '{module}:{name}'?)"
    return _EXPECTED


def import_problem(error: BaseException, module: str, package: str) -> str:
    """Returns why a module cannot be imported, and what to do where that is known.

    Args:
        error: what importing it raised.
        module: its dotted name.
        package: "name version" of the installed package that offers it, or "".
    """
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return described(error, module)
    if f"{module}.".startswith(f"{error.name}."):
        return f"{_no_module(error.name)}{_correct(package)}"
    if _top(error.name) == _top(module):
        return described(error, module)
    otherwise = f", or uninstall {package.partition(' ')[0]}" if package else ""
    return f"{described(error, module)}: install it{otherwise}"


def missing_class(module: ModuleType, name: str, package: str) -> str:
    """Returns that a module has no such class, and which it has.

    Args:
        module: imported.
        name: of the class that is missing.
        package: "name version" of the installed package that offers it, or "".
    """
    own = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type)
        and not key.startswith("_")
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
    ]
    has = f"it has {', '.join(sorted(own))}" if 0 < len(own) <= _SHOWN else f"it has {len(own) or 'no'} classes"
    hint = did_you_mean(name, own, f"{module.__name__}:")
    return f"module {module.__name__!r} has no {name!r}: {has}{hint}{_correct(package)}"


def call_problem(error: BaseException, found: type, called_with: Sequence[str]) -> str:
    """Returns how the constructor of a class differs from how it is called, or "" where that is not what went wrong.

    Args:
        error: what calling it raised.
        found: the class.
        called_with: names of the arguments, which are given by position.
    """
    if not isinstance(error, TypeError):
        return ""
    try:
        signature = inspect.signature(found.__init__)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(None, *called_with)
    except TypeError:
        return f"its __init__ is {signature}, and is called with ({', '.join(['self', *called_with])}), by position"
    return ""


def described(error: BaseException, module: str) -> str:
    """Returns "KeyError: 'zz' (plug.py:4)": an exception, and the last line of its author's that it came through.

    Args:
        error: as it was caught.
        module: where the author's class is, or was to be; lines of the same package are his.
    """
    lines = [
        (_top(str(frame.f_globals.get("__name__", ""))), f"{frame.f_code.co_filename}:{number}")
        for frame, number in traceback.walk_tb(error.__traceback__)
    ]
    his = [line for top, line in lines if top == _top(module)] or [line for top, line in lines if top not in _OURS]
    # A syntax error says its own line, in a file that was never run.
    where = f" ({his[-1]})" if his and not isinstance(error, SyntaxError) else ""
    return f"{type(error).__name__}: {error}{where}"


def _no_module(missing: str) -> str:
    parent, _, name = missing.rpartition(".")
    if not parent:
        return f"there is no module {missing!r} here: is the package that holds it installed in this environment?"
    names = [found.name for found in pkgutil.iter_modules(getattr(sys.modules.get(parent), "__path__", []))]
    return f"there is no module {name!r} in {parent!r}{did_you_mean(name, names, f'{parent}.')}"


def _correct(package: str) -> str:
    if not package:
        return ""
    return f"; the entry point in the pyproject.toml of {package.partition(' ')[0]} names it: correct it, install again"


def _top(module: str) -> str:
    return module.partition(".")[0]
