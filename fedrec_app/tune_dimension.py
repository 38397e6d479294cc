"""A dimension of what `fedrec tune` searches, and the texts and files that dimensions are written in.

`key=values`, the values as a range of numbers `0..0.5`, one by ratios `log:1e-4..0.1`, one of whole numbers `int:1..4`,
or choices `16|32|64` and `"mf"|"sasrec"`. In a .toml file values are such texts, or arrays of choices; what stands in a
table that has no section's name, `[sasrec]`, is for the model of that name.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from fedrec_app.config import RunConfig
from fedrec_app.errors import ConfigError

Kind = Literal["float", "log", "int", "choice"]
WITH_OPTIONS = ("model.options", "strategy.options")
"""Settings that are JSON objects; each of their options is a dimension of its own."""
_SECTIONS = frozenset(key.partition(".")[0] for key in RunConfig().flat() if "." in key)
_GOLDEN = 0.6180339887
_QUOTED = r"""'[^']*'|"(?:[^"\\]|\\.)*"|\[[^\]]*\]|\{[^}]*\}"""
_PAIR = re.compile(rf"\s*([A-Za-z0-9_.\-]+)\s*=\s*((?:{_QUOTED}|[^\s'\"\[\]{{}}])+)(?=\s|$)")
_CHOICE = re.compile(rf"\s*({_QUOTED}|[^|'\"\[\]{{}}]+?)\s*(?:\||$)")
_RANGE = re.compile(r"(?:(log|int):)?([^\s:|'\"]*?)\.\.([^\s:|'\"]*)")


@dataclass(frozen=True)
class Dimension:
    """One setting or option, and the values that it may take.

    Attributes:
        key: dotted; an option under the key of its setting, "model.options.dropout".
        kind: "float", "log" (by ratios), "int", or "choice".
        low, high: the ends of a range, both inside.
        choices: at least two plain JSON values, where the kind is "choice".
        strategies: under which it means something; () where it always does.
    """

    key: str
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()
    strategies: tuple[str, ...] = ()

    @classmethod
    def parse(cls, key: str, values: object) -> Dimension:
        """Returns the dimension that somebody wrote.

        Args:
            key: dotted.
            values: a text as the module says, or a list of choices.

        Raises:
            ConfigError: these are no values, or not more than one.
        """
        section, name = option_of(key)
        key = f"{section}.{name.replace('-', '_')}" if name else key
        if isinstance(values, str) and (found := _RANGE.fullmatch(values.strip())):
            return cls._range(key, values, cast(Kind, found[1] or "float"), found[2], found[3])
        if not isinstance(values, str | list):
            raise ConfigError(f"{key} is {values!r} in the space, which is one value: set it with -c")
        choices = tuple(values) if isinstance(values, list) else _choices(key, values)
        if len({_told(key, choice) for choice in choices}) < max(len(choices), 2):
            raise ConfigError(f"{key} is {values!r} in the space: two choices or more, all different, are expected")
        return cls(key, "choice", choices=choices)

    @classmethod
    def _range(cls, key: str, text: str, kind: Kind, first: str, last: str) -> Dimension:
        try:
            low, high = (int(end) if kind == "int" else float(end) for end in (first, last))
        except ValueError:
            numbers = "whole numbers" if kind == "int" else "numbers"
            raise ConfigError(f"{key} is {text!r} in the space: the ends of the range must be {numbers}") from None
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"{key} is {text!r} in the space: the first end must be below the second")
        if kind == "log" and low <= 0:
            raise ConfigError(f"{key} is {text!r} in the space: a log range begins above 0")
        return cls(key, kind, low, high)

    def __str__(self) -> str:
        if self.kind == "choice":
            return "|".join(json.dumps(choice) for choice in self.choices)
        return f"{'' if self.kind == 'float' else self.kind + ':'}{self.low!r}..{self.high!r}"

    def probes(self) -> tuple[Any, ...]:
        """Returns values that show whether all are allowed: every choice, or the ends and, as not every number may be
        whole, something between them."""
        if self.kind == "choice":
            return self.choices
        between = () if self.kind == "int" else (self.low + (self.high - self.low) * _GOLDEN,)
        return (self.low, self.high, *between)

    def applies(self, params: Mapping[str, Any]) -> bool:
        """Returns whether it means something in a configuration, of which the strategy is known already."""
        return not self.strategies or params.get("strategy.name") in self.strategies

    def holds(self, value: object) -> bool:
        """Returns whether it may take a value."""
        if self.kind == "choice":
            return json.dumps(value) in {json.dumps(choice) for choice in self.choices}
        if isinstance(value, bool) or not isinstance(value, int if self.kind == "int" else int | float):
            return False
        return self.low <= value <= self.high


def option_of(key: str) -> tuple[str, str]:
    """Returns ("model.options", "dropout") of "model.options.dropout", and two empty texts of a setting."""
    for section in WITH_OPTIONS:
        if key.startswith(section + "."):
            return section, key.removeprefix(section + ".")
    return "", ""


Dimensions = dict[str, Dimension]


def read_dimensions(texts: Iterable[str]) -> tuple[Dimensions, dict[str, Dimensions]]:
    """Returns dimensions by key: those for every model, and by model those that stand in its table.

    Args:
        texts: `key=values` pairs, or the path of a .toml file; of a key that comes twice the last one counts.

    Raises:
        ConfigError: a text is not understood, or there is no such file.
    """
    common: Dimensions = {}
    tables: dict[str, Dimensions] = {}
    for text in texts:
        if not text.strip().endswith(".toml") or "=" in text:
            common.update(parsed(_pairs(text)))
            continue
        for key, values in _read_file(Path(text.strip()).expanduser()).items():
            if isinstance(values, dict) and key not in _SECTIONS:
                tables.setdefault(key, {}).update(parsed(_flat(values)))
            else:
                common.update(parsed(_flat({key: values})))
    return common, tables


def parsed(pairs: Iterable[tuple[str, object]]) -> Dimensions:
    """Returns dimensions by key, of pairs of key and values."""
    dimensions = (Dimension.parse(key, values) for key, values in pairs)
    return {dimension.key: dimension for dimension in dimensions}


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text.rstrip()):
        match = _PAIR.match(text, position)
        if match is None:
            raise ConfigError(
                f"cannot read {text[position:].strip()!r} in --space {text!r}: pairs such as "
                """'train.learning-rate=log:1e-3..1 model.name="mf"|"sasrec"' are expected (texts in quotes)"""
            )
        yield match[1], match[2]
        position = match.end()


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"no space file {path}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        hint = 'ranges stand in quotes, "0..2", and choices are a list, ["mf", "ease"]'
        raise ConfigError(f"{path} is not TOML: {error} (in a file {hint})") from None


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _choices(key: str, text: str) -> tuple[Any, ...]:
    """Returns the values in `16|32` or `"mf"|"sasrec"`."""
    found, position = [], 0
    while position < len(text):
        match = _CHOICE.match(text, position)
        try:
            found.append(tomllib.loads(f"value = {match[1] if match else ''}")["value"])
        except ValueError:
            raise ConfigError(
                f"{key} is {text!r} in the space: a range such as 0..0.5, log:1e-4..0.1 or int:1..4, or choices such "
                'as 16|32 or "adam"|"sgd" (texts in quotes) are expected'
            ) from None
        position = match.end() if match else len(text)
    return tuple(found)


def _told(key: str, choice: object) -> str:
    try:
        return json.dumps(choice)
    except TypeError:
        raise ConfigError(f"{key} has the choice {choice} in the space: numbers, texts, true or false") from None
