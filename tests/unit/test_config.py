"""Settings: what is shipped, what is refused and in which words, and what "auto" becomes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from fedrec_app.config import (
    RunConfig,
    Scalar,
    parse_options,
    parse_overrides,
    read_toml,
    to_toml,
    validate_options,
)
from fedrec_app.errors import ConfigError

REPO = Path(__file__).resolve().parents[2]

RECIPE: dict[str, Scalar] = {
    "model.embedding-dim": 8,
    "train.unit": "user",
    "train.local-epochs": 2,
    "train.batch-size": 16,
    "train.optimizer": "adam",
    "train.learning-rate": 0.5,
    "train.private-learning-rate": 0.25,
    "train.private-epochs": 1,
    "train.num-negatives": 4,
    "train.weight-decay": 0.125,
    "evaluate.fold-in-epochs": 3,
    "strategy.name": "fedadam",
    "strategy.options": '{"learning_rate": 0.03, "beta_1": 0.8}',
}


KS = 'a text of positive whole numbers such as "5,10,20" is expected'


def refusal(flat: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_flat(flat)
    text = str(caught.value)
    assert "\n" not in text
    assert "Value error" not in text
    return text


def test_the_shipped_table_is_the_defaults_name_by_name_in_order() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    shipped: dict[str, Scalar] = {}
    for key, value in project["tool"]["flwr"]["app"]["config"].items():
        if isinstance(value, dict):
            shipped.update({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            shipped[key] = value
    defaults = RunConfig().flat()
    assert list(shipped) == list(defaults)
    assert shipped == defaults
    assert [type(value) for value in shipped.values()] == [type(value) for value in defaults.values()]


def test_flat_and_from_flat_are_inverses() -> None:
    flat = {
        **RunConfig().flat(),
        "seed": 7,
        "train.learning-rate": 0.5,
        "evaluate.ks": "1,3",
        "evaluate.metric": "hr@3",
    }
    assert RunConfig.from_flat(flat).flat() == flat
    assert RunConfig.from_flat({}) == RunConfig()


def test_changed_lists_what_differs_and_nothing_else() -> None:
    assert RunConfig().changed() == {}
    assert RunConfig.from_flat({"seed": 3, "data.name": "synthetic"}).changed() == {"seed": 3}


def test_a_section_cannot_be_changed() -> None:
    config = RunConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.train.unit = "node"  # type: ignore[misc]


def test_unknown_settings_are_all_named_with_the_nearest_match() -> None:
    text = refusal({"train.lerning-rate": 0.1, "data.nam": "csv"})
    assert "unknown setting 'train.lerning-rate': one of checkpoint.continue-from, " in text
    assert "(did you mean 'train.learning-rate'?)" in text
    assert "unknown setting 'data.nam'" in text
    assert "(did you mean 'data.name'?)" in text


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num-server-rounds", 0, "num-server-rounds is 0: must be greater than or equal to 1"),
        ("seed", -1, "seed is -1: must be greater than or equal to 0"),
        ("seed", "5", "seed is '5': must be a valid integer"),
        ("seed", True, "seed is True: must be a valid integer"),
        ("seed", 1.5, "seed is 1.5: must be a valid integer"),
        ("data.name", 5, "data.name is 5: must be a valid string"),
        ("train.learning-rate", -1.0, "train.learning-rate is -1.0: must be greater than 0, or 'auto'"),
        ("train.learning-rate", "fast", "train.learning-rate is 'fast': must be a valid number, or 'auto'"),
        ("train.learning-rate", float("inf"), "train.learning-rate is inf: must be a finite number, or 'auto'"),
        ("train.local-epochs", 0, "train.local-epochs is 0: must be greater than or equal to 1, or 'auto'"),
        ("train.batch-size", 2.5, "train.batch-size is 2.5: must be a valid integer, or 'auto'"),
        ("train.user-fraction", 1.1, "train.user-fraction is 1.1: must be less than or equal to 1"),
        ("train.user-fraction", 0.0, "train.user-fraction is 0.0: must be greater than 0"),
        ("train.user-fraction", float("nan"), "train.user-fraction is nan: must be a finite number"),
        ("train.unit", "usr", "unknown train.unit 'usr': one of auto, node, user (did you mean 'user'?)"),
        (
            "train.optimizer",
            "Adam",
            "unknown train.optimizer 'Adam': one of adam, adamw, auto, sgd (did you mean 'adam'?)",
        ),
        (
            "data.protocol",
            "leave-one-ot",
            "unknown data.protocol 'leave-one-ot': one of leaky-pfedrec, leave-one-out, temporal "
            "(did you mean 'leave-one-out'?)",
        ),
        (
            "evaluate.ks",
            "5,x",
            "evaluate.ks is '5,x': a text of positive whole numbers such as \"5,10,20\" is expected",
        ),
        ("evaluate.ks", "", f"evaluate.ks is {''!r}: {KS}"),
        (
            "evaluate.ks",
            "0,10",
            "evaluate.ks is '0,10': a text of positive whole numbers such as \"5,10,20\" is expected",
        ),
        (
            "evaluate.ks",
            [5, 10],
            'evaluate.ks is [5, 10]: a text of positive whole numbers such as "5,10,20" is expected',
        ),
        ("evaluate.bootstrap", 10_001, "evaluate.bootstrap is 10001: must be less than or equal to 10000"),
        ("strategy.fraction-train", 0, "strategy.fraction-train is 0: must be greater than 0"),
        ("privacy.min-cohort", 0, "privacy.min-cohort is 0: must be greater than or equal to 1"),
    ],
)
def test_a_bad_value_is_one_complaint_that_names_key_value_and_rule(key: str, value: Any, expected: str) -> None:
    assert refusal({key: value}) == expected


def test_every_bad_value_is_named() -> None:
    assert refusal({"seed": -1, "train.learning-rate": 0, "train.unit": "both"}) == (
        "seed is -1: must be greater than or equal to 0; unknown train.unit 'both': one of auto, node, user; "
        "train.learning-rate is 0: must be greater than 0, or 'auto'"
    )


@pytest.mark.parametrize(
    ("flat", "nearest"),
    [
        ({"evaluate.metric": "ndgc@10"}, "ndcg@10"),
        ({"evaluate.metric": "ndcg@7"}, "ndcg@5"),
        ({"evaluate.ks": "1,3"}, "ndcg@1"),
    ],
)
def test_a_metric_that_is_not_computed_is_refused_with_those_that_are(flat: dict[str, Any], nearest: str) -> None:
    text = refusal(flat)
    metric = flat.get("evaluate.metric", "ndcg@10")
    assert text.startswith(f"unknown evaluate.metric {metric!r}: one of f1@1")
    assert text.endswith(f"(did you mean {nearest!r}?)")


def test_whole_numbers_are_taken_where_a_number_is_expected_and_ks_are_sorted() -> None:
    config = RunConfig.from_flat({"train.learning-rate": 1, "evaluate.ks": " 20, 5,5 ", "evaluate.metric": "mrr@20"})
    assert config.flat()["train.learning-rate"] == 1.0
    assert isinstance(config.train.learning_rate, float)
    assert config.evaluate.ks == (5, 20)
    assert config.flat()["evaluate.ks"] == "5,20"


# -c ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["seed=1"], {"seed": 1}),
        (["seed=1", "seed=2 data.name='csv'"], {"seed": 2, "data.name": "csv"}),
        (["seed = 1   num-server-rounds =5"], {"seed": 1, "num-server-rounds": 5}),
        (["  seed=1\ttrain.unit=\"node\"  "], {"seed": 1, "train.unit": "node"}),
        (['data.path="/a b/c=d.csv"'], {"data.path": "/a b/c=d.csv"}),
        (["data.columns='user_id=user,item_id=film'"], {"data.columns": "user_id=user,item_id=film"}),
        ([r'data.path="say \"x\" y"'], {"data.path": 'say "x" y'}),
        (["""data.options='{"a": 1, "b": "c d"}' seed=4"""], {"data.options": '{"a": 1, "b": "c d"}', "seed": 4}),
        (["train.learning-rate=1e-3 a.b=true c=-2"], {"train.learning-rate": 1e-3, "a.b": True, "c": -2}),
        (["", "  "], {}),
    ],
)  # fmt: skip
def test_overrides_are_read_and_the_last_one_wins(texts: list[str], expected: dict[str, Any]) -> None:
    found = parse_overrides(texts)
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed", "cannot read 'seed' in -c 'seed'"),
        ("seed=1 rounds", "cannot read 'rounds' in -c 'seed=1 rounds'"),
        ("seed=", "cannot read 'seed=' in -c 'seed='"),
        ("=1", "cannot read '=1'"),
        ('data.name="csv', "cannot read 'data.name=\"csv'"),
        ("data.name='csv'seed=1", "cannot read"),
        ("data.name=ml-100k", 'data.name=ml-100k: a number, true, false or a quoted text is expected '
         '(did you mean data.name="ml-100k"?)'),
        ("seed=1, train.unit='node'", "seed=1,: a number, true, false or a quoted text"),
        ("evaluate.ks=[5,10]", "evaluate.ks=[5,10]: a number, true, false or a quoted text"),
        ("data.path=2024-01-01", "data.path=2024-01-01: a number, true, false or a quoted text"),
        ("missing.toml", "no configuration file missing.toml"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_an_error(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["num-server-rounds=3", text])
    assert expected in str(caught.value)


def test_a_toml_file_may_have_tables_or_dotted_keys_and_later_texts_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('seed = 4\ndata.name = "csv"\n[train]\nunit = "node"\nlearning-rate = 2\n')
    assert parse_overrides(["seed=3", str(file), "train.unit='user'"]) == {
        "seed": 4, "data.name": "csv", "train.unit": "user", "train.learning-rate": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"seed = \n", "is not TOML"),
        (b"seed = '\xff'\n", "is not TOML"),
        (b"[evaluate]\nks = [5, 10]\n", "evaluate.ks is [5, 10]: a number, true, false or a text is expected"),
        (b"[data.more]\nx = 1\n", "data.more is {'x': 1}: a number, true, false or a text is expected"),
    ],
)
def test_a_bad_toml_file_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        parse_overrides([str(file)])
    assert str(file) in str(caught.value)
    assert expected in str(caught.value)


def test_settings_survive_the_way_through_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    folder.mkdir()
    flat = {
        **RunConfig().flat(),
        "data.path": '/tmp/it\'s "here"\\\n\t\x7f\x01/é/\U0001f600.csv',
        "train.learning-rate": 1e-05,
        "strategy.options": '{"learning_rate": 0.1}',
    }
    (folder / "config.toml").write_bytes(to_toml(flat).encode())
    found = read_toml(folder / "config.toml")
    assert found == flat
    assert [type(value) for value in found.values()] == [type(value) for value in flat.values()]
    (tmp_path / "config.toml").write_bytes(to_toml(flat).encode())
    assert parse_overrides([str(tmp_path / "config.toml")]) == flat
    assert RunConfig.from_flat(found).flat() == flat


# "auto" --------------------------------------------------------------------------------------------------------------


def test_auto_takes_the_models_value_and_what_is_given_stays() -> None:
    config = RunConfig.from_flat({"train.learning-rate": 0.75, "seed": 2}).resolve(RECIPE)
    expected = {**RunConfig().flat(), **RECIPE, "train.learning-rate": 0.75, "seed": 2, "train.schedule": "constant"}
    expected["privacy.clip-norm"] = 1.0
    expected["strategy.options"] = '{"beta_1": 0.8, "learning_rate": 0.03}'
    assert config.flat() == expected
    assert config.resolve(RECIPE) == config


def test_a_schedule_is_the_models_own_unless_one_is_given() -> None:
    recipe = {**RECIPE, "train.schedule": "cosine"}
    assert RunConfig().resolve(recipe).train.schedule == "cosine"
    assert RunConfig.from_flat({"train.schedule": "constant"}).resolve(recipe).train.schedule == "constant"


def test_options_of_the_recipes_strategy_go_under_those_given() -> None:
    given = {"strategy.options": '{"learning-rate": 0.5, "tau": 0.01}'}
    for name in ("auto", "fedadam"):
        config = RunConfig.from_flat({**given, "strategy.name": name}).resolve(RECIPE)
        assert json.loads(config.strategy.options) == {"learning_rate": 0.5, "beta_1": 0.8, "tau": 0.01}


def test_options_of_the_recipes_strategy_do_not_reach_another_one() -> None:
    config = RunConfig.from_flat({"strategy.name": "fedavg"}).resolve(RECIPE)
    assert config.strategy.name == "fedavg"
    assert config.strategy.options == "{}"


def test_what_the_model_has_no_value_for_is_named() -> None:
    recipe = {key: value for key, value in RECIPE.items() if key not in ("train.unit", "model.embedding-dim")}
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_flat({"model.name": "mine"}).resolve(recipe)
    assert str(caught.value) == "the model 'mine' has no value of its own for model.embedding-dim, train.unit: set them"


def test_a_recipe_is_checked_like_what_a_user_gives() -> None:
    with pytest.raises(ConfigError, match=r"train\.local-epochs is 0"):
        RunConfig().resolve({**RECIPE, "train.local-epochs": 0})


@pytest.mark.parametrize(("model", "strategy"), [("mf", "fedadam"), ("neumf", "fedadam")])
def test_every_built_in_model_fills_every_auto(model: str, strategy: str) -> None:
    from fedrec_app.models.registry import model_class

    flat = RunConfig.from_flat({"model.name": model}).resolve(model_class(model).recipe).flat()
    assert "auto" not in flat.values()
    assert flat["strategy.name"] == strategy


# options -------------------------------------------------------------------------------------------------------------


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(default=0.1, gt=0)
    layers: tuple[int, ...] = (8,)


def test_options_may_be_written_either_way() -> None:
    assert validate_options(Options, {"learning-rate": 0.5}, "strategy 'x'").learning_rate == 0.5
    assert validate_options(Options, {"learning_rate": 2, "layers": [4, 2]}, "strategy 'x'").layers == (4, 2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lerning_rate": 1},
         "unknown option of strategy 'x' 'lerning_rate': one of layers, learning_rate (did you mean 'learning_rate'?)"),
        ({"learning_rate": 0}, "options of strategy 'x': learning_rate is 0: must be greater than 0"),
        ({"layers": [4, "wide"]}, "options of strategy 'x': layers is [4, 'wide']: must be a valid integer, "
         "unable to parse string as an integer"),
    ],
)  # fmt: skip
def test_bad_options_are_named_with_their_owner(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_options(Options, options, "strategy 'x'")
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("{", "not JSON"), ("[1]", "a JSON object such as"), ("3", "a JSON object")]
)
def test_options_that_are_no_json_object_are_refused(text: str, expected: str) -> None:
    assert parse_options("", "model.options") == {}
    with pytest.raises(ConfigError) as caught:
        parse_options(text, "model.options")
    assert str(caught.value).startswith(f"model.options is {text!r}: ")
    assert expected in str(caught.value)
