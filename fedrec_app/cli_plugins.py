"""`fedrec strategy list`, `fedrec model list`, `fedrec data list`: names, where they come from, and their options."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedrec_app.cli_check import class_at
from fedrec_app.errors import ConfigError, unknown
from fedrec_app.plugins import Entry, Registry

stdout, stderr = Console(), Console(stderr=True)
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


@dataclass(frozen=True)
class Option:
    """One option of a strategy, a model or a data set.

    Attributes:
        name: its key in the JSON object.
        type: "number", "one of mean, median", "number > 0 or text", ...
        default: as JSON; "" where it must be given.
        allowed: the range of a number, "> 0, < 1", or "".
        what: its description, or "".
    """

    name: str
    type: str
    default: str
    allowed: str
    what: str


def options_of(schema: type[BaseModel]) -> list[Option]:
    """Returns the options that a pydantic schema describes, in its order."""
    described = schema.model_json_schema()
    options = []
    for name, field in described.get("properties", {}).items():
        default = json.dumps(field["default"], ensure_ascii=False) if "default" in field else ""
        kinds = _kinds(field, described.get("$defs", {}))
        if len(kinds) == 1:
            what_type, allowed = _type(kinds[0]), _bounds(kinds[0])
        else:
            what_type, allowed = " or ".join(f"{_type(kind)} {_bounds(kind)}".strip() for kind in kinds), ""
        what = field.get("description", "")
        options.append(Option(name, what_type, default, allowed, what))
    return options


def summary_of(found: type) -> str:
    """Returns what a class is, in one line: its own summary, the first line of its own docstring, or its path.

    What it inherits says what its base is.
    """
    for name in ("summary_line", "summary"):
        if isinstance(text := vars(found).get(name), str) and text:
            return text
    line = inspect.cleandoc(found.__doc__ or "").partition("\n")[0]
    return line or f"{found.__module__}:{found.__qualname__}"


def add_list(commands: typer.Typer, kinds: str, registry: Callable[[], Registry[Any]]) -> None:
    """Adds the command `list`.

    Args:
        commands: to add to.
        kinds: what it lists, "strategies".
        registry: returns what it lists; called when the command runs, for a fast command line.
    """

    @commands.command("list", help=f"List the {kinds} that are installed, where each comes from, and its options.")
    def list_installed(
        name: Annotated[
            str, typer.Argument(help="Show this one in full: a name, package.module:Class, or file.py:Class.")
        ] = "",
        options: Annotated[
            bool, typer.Option("--options", help="Show all options in full, those of parts too.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    ) -> None:
        show_list(registry(), name, options, as_json)


def show_list(registry: Registry[Any], name: str, with_options: bool, as_json: bool) -> None:
    """Prints what a registry holds.

    Args:
        registry: which.
        name: the one to show in full, by name, "package.module:Class", "file.py" or "file.py:Class"; "" for all.
        with_options: show the options of all, and what those of a strategy's parts do.
        as_json: print a JSON list, with everything in it.

    Raises:
        ConfigError: no such name or class.
    """
    described = [_described(entry) for entry in registry.listing() if name in ("", entry.name)]
    if not described and re.search(r":|\.py$", name):
        described = [_described(_at(registry, name))]
    if not described:
        raise ConfigError(unknown(registry.kind, name, {entry.name for entry in registry.listing()}))
    if as_json:
        print(json.dumps(described, ensure_ascii=False))
        return
    if not name:
        stdout.print(_overview(described))
    if name or with_options:
        for entry in described:
            _print_entry(entry)
            if not entry["options"] and not entry["problem"]:
                _print_line(2, "", "takes no options")
        asked = {option["name"] for entry in described for option in entry["options"]}
        _print_parts(asked if registry.kind == "strategy" else (), with_options)


def _at(registry: Registry[Any], path: str) -> Entry[Any]:
    """Returns the class at a path as an entry, whether it is installed or not."""
    found = class_at(registry, path)
    return Entry(getattr(found, "name", "") or found.__name__, "by path", path, found)


def _described(entry: Entry[Any]) -> dict[str, Any]:
    """Returns an entry as a JSON object; options that cannot be described make it a broken one."""
    options: list[Option] = []
    what, problem = entry.problem, entry.problem
    if entry.found is not None:
        what = summary_of(entry.found)
        try:
            schema = getattr(entry.found, "Options", None)
            options = options_of(schema) if schema is not None else []
        except Exception as error:  # the schema is somebody else's
            what = problem = f"broken: its Options cannot be described: {type(error).__name__}: {error}"
    return {
        "name": entry.name,
        "source": entry.source,
        "path": entry.path,
        "what": what,
        "problem": problem,
        "options": [asdict(option) for option in options],
    }


def _overview(described: list[dict[str, Any]]) -> Table:
    table = Table("name", "source", "what it is, and its options", show_lines=True)
    for entry in described:
        what = f"[red]{escape(entry['what'])}[/]" if entry["problem"] else escape(entry["what"])
        options = [f"  {option['name']}: {_values(option)}" for option in entry["options"]]
        table.add_row(escape(entry["name"]), escape(entry["source"]), "\n".join([what, *map(escape, options)]))
    return table


def _print_entry(entry: dict[str, Any], indent: int = 0, in_full: bool = True) -> None:
    style = "red" if entry["problem"] else ""
    _print_line(indent, entry["name"], f" ({entry['source']}): {entry['what']}", style)
    for option in entry["options"]:
        _print_line(indent + 2, option["name"], f": {_values(option)}")
        if in_full and option["what"]:
            _print_line(indent + 6, "", option["what"])


def _print_line(indent: int, name: str, text: str, style: str = "") -> None:
    # Not a table: beside other columns there is no room for sentences on 80 characters.
    first, rest = " " * indent, " " * (indent + 4 if name else indent)
    filled = textwrap.fill(
        name + text, stdout.width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
    line = Text(filled, style)
    line.stylize("bold", indent, indent + len(name))
    stdout.print(line, soft_wrap=True)


def _print_parts(options: Collection[str], in_full: bool) -> None:
    from strategies.compose import PARTS

    hint = "" if in_full else " (in full with --options)"
    for option, registry in PARTS.items():
        if option in options:
            stdout.print()
            _print_line(0, option, f': a name, or {{"name": ..., options}}{hint}')
            for entry in registry.listing():
                _print_entry(_described(entry), 2, in_full)


def _values(option: Mapping[str, str]) -> str:
    """Returns what an option may be: "number >= 0, < 1; default 0.9"."""
    default = f"default {option['default']}" if option["default"] else "must be given"
    return f"{option['type']} {option['allowed']}".strip() + f"; {default}"


def _kinds(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the alternatives that a JSON schema allows, with what it says for all of them in each."""
    for key in ("anyOf", "oneOf", "allOf"):
        if key in field:
            return [kind for part in field[key] for kind in _kinds(part, definitions)]
    if "$ref" in field:
        return _kinds(definitions.get(field["$ref"].rpartition("/")[2], {}), definitions)
    return [dict(field)]


def _type(kind: Mapping[str, Any]) -> str:
    if "const" in kind:
        return json.dumps(kind["const"])
    if "enum" in kind:
        return "one of " + ", ".join(str(value) for value in kind["enum"])
    name = str(kind.get("type", "anything"))
    if name == "array" and isinstance(kind.get("items"), Mapping):
        return f"list of {_type(kind['items'])}"
    return {"string": "text", "boolean": "true or false", "integer": "whole number"}.get(name, name)


def _bounds(kind: Mapping[str, Any]) -> str:
    return ", ".join(f"{sign} {kind[key]:.15g}" for key, sign in _BOUNDS.items() if key in kind)
