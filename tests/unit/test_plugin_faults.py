"""Constructors of plug-ins that fail: an error in a line, with the author's file and line, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, field_validator

from fedrec_app.config import ModelConfig
from fedrec_app.data import sources
from fedrec_app.errors import ConfigError
from fedrec_app.models.registry import make_model
from fedrec_app.options import schema_problem, validate_options
from fedrec_app.plugin_faults import path_problem
from fedrec_app.simulate import simulate
from strategies.registry import make_strategy
from strategies.settings import Settings

STRATEGY = """
from fedrec_app.api import RecStrategy
class Plug(RecStrategy):
    name = "plug"
    def __init__(self, {signature}):
        {body}
"""
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module that can be imported."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def module(name: str, code: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(code)
        return path

    yield module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def made(path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        make_strategy(path, {}, Settings(), None)
    return str(caught.value)


@pytest.mark.parametrize(
    ("signature", "body", "expected"),
    [
        ("*given", "super().__init__(*given); raise KeyError('zz')", "KeyError: 'zz' (FILE:6)"),
        ("*given", "import sys; sys.exit('bye')", "SystemExit: bye (FILE:6)"),
        (
            "*given",
            "super().__init__(*given, *given)",
            "RecStrategy.__init__() takes from 1 to 4 positional arguments but ",
        ),
        ("*given", "import json; json.loads('{')", "enclosed in double quotes: line 1 column 2 (char 1) (FILE:6)"),
        (
            "rate, momentum",
            "pass",
            "its __init__ is (self, rate, momentum), and is called with (self, options, settings, roster), by position",
        ),
    ],
    ids=["raises", "exits", "a call of its own", "in a library", "another signature"],
)
def test_a_constructor_that_fails_is_named_with_its_line(
    signature: str, body: str, expected: str, write: Write
) -> None:
    file = write("fails_to_start", STRATEGY.format(signature=signature, body=body))
    error = made("fails_to_start:Plug")
    assert error.startswith("strategy 'fails_to_start:Plug' cannot be made: ")
    assert expected.replace("FILE", str(file)) in error


def test_a_run_with_such_a_plug_in_ends_with_that_error(write: Write, tmp_path: Path) -> None:
    write("fails_in_a_run", STRATEGY.format(signature="*given", body="raise KeyError('zz')"))
    with pytest.raises(ConfigError, match=r"cannot be made: KeyError: 'zz' \(.*fails_in_a_run\.py:6\)"):
        simulate({"strategy.name": "fails_in_a_run:Plug", "output-dir": str(tmp_path), "num-server-rounds": 1}, 2)


def test_a_constructor_that_leaves_its_base_out_is_told_so(write: Write) -> None:
    write("forgets_super", STRATEGY.format(signature="*given", body="self.x = 1"))
    assert made("forgets_super:Plug") == (
        "strategy 'forgets_super:Plug': the __init__ of Plug does not call super().__init__(options, settings, roster)"
    )


def test_an_error_that_a_plug_in_worded_itself_is_shown_as_it_is(write: Write) -> None:
    body = "from fedrec_app.api import ConfigError; raise ConfigError('mind the gap')"
    write("words_it", STRATEGY.format(signature="*given", body=body))
    assert made("words_it:Plug") == "mind the gap"


def test_a_stock_strategy_whose_constructor_fails_is_named_with_its_line(write: Write) -> None:
    fails = "    def __init__(self): raise KeyError('zz')\n"
    file = write("stock_like", f"from flwr.serverapp.strategy import FedAvg\nclass Plug(FedAvg):\n{fails}")
    assert made("stock_like:Plug") == f"strategy 'stock_like:Plug' cannot be made: KeyError: 'zz' ({file}:3)"


def test_models_and_data_sets_whose_constructor_fails_are_named_with_their_line(write: Write) -> None:
    fails = "    def __init__(self, *given): raise KeyError('zz')\n"
    model = write("fails_model", f"from fedrec_app.api import Recommender\nclass Plug(Recommender):\n{fails}")
    with pytest.raises(ConfigError) as caught:
        make_model(ModelConfig.model_validate({"name": "fails_model:Plug", "embedding-dim": 4}))
    assert str(caught.value) == f"model 'fails_model:Plug' cannot be made: KeyError: 'zz' ({model}:3)"
    load = "    def load(self, path, columns, options, seed): pass\n"
    source = write("fails_source", f"from fedrec_app.api import DataSource\nclass Plug(DataSource):\n{fails}{load}")
    with pytest.raises(ConfigError) as caught:
        sources.resolve("fails_source:Plug")
    assert str(caught.value) == f"dataset 'fails_source:Plug' cannot be made: KeyError: 'zz' ({source}:3)"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lion.strategy:Lion", ""),
        ("lion:Outer.Inner", ""),
        ("lion.strategy.Lion", "(did you mean 'lion.strategy:Lion'?)"),
        ("../x.py:S", "this is a file: put its folder on PYTHONPATH and say 'x:S', or make it a package"),
        ("x.py:S", "this is a file"),
        ("here/x.py", "say 'x:Class'"),
        ("lion:", '"package.module:Class" is expected'),
        (":Lion", '"package.module:Class" is expected'),
        (".lion:Lion", '"package.module:Class" is expected'),
        ("lion:Li on", '"package.module:Class" is expected'),
    ],
)
def test_a_class_path_that_is_none_is_told_what_it_may_have_meant(path: str, expected: str) -> None:
    found = path_problem(path)
    assert expected in found
    assert (expected == "") == (found == "")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("flwr.serverapp.strategy:FedTrimedAvg", "(did you mean 'flwr.serverapp.strategy:FedTrimmedAvg'?)"),
        ("strategies.median:Medain", "it has CoordinateMedian, Median (did you mean 'strategies.median:Median'?)"),
        ("strategies.medain:Median", "there is no module 'medain' in 'strategies' (did you mean 'strategies.median'?)"),
        ("lyon.strategy:Lion", "there is no module 'lyon' here: is the package that holds it installed in this"),
        ("../x.py:S", "this is a file"),
        ("strategies.median.Median", "unknown strategy 'strategies.median.Median': "),
    ],
)
def test_a_class_path_that_leads_nowhere_is_told_the_nearest(path: str, expected: str) -> None:
    assert expected in made(path)


class Fine(BaseModel):
    """Nothing wrong: the validator asks for an option without a default."""

    size: int
    rate: float = 0.5
    steps: list[int] = Field(default_factory=list)

    @field_validator("rate")
    @classmethod
    def _below_size(cls, rate: float, info: Any) -> float:
        if rate > info.data["size"]:
            raise ValueError("too large")
        return rate


class Wrong(BaseModel):
    """Two defaults that do not fit."""

    size: int = Field(default=0, gt=0)
    rate: float = "abc"  # type: ignore[assignment]
    name: str = "x"


def test_defaults_that_do_not_fit_are_named_and_others_are_left_alone() -> None:
    assert schema_problem(Fine) == ""
    problem = schema_problem(Wrong)
    assert problem.startswith(
        "a default does not fit its own option: size is 0: must be greater than 0; rate is 'abc': "
    )
    with pytest.raises(ConfigError, match="strategy 'plug': a default does not fit its own option: size is 0"):
        validate_options(Wrong, {"size": 3, "rate": 0.5}, "strategy 'plug'")


def test_an_option_without_a_value_is_told_in_words() -> None:
    with pytest.raises(ConfigError) as caught:
        validate_options(Fine, {}, "strategy 'plug'")
    assert str(caught.value) == "options of strategy 'plug': size has no value: give one"
