"""Options of a data set, a model, a strategy: JSON texts in settings, checked by a pydantic schema."""

from __future__ import annotations

import copy
import functools
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from fedrec_app.errors import ConfigError, unknown


def parse_options(text: str, key: str) -> dict[str, Any]:
    """Returns the JSON object in the setting `key`.

    Raises:
        ConfigError: the text is not a JSON object.
    """
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(f"{key} is {text!r}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{key} is {text!r}: a JSON object such as '{{\"name\": 1}}' is expected")
    return value


def validate_options(schema: type[BaseModel], options: Mapping[str, Any], owner: str) -> Any:
    """Returns `schema` filled with the options.

    Args:
        schema: the pydantic model of the owner's options.
        options: name -> value; names may be written with `-` or `_`.
        owner: who they belong to, for the error ("strategy 'fedadam'").

    Raises:
        ConfigError: an option is unknown, has no value, or a value does not fit; or the schema is none.
    """
    if problem := schema_problem(schema):
        raise ConfigError(f"{owner}: {problem}")
    given = {key.replace("-", "_"): value for key, value in options.items()}
    problems = [
        unknown(f"option of {owner}", key, schema.model_fields) for key in given if key not in schema.model_fields
    ]
    if problems:
        raise ConfigError("; ".join(problems))
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        raise ConfigError(f"options of {owner}: {'; '.join(readable(error, given))}") from None


def schema_problem(schema: object) -> str:
    """Returns why what a class calls its `Options` cannot serve, or "": no pydantic model, or a default that does not
    fit its own field, which pydantic would take as it is."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return _wrong_defaults(schema)
    shown = f"the class {schema.__qualname__}" if isinstance(schema, type) else repr(schema)
    return (
        f"its Options is {shown}, which is no pydantic model: derive it from one of the option classes in "
        "fedrec_app.api"
    )


@functools.lru_cache(maxsize=256)
def _wrong_defaults(schema: type[BaseModel]) -> str:
    """Returns the defaults that do not fit; remembered, because options are checked for each message."""
    fields: dict[str, Any] = {
        name: (field.annotation, copy.copy(field))
        for name, field in schema.model_fields.items()
        if not field.is_required()
    }
    config = ConfigDict(**{**schema.model_config, "validate_default": True})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names that the author was warned of already
            # A model without the author's validators: those may ask for options that have no default.
            create_model("Defaults", __config__=config, **fields)()
    except ValidationError as error:
        return f"a default does not fit its own option: {'; '.join(readable(error, {}))}"
    except Exception:  # made of fields that cannot stand alone, such as a default that is computed from another
        return ""
    return ""


def readable(error: ValidationError, given: Mapping[str, Any]) -> list[str]:
    """Returns one line a key: pydantic complains once for each member of a union such as "auto" or a number."""
    by_key: dict[str, list[Any]] = {}
    for problem in error.errors():
        loc = [str(part) for part in problem["loc"]]
        by_key.setdefault(".".join(loc[:2]) if ".".join(loc[:2]) in given else ".".join(loc[:1]), []).append(problem)
    lines = []
    for key, problems in by_key.items():
        value = given.get(key, problems[0]["input"])
        choices = [name for p in problems for name in re.findall(r"'([^']*)'", p.get("ctx", {}).get("expected", ""))]
        rules = [_rule(problem) for problem in problems if problem["type"] != "literal_error"]
        if not key:
            lines += rules
        elif all(problem["type"] == "missing" for problem in problems):
            lines += [f"{'.'.join(map(str, problem['loc']))} has no value: give one" for problem in problems]
        elif not rules:
            lines.append(unknown(key, str(value), choices))
        else:
            also = f", or {' or '.join(map(repr, choices))}" if choices else ""
            lines.append(f"{key} is {value!r}: {'; '.join(rules)}{also}")
    return lines


def _rule(problem: Any) -> str:
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return str(problem["msg"]).replace("Input should be", "must be")
