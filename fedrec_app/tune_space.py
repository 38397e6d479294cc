"""What `fedrec tune` searches: for each model the dimensions that mean something to it, every value checked.

An option of a model is searched in the models that have it, one of a strategy under the strategies that have it, and
what trains a model in the models that are trained. A model for which nobody names a dimension has a default space.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from fedrec_app.config import RunConfig, Scalar, parse_options, validate_options
from fedrec_app.errors import ConfigError, unknown
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.models.registry import MODELS, model_class, resolved
from fedrec_app.node_data import unbound_model
from fedrec_app.run_strategy import strategy_of
from fedrec_app.tune_defaults import SPACES
from fedrec_app.tune_dimension import WITH_OPTIONS, Dimension, Dimensions, option_of, parsed, read_dimensions
from strategies import closed_form
from strategies.base import RecStrategy
from strategies.registry import strategy_class

MODEL, STRATEGY = "model.name", "strategy.name"
_OF_DATA = "trials must share their data"
_MEASURE = "trials would be judged by different measures"
NOT_SEARCHED = {
    **dict.fromkeys(WITH_OPTIONS, "search its options one by one, each as KEY.OPTION"),
    "evaluate.metric": _MEASURE,
    "evaluate.ks": _MEASURE,
    "evaluate.bootstrap": "it changes no trial",
    "output-dir": "it changes no trial",
    **{
        f"privacy.{key}": "how much privacy there is must not be chosen by quality"
        for key in (
            "unit",
            "target-epsilon",
            "noise-multiplier",
            "delta",
            "metrics",
            "metrics-noise-multiplier",
            "min-cohort",
        )
    },
    "seed": "the luckiest seed is no better than others",
}
"""Settings that cannot be dimensions, and why."""
_OF_TRAINING = (
    "num-server-rounds",
    "train.",
    "strategy.",
    "model.embedding-dim",
    "evaluate.every",
    "evaluate.early-stopping-rounds",
    "evaluate.fold-in-epochs",
)
"""How settings begin that change nothing of a model that is solved."""


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        models: name -> dimensions, that of `strategy.name` first.
        origins: name -> "as given", or "the default space".
    """

    models: Mapping[str, tuple[Dimension, ...]]
    origins: Mapping[str, str]

    def described(self) -> dict[str, dict[str, str]]:
        """Returns the values of each dimension as a text, by model and key."""
        return {model: {d.key: str(d) for d in dimensions} for model, dimensions in self.models.items()}

    def model(self, params: Mapping[str, Any]) -> str:
        """Returns the model of a configuration."""
        return params.get(MODEL, next(iter(self.models)))

    def problem(self, params: Mapping[str, Any]) -> str:
        """Returns why a configuration is not one of this space, or ""."""
        model = params.get(MODEL) if len(self.models) > 1 else next(iter(self.models))
        if not isinstance(model, str) or model not in self.models:
            return f"{MODEL} is {model!r}, not one of {', '.join(self.models)}"
        dimensions = {d.key: d for d in self.models[model] if d.applies(params)}
        expected = {*dimensions, *([MODEL] if len(self.models) > 1 else [])}
        if odd := sorted(expected ^ set(params)):
            return f"{odd[0]} is {'not there' if odd[0] in expected else 'not searched'}"
        for key, dimension in dimensions.items():
            if not dimension.holds(params[key]):
                return f"{key} is {params[key]!r}, which is not in {dimension}"
        return ""

    def start(self, model: str, fixed: Mapping[str, Scalar]) -> dict[str, Any]:
        """Returns what a model has where nobody tunes it, for every dimension that holds such a value."""
        config = resolved({**fixed, MODEL: model})
        flat: dict[str, Any] = config.flat()
        for section, schema in (("model.options", model_class(model).Options), ("strategy.options", _schema(config))):
            given = options_in(flat, section)
            own = given if schema is None else schema.model_validate(given).model_dump()
            flat.update({f"{section}.{name}": value for name, value in own.items()})
        return {d.key: flat[d.key] for d in self.models[model] if d.key in flat and d.holds(flat[d.key])}


def options_in(flat: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Returns the options in a setting by name, names written with `_`.

    Args:
        flat: settings.
        section: the key of the setting, "model.options".

    Raises:
        ConfigError: it is not a JSON object.
    """
    given = parse_options(str(flat.get(section, "{}")), section)
    return {name.replace("-", "_"): value for name, value in given.items()}


def settings(fixed: Mapping[str, Scalar], params: Mapping[str, Any]) -> dict[str, Scalar]:
    """Returns flat settings of a configuration: options of the space are merged into those that are fixed."""
    flat: dict[str, Any] = dict(fixed)
    options: dict[str, dict[str, Any]] = {}
    for key, value in params.items():
        section, name = option_of(key)
        if name:
            options.setdefault(section, options_in(fixed, section))[name] = value
        else:
            flat[key] = value
    flat.update({section: json.dumps(given, sort_keys=True) for section, given in options.items()})
    return flat


def read_space(texts: Iterable[str], fixed: Mapping[str, Scalar]) -> Space:
    """Returns the space that several texts or files say together.

    Args:
        texts: as for `read_dimensions`.
        fixed: settings that all trials have.

    Raises:
        ConfigError: a text is not understood, a key is unknown or fixed or must not be searched, a value is refused, or
            there is nothing to search.
    """
    common, tables = read_dimensions(texts)
    for dimensions in (common, *tables.values()):
        for key in dimensions:
            _require_free(key, fixed)
    models = _models(common, tables, fixed)
    common.pop(MODEL, None)
    found: dict[str, tuple[Dimension, ...]] = {}
    origins = {}
    for model in models:
        own = tables.get(model, {})
        found[model], origins[model] = _of_model({**common, **own}, own, model, fixed), "as given"
        if not found[model]:
            default = parsed(SPACES.get(model, {}).items())
            free = {key: dimension for key, dimension in default.items() if not _is_fixed(key, fixed)}
            found[model], origins[model] = _of_model(free, {}, model, fixed), "the default space"
    searched = {dimension.key for dimensions in found.values() for dimension in dimensions}
    for key in common.keys() - searched:
        _refuse_idle(common[key], models[0], fixed)
    if len(models) == 1 and not found[models[0]]:
        why = "all of its default space is set by -c" if SPACES.get(models[0]) else "it has no default space"
        raise ConfigError(f"nothing to tune of model {models[0]!r}: {why}; name dimensions with --space")
    return Space(found, origins)


def _require_free(key: str, fixed: Mapping[str, Scalar]) -> None:
    if why := _OF_DATA if key.startswith("data.") else NOT_SEARCHED.get(key):
        raise ConfigError(f"{key} cannot be searched: {why.replace('KEY', key)}")
    if _is_fixed(key, fixed):
        raise ConfigError(f"{key} is in the space and set by -c: leave it out of one of them")


def _is_fixed(key: str, fixed: Mapping[str, Scalar]) -> bool:
    section, name = option_of(key)
    return name in options_in(fixed, section) if name else key in fixed


def _models(common: Dimensions, tables: Mapping[str, Dimensions], fixed: Mapping[str, Scalar]) -> list[str]:
    """Returns the models to choose from: those named, or those that have a table, or the one that is fixed."""
    given: list[Any] = list(tables) or [RunConfig().model.name]
    if MODEL in common:
        given = list(common[MODEL].choices)
    elif MODEL in fixed:
        given = [fixed[MODEL]]
    if not given:
        raise ConfigError(f"{MODEL} is {common[MODEL]} in the space: names of models are expected")
    names = [RunConfig.from_flat({MODEL: name}).model.name for name in given]
    for name in names:
        model_class(name)
    if strange := [name for name in tables if name not in names]:
        if strange[0] not in MODELS.names():
            raise ConfigError(unknown("model in the space", strange[0], MODELS.names()))
        raise ConfigError(
            f"the space has a table [{strange[0]}], but {MODEL} is {' or '.join(names)}: add it there, or remove the "
            "table"
        )
    return names


def _of_model(
    dimensions: Dimensions, own: Dimensions, model: str, fixed: Mapping[str, Scalar]
) -> tuple[Dimension, ...]:
    """Returns those of the dimensions that mean something to a model, checked; its own ones must."""
    chosen = dimensions.get(STRATEGY)
    strategies = chosen.choices if chosen else (str(fixed.get(STRATEGY, "auto")),)
    found = []
    for key, dimension in sorted(dimensions.items(), key=lambda pair: pair[0] != STRATEGY):
        under = _under(key, model, strategies, fixed)
        if under:
            _check(dimension, model, under, fixed)
            found.append(replace(dimension, strategies=() if under == tuple(strategies) else under))
        elif key in own:
            _refuse_idle(dimension, model, fixed)
    return tuple(found)


def _under(key: str, model: str, strategies: Sequence[str], fixed: Mapping[str, Scalar]) -> tuple[str, ...]:
    """Returns the strategies under which a dimension means something to a model; none where it never does."""
    section, name = option_of(key)
    if issubclass(model_class(model), ClosedForm) and key.startswith(_OF_TRAINING):
        return ()
    if section == "model.options" and name not in model_class(model).Options.model_fields:
        return ()
    if section != "strategy.options":
        return tuple(strategies)
    schemas = {s: _schema(resolved({**_bare(fixed), MODEL: model, STRATEGY: s})) for s in strategies}
    return tuple(s for s, schema in schemas.items() if schema is None or name in schema.model_fields)


def _bare(fixed: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {key: value for key, value in fixed.items() if key != "strategy.options"}


def _refuse_idle(dimension: Dimension, model: str, fixed: Mapping[str, Scalar]) -> None:
    """Raises why a dimension means nothing to a model."""
    _check(dimension, model, (str(fixed.get(STRATEGY, "auto")),), fixed)
    raise ConfigError(f"{dimension.key} is in the space and changes nothing: model {model!r} is solved, not trained")


def _check(dimension: Dimension, model: str, strategies: Sequence[str], fixed: Mapping[str, Scalar]) -> None:
    """Refuses a dimension that has a value which no strategy of those given can have."""
    for value in dimension.probes():
        problems = []
        for strategy in strategies:
            flat = settings({**fixed, MODEL: model}, {STRATEGY: strategy, dimension.key: value})
            try:
                _require_valid(flat)
                break
            except ConfigError as error:
                problems.append(error)
        else:
            hint = "; whole numbers are written int:1..4" if "integer" in str(problems[0]) else ""
            raise ConfigError(f"{dimension.key} is {dimension} in the space: {problems[0]}{hint}")


def _require_valid(flat: Mapping[str, Scalar]) -> None:
    """Refuses what settings, and the options of model, data and strategy, refuse each by itself."""
    config = resolved(flat)
    unbound_model(config)
    found = model_class(config.model.name)
    validate_options(found.Options, options_in(flat, "model.options"), f"model {config.model.name!r}")
    if schema := _schema(config):
        validate_options(schema, options_in(config.flat(), "strategy.options"), f"strategy {config.strategy.name!r}")
    elif config.strategy.name != closed_form.NAME:
        strategy_of(config, unbound_model(config))


def _schema(config: RunConfig) -> type[BaseModel] | None:
    """Returns the schema of `strategy.options`; None for stock strategies, and where nothing is trained."""
    if config.strategy.name == closed_form.NAME:
        return None
    found = strategy_class(config.strategy.name)
    return found.Options if issubclass(found, RecStrategy) else None
