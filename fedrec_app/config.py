"""Run configuration: flat dotted keys, one frozen section a prefix, checked before anything starts.

Flower hands an app a flat mapping of scalars (`[tool.flwr.app.config]` with `-c` overrides). `RunConfig.from_flat`
turns it into typed sections and refuses what it does not know. Keys left at "auto" take the model's own recipe
(`RunConfig.resolve`).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fedrec_app.errors import ConfigError, unknown
from fedrec_app.options import parse_options as parse_options
from fedrec_app.options import readable
from fedrec_app.options import validate_options as validate_options
from fedrec_app.privacy_rules import privacy_problem
from fedrec_app.schedules import Schedule

Scalar = bool | int | float | str
Auto = Literal["auto"]


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _parse_ks(value: object) -> object:
    if isinstance(value, tuple):
        return value
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else []
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError('a text of positive whole numbers such as "5,10,20" is expected')
    return tuple(sorted({int(part) for part in parts}))


class Section(BaseModel, frozen=True):
    """Keys of one prefix; frozen, and unknown keys, other types, infinity and NaN are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, alias_generator=_kebab, populate_by_name=True
    )


class DataConfig(Section, frozen=True):
    name: str = "synthetic"
    path: str = ""
    columns: str = ""
    options: str = "{}"
    protocol: Literal["leave-one-out", "temporal", "leaky-pfedrec"] = "leave-one-out"
    min_interactions: int = Field(default=5, ge=1)
    max_interactions: int = Field(default=0, ge=0)
    session_gap: int = Field(default=0, ge=0)
    k_core: int = Field(default=0, ge=0)
    requires: str = ""
    partition: str = "users"
    seed: int = Field(default=0, ge=0)

    @property
    def source(self) -> tuple[str, str, str, str, int]:
        """What `sources.load_whole` and `sources.load_catalog` are told: name, path, columns, options and seed."""
        return self.name, self.path, self.columns, self.options, self.seed


class ModelConfig(Section, frozen=True):
    name: str = "mf"
    embedding_dim: Auto | Annotated[int, Field(ge=1, le=4096)] = "auto"
    options: str = "{}"
    init_from: str = ""


class TrainConfig(Section, frozen=True):
    unit: Auto | Literal["user", "node"] = "auto"
    user_fraction: float = Field(default=1.0, gt=0, le=1)
    local_epochs: Auto | Annotated[int, Field(ge=1)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=0)] = "auto"
    optimizer: Auto | Literal["sgd", "adam", "adamw"] = "auto"
    learning_rate: Auto | Annotated[float, Field(gt=0)] = "auto"
    private_learning_rate: Auto | Annotated[float, Field(gt=0)] = "auto"
    private_epochs: Auto | Annotated[int, Field(ge=0)] = "auto"
    num_negatives: Auto | Annotated[int, Field(ge=0)] = "auto"
    weight_decay: Auto | Annotated[float, Field(ge=0)] = "auto"
    schedule: str = "auto"
    max_grad_norm: float = Field(default=0.0, ge=0)
    adapter_rank: int = Field(default=0, ge=0, le=4096)
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"


class StrategyConfig(Section, frozen=True):
    name: str = "auto"
    options: str = "{}"
    schedule: str = "constant"
    fraction_train: float = Field(default=1.0, gt=0, le=1)
    min_nodes: int = Field(default=1, ge=1)
    round_timeout: float = Field(default=3600.0, gt=0)
    join_timeout: float = Field(default=60.0, gt=0)


class EvaluateConfig(Section, frozen=True):
    every: int = Field(default=1, ge=1)
    fold_in_epochs: Auto | Annotated[int, Field(ge=0)] = "auto"
    ks: Annotated[tuple[int, ...], BeforeValidator(_parse_ks)] = (5, 10, 20)
    metric: str = "ndcg@10"
    early_stopping_rounds: int = Field(default=0, ge=0)
    bootstrap: int = Field(default=200, ge=0, le=10_000)


class PrivacyConfig(Section, frozen=True):
    unit: Literal["none", "user", "example"] = "none"
    clip_norm: Auto | Annotated[float, Field(gt=0)] = "auto"
    noise_multiplier: float = Field(default=0.0, ge=0)
    target_epsilon: float = Field(default=0.0, ge=0)
    delta: float = Field(default=0.0, ge=0, lt=1)
    sampling_rate: float = Field(default=1.0, gt=0, le=1)
    metrics: Literal["noised", "withheld", "exact"] = "noised"
    metrics_noise_multiplier: float = Field(default=5.0, gt=0)
    public_catalog: bool = False
    min_cohort: int = Field(default=20, ge=1)


class CheckpointConfig(Section, frozen=True):
    every: int = Field(default=10, ge=0)
    resume_from: str = ""
    continue_from: str = ""


class TrackingConfig(Section, frozen=True):
    backend: Literal["", "tensorboard", "wandb"] = ""
    project: str = Field(default="fedrec", min_length=1)


class RunConfig(Section, frozen=True):
    """Every setting of a run. Attributes are the keys with `-` as `_` and `.` as attribute access."""

    seed: int = Field(default=0, ge=0)
    num_server_rounds: int = Field(default=100, ge=1)
    output_dir: str = ""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    strategy: StrategyConfig = StrategyConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _metric_is_computed(self) -> RunConfig:
        known = [f"{name}@{k}" for name in ("hr", "ndcg", "recall", "precision", "f1", "mrr") for k in self.evaluate.ks]
        if self.evaluate.metric not in known:
            raise ValueError(unknown("evaluate.metric", self.evaluate.metric, known))
        return self

    @model_validator(mode="after")
    def _schedules_are_known(self) -> RunConfig:
        if self.train.schedule != "auto":
            Schedule.parse(self.train.schedule, "train.schedule")
        Schedule.parse(self.strategy.schedule, "strategy.schedule")
        return self

    @model_validator(mode="after")
    def _privacy_is_whole(self) -> RunConfig:
        if problem := privacy_problem(self.privacy, self.data, self.train, self.strategy, self.evaluate):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _starts_once(self) -> RunConfig:
        if self.checkpoint.continue_from and self.model.init_from:
            raise ValueError("checkpoint.continue-from says where parameters start, and so does model.init-from: one")
        return self

    @classmethod
    def from_flat(cls, flat: Mapping[str, object]) -> RunConfig:
        """Returns the typed configuration of flat dotted keys; what is not given takes its default.

        Raises:
            ConfigError: a key is unknown or a value does not fit; every problem is named, with the nearest match.
        """
        known = set(cls().flat())
        problems = [_unknown_setting(key, known) for key in flat if key not in known]
        if problems:
            raise ConfigError("; ".join(problems))
        nested: dict[str, Any] = {}
        for key, value in flat.items():
            section, _, name = key.rpartition(".")
            (nested.setdefault(section, {}) if section else nested)[name] = value
        try:
            return cls.model_validate(nested)
        except ValidationError as error:
            raise ConfigError("; ".join(readable(error, flat))) from None

    def flat(self) -> dict[str, Scalar]:
        """Returns every setting under its dotted key, as Flower would carry it."""
        result: dict[str, Scalar] = {}
        for key, value in self.model_dump(by_alias=True, exclude={"data", *_SECTIONS}).items():
            result[key] = value
        for name in _SECTIONS:
            for key, value in getattr(self, name).model_dump(by_alias=True).items():
                is_list = isinstance(value, tuple)
                result[f"{name}.{key}"] = ",".join(str(v) for v in value) if is_list else value
        return result

    def resolve(self, recipe: Mapping[str, Scalar]) -> RunConfig:
        """Returns the configuration with every "auto" replaced by the model's own value.

        Args:
            recipe: dotted key -> value, from the model; without a schedule it is "constant", without a bound 1.
                Options of the recipe's strategy go under those the user gave, and only where the run uses that
                strategy.
        """
        flat, recipe = self.flat(), {"train.schedule": "constant", "privacy.clip-norm": 1.0, **recipe}
        resolved = {key: recipe.get(key, value) if value == "auto" else value for key, value in flat.items()}
        left = sorted(key for key, value in resolved.items() if value == "auto")
        if left:
            raise ConfigError(f"the model {self.model.name!r} has no value of its own for {', '.join(left)}: set them")
        if resolved["strategy.name"] == recipe.get("strategy.name") and "strategy.options" in recipe:
            own: dict[str, Any] = {}
            for text in (str(recipe["strategy.options"]), self.strategy.options):
                options = parse_options(text, "strategy.options")
                own.update({name.replace("-", "_"): value for name, value in options.items()})
            resolved["strategy.options"] = json.dumps(own, sort_keys=True)
        return RunConfig.from_flat(resolved)

    def changed(self) -> dict[str, Scalar]:
        """Returns the settings that differ from the defaults."""
        defaults = RunConfig().flat()
        return {key: value for key, value in self.flat().items() if value != defaults[key]}


def _unknown_setting(key: str, known: set[str]) -> str:
    section, _, option = key.rpartition(".")
    if section.endswith(".options") and section in known:
        return f"unknown setting {key!r}: options are JSON, {section}='{{\"{option}\": ...}}'"
    return unknown("setting", key, known)


_SECTIONS = ("data", "model", "train", "strategy", "evaluate", "privacy", "checkpoint", "tracking")


_PAIR = re.compile(r"\s*([A-Za-z0-9_.\-]+)\s*=\s*('[^']*'|\"(?:[^\"\\]|\\.)*\"|[^\s'\"]+)(?=\s|$)")


def parse_overrides(texts: Iterable[str]) -> dict[str, Scalar]:
    """Returns the settings in several `-c` texts: TOML pairs `key=value`, or a path to a .toml file; the last one wins.

    Unlike Flower's own parser nothing is ignored: what is not understood is an error.

    Raises:
        ConfigError: a text is not made of `key=value` pairs, or a value is not a TOML scalar.
    """
    result: dict[str, Scalar] = {}
    for text in texts:
        if text.strip().endswith(".toml") and "=" not in text:
            result.update(read_toml(Path(text.strip()).expanduser()))
            continue
        position = 0
        while position < len(text.rstrip()):
            match = _PAIR.match(text, position)
            if match is None:
                raise ConfigError(
                    f"cannot read {text[position:].strip()!r} in -c {text!r}: pairs such as "
                    f"""'num-server-rounds=5 data.name="ml-100k"' are expected (texts in quotes)"""
                )
            key, value = match.groups()
            try:
                result[key] = _scalar(tomllib.loads(f"value = {value}")["value"])
            except ValueError:
                raise ConfigError(
                    f'{key}={value}: a number, true, false or a quoted text is expected (did you mean {key}="{value}"?)'
                ) from None
            position = match.end()
    return result


def read_toml(path: Path) -> dict[str, Scalar]:
    """Returns the settings in a .toml file by dotted key, whether written dotted or as tables.

    Raises:
        ConfigError: there is no such file, it is not TOML, or a value is not a TOML scalar.
    """
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            flat[key] = value
    for key, value in flat.items():
        try:
            _scalar(value)
        except ValueError:
            raise ConfigError(f"{path}: {key} is {value!r}: a number, true, false or a text is expected") from None
    return flat


def _scalar(value: Any) -> Scalar:
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"{value!r} is not a TOML scalar that Flower carries")
    return value


def to_toml(flat: Mapping[str, Scalar]) -> str:
    """Returns flat settings as a TOML file that `-c FILE.toml` reads."""
    # TOML has neither JSON's surrogate pairs nor a bare DEL.
    texts = {key: json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") for key, value in flat.items()}
    return "".join(f"{key} = {text}\n" for key, text in texts.items())
