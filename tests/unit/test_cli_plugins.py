"""What the lists of strategies, models and data sets say of options."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field
from rich.console import Console

from fedrec_app import cli_plugins
from fedrec_app.cli_plugins import Option, options_of, show_list, summary_of
from fedrec_app.data.sources import BUILT_IN as DATASETS
from fedrec_app.models.registry import BUILT_IN as MODELS
from fedrec_app.plugins import Registry, load
from strategies.compose import AGGREGATORS, SERVER_OPTIMIZERS
from strategies.options import UnitOptions, WithAggregator, WithServerOptimizer
from strategies.registry import BUILT_IN, STRATEGIES

EVERYTHING: dict[str, Mapping[str, str]] = {
    "strategy": BUILT_IN,
    "aggregator": AGGREGATORS.built_in,
    "server optimizer": SERVER_OPTIMIZERS.built_in,
    "model": MODELS,
    "dataset": DATASETS,
}


class Plain:
    """Nothing to set."""


class Summed:
    """Something else."""

    summary_line = "in a line"


class Many:
    """A thing with options."""

    class Options(BaseModel):
        """Options of the thing."""

        rate: float = Field(gt=0, description="a word and " * 12 + "the end")
        a_name_that_is_rather_long_for_an_option_but_must_not_be_cut: bool = Field(default=True, description="a switch")
        undescribed: str = ""


THINGS = Registry(
    "thing", {"plain": f"{__name__}:Plain", "many": f"{__name__}:Many"}, "fedrec.things", object, "object"
)


def shown(
    monkeypatch: pytest.MonkeyPatch, registry: Registry[Any], name: str, in_full: bool = False, width: int = 80
) -> str:
    out = io.StringIO()
    monkeypatch.setattr(cli_plugins, "stdout", Console(file=out, width=width))
    show_list(registry, name, in_full, as_json=False)
    return out.getvalue()


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in EVERYTHING.items() for name in names])
def test_every_option_of_what_is_built_in_is_described_in_a_line(kind: str, name: str) -> None:
    found: Any = load(kind, name, EVERYTHING[kind][name])
    for option in options_of(found.Options):
        assert 0 < len(option.what) <= 120, option
        assert option.what == option.what.strip().rstrip("."), option


@pytest.mark.parametrize(
    ("schema", "option", "parts"),
    [
        (WithAggregator, "aggregator", AGGREGATORS.built_in),
        (WithServerOptimizer, "server_optimizer", SERVER_OPTIMIZERS.built_in),
        (UnitOptions, "server_optimizer", SERVER_OPTIMIZERS.built_in),
    ],
)
def test_an_option_that_chooses_a_part_names_all_of_them(
    schema: type[BaseModel], option: str, parts: dict[str, str]
) -> None:
    (what,) = [found.what for found in options_of(schema) if found.name == option]
    assert what.partition(": ")[2] == f'{", ".join(parts)}, or {{"name": ..., options}}'


def test_options_are_described_by_type_default_range_and_text() -> None:
    class Inner(BaseModel):
        x: int = 1

    class Options(BaseModel):
        """rate: how fast."""

        rate: float = Field(default=0.5, gt=0, le=2)
        size: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["auto"] = Field("auto", description="how many")
        layers: tuple[int, ...] = (3, 2)
        inner: Inner | None = None
        needed: str = Field(description="a text")
        switch: bool = False

    assert options_of(Options) == [
        Option("rate", "number", "0.5", "> 0, <= 2", ""),
        Option("size", 'whole number >= 1, <= 10000000 or "auto"', '"auto"', "", "how many"),
        Option("layers", "list of whole number", "[3, 2]", "", ""),
        Option("inner", "object or null", "null", "", ""),
        Option("needed", "text", "", "", "a text"),
        Option("switch", "true or false", "false", "", ""),
    ]


def test_one_in_full_has_a_line_an_option_and_its_description_below(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, THINGS, "many") == (
        "many (built-in): A thing with options.\n"
        "  rate: number > 0; must be given\n"
        "      a word and a word and a word and a word and a word and a word and a word\n"
        "      and a word and a word and a word and a word and a word and the end\n"
        "  a_name_that_is_rather_long_for_an_option_but_must_not_be_cut: true or false;\n"
        "      default true\n"
        "      a switch\n"
        '  undescribed: text; default ""\n'
    )
    assert shown(monkeypatch, THINGS, "plain") == "plain (built-in): Nothing to set.\n  takes no options\n"


def test_what_a_class_is_comes_from_itself_and_not_from_its_base() -> None:
    class Silent(Plain):
        pass

    class Inherits(Summed):
        """
        Its own words.

        And more.
        """

    assert summary_of(Plain) == "Nothing to set."
    assert summary_of(Silent) == f"{__name__}:{Silent.__qualname__}"
    assert summary_of(Summed) == "in a line"
    assert summary_of(Inherits) == "Its own words."


@pytest.mark.parametrize("width", [40, 80, 120])
def test_nothing_is_cut_at_any_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    for name, path in BUILT_IN.items():
        found: Any = load("strategy", name, path)
        text = shown(monkeypatch, STRATEGIES, name, width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "\u2026" not in text
        for option in options_of(found.Options):
            assert f" {option.name}: " in text
            assert option.what in " ".join(text.split())


def test_one_strategy_lists_the_parts_that_it_takes_with_their_options(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, parts = shown(monkeypatch, STRATEGIES, "fedavg").partition("\n\n")
    assert parts.startswith('aggregator: a name, or {"name": ..., options} (in full with --options)\n')
    assert "  trimmed-mean (built-in): " in parts
    assert "\n    trim: number > 0, < 0.5; default 0.1\n" in parts
    assert "share of the nodes" not in parts
    assert "\nserver_optimizer: " not in parts

    parts = shown(monkeypatch, STRATEGIES, "median", in_full=True).partition("\n\n")[2]
    assert parts.startswith('server_optimizer: a name, or {"name": ..., options}\n')
    assert "    momentum: number >= 0, < 1; default 0.9\n        beta, decay of the velocity" in parts

    parts = shown(monkeypatch, STRATEGIES, "fedprox").partition("\n\n")[2]
    for name in (*AGGREGATORS.built_in, *SERVER_OPTIMIZERS.built_in):
        assert f"\n  {name} (built-in): " in parts
    assert "\naggregator: " not in shown(monkeypatch, THINGS, "many")
