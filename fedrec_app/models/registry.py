"""Models by name: built in, an entry point of the group `fedrec.models`, or "package.module:Class"."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fedrec_app.config import ModelConfig, RunConfig, Scalar, parse_options, validate_options
from fedrec_app.errors import ConfigError
from fedrec_app.models.base import Recommender
from fedrec_app.plugins import Registry, plug_in_code

GROUP = "fedrec.models"
BUILT_IN = {
    "mf": "fedrec_app.models.mf:MatrixFactorization",
    "neumf": "fedrec_app.models.neumf:NeuMF",
    "sasrec": "fedrec_app.models.sasrec:SasRec",
    "pfedrec": "fedrec_app.models.pfedrec:PFedRec",
    "ease": "fedrec_app.models.ease:Ease",
    "itemknn": "fedrec_app.models.itemknn:ItemKnn",
    "popularity": "fedrec_app.models.popularity:Popularity",
}
MODELS = Registry("model", BUILT_IN, GROUP, Recommender, "fedrec_app.api.Recommender")


def model_class(name: str) -> type[Recommender]:
    """Returns the class of a model.

    Raises:
        ConfigError: no such model, or the class found is not a Recommender; see `Registry.find`.
    """
    return MODELS.find(name)


def resolved(flat: Mapping[str, object]) -> RunConfig:
    """Returns the configuration of flat settings, with the model's own value wherever they say "auto".

    Raises:
        ConfigError: a setting is wrong, or there is no such model.
    """
    asked = RunConfig.from_flat(flat)
    found = model_class(asked.model.name)
    return asked.resolve({**found.recipe, **_private_recipe(found, asked.privacy.unit)})


def _private_recipe(found: type[Recommender], unit: str) -> Mapping[str, Scalar]:
    """Returns what goes over a model's recipe under differential privacy."""
    if unit == "user":
        return {"train.unit": "user", "strategy.name": "dp-fedavg", "strategy.options": "{}", **found.private_recipe}
    if unit == "example" and "strategy.options" in found.recipe:
        options = parse_options(str(found.recipe["strategy.options"]), "strategy.options")
        options = json.dumps({**options, "weighting": "users"})
        return {"train.unit": "node", "train.private-epochs": 0, "strategy.options": options}
    return {}


def make_model(config: ModelConfig) -> Recommender:
    """Returns the model that the configuration names, not bound yet.

    Raises:
        ConfigError: the model or one of its options is unknown, or its constructor fails.
    """
    found = model_class(config.name)
    options = validate_options(found.Options, parse_options(config.options, "model.options"), f"model {config.name!r}")
    if isinstance(config.embedding_dim, str):
        raise ConfigError("model.embedding-dim is 'auto': resolve the configuration first")
    with plug_in_code("model", config.name, found, GROUP, ("embedding_dim", "options")):
        return found(config.embedding_dim, options)
