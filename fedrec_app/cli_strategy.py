"""`fedrec strategy`: what strategies there are, whether one keeps the contract, and a package for a new one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec_app.cli_check import class_at, show_report
from fedrec_app.cli_plugins import add_list, stderr, stdout
from fedrec_app.console import say
from fedrec_app.errors import ConfigError
from fedrec_app.plugins import Registry

if TYPE_CHECKING:
    from strategies.base import RecStrategy

strategy_commands = typer.Typer(no_args_is_help=True, help="Strategies: list, check, new.")


def _strategies() -> Registry[Any]:
    from strategies.registry import STRATEGIES

    return STRATEGIES


add_list(strategy_commands, "strategies", _strategies)


@strategy_commands.command()
def check(
    path: Annotated[str, typer.Argument(help="A file.py, file.py:Class, package.module:Class or a name.")],
    options: Annotated[str, typer.Option("--options", help="The strategy's options, a JSON object.")] = "{}",
) -> None:
    """Run the conformance kit on a strategy: which check fails, on what input, and why."""
    from fedrec_app.config import parse_options
    from fedrec_app.plugins import plug_in_code
    from strategies.registry import CALLED_WITH, GROUP
    from strategies.settings import Settings
    from strategies.testing import run_all

    found = strategy_at(path)
    given = parse_options(options, "--options")
    with plug_in_code("strategy", path, found, GROUP, CALLED_WITH):
        found(given, Settings(), None)  # as a run calls it
    for line in advice(found):
        stderr.print(f"[yellow]warning:[/] {line}", highlight=False, soft_wrap=True)
    show_report(run_all(lambda: found(given)), found.__name__)


@strategy_commands.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the strategy and its package, such as 'gentle-mean'.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write to; ./NAME if left out.")] = None,
) -> None:
    """Write a package with a strategy of your own: entry point, options, tests with the kit, README."""
    from fedrec_app.strategy_template import named_in, write_package
    from strategies.registry import STRATEGIES

    folder = out or Path(name)
    for file in write_package(name, folder, STRATEGIES.names()):
        stdout.print(str(file), markup=False, highlight=False, soft_wrap=True)
    # Absolute: of a bare name pip would fetch somebody else's package.
    then = f"next: pip install -e {folder.absolute()} && fedrec strategy check {name}"
    for line in (then, f"its class is named in two places: {' and '.join(named_in(name))}"):
        say(line)


def strategy_at(path: str) -> type[RecStrategy]:
    """Returns the strategy that is meant.

    Args:
        path: "file.py", "file.py:Class", "package.module:Class", or a name that settings take.

    An aggregator or a server optimiser comes as a strategy that is plain but for it.

    Raises:
        ConfigError: there is none, there are several, or it is not one that the kit can check.
    """
    from strategies.base import RecStrategy
    from strategies.compose import PARTS
    from strategies.registry import STRATEGIES

    found = class_at(STRATEGIES, path, *PARTS.values())
    for part in PARTS.values():
        if issubclass(found, part.base):
            said = f"{found.__name__} is of the kind {part.kind!r}: the kit gets a strategy that is plain but for it"
            say(said)
            return plain_but_for(found)
    if not issubclass(found, RecStrategy):
        raise ConfigError(f"{path!r} is {found.__name__}, no fedrec_app.api.RecStrategy: the kit cannot check it")
    return found


def plain_but_for(part: type[Any]) -> type[RecStrategy]:
    """Returns a strategy that takes the weighted mean and adds it, but for one part; its options are the part's too.

    Args:
        part: an Aggregator or a ServerOptimizer.
    """
    from strategies.aggregators import Aggregator
    from strategies.base import RecStrategy
    from strategies.options import UnitOptions, WithAggregator, WithServerOptimizer

    if issubclass(part, Aggregator):
        slot, around = "make_aggregator", WithServerOptimizer if part.counts_rows else UnitOptions
    else:
        slot, around = "make_server_optimizer", WithAggregator
    body = {
        "__module__": part.__module__,
        "name": part.name,
        "api_version": getattr(part, "api_version", None),
        "Options": _merged(around, part.Options),
        slot: lambda strategy: part(strategy.options),
    }
    return type(part.__name__, (RecStrategy,), body)


def _merged(around: type[Any], own: type[Any]) -> type[Any]:
    """Returns a schema with the fields of both."""
    if issubclass(around, own) or issubclass(own, around):
        return around if issubclass(around, own) else own
    return type("Options", (around, own), {"__module__": __name__})


def advice(found: type[RecStrategy]) -> list[str]:
    """Returns what a strategy of somebody else's would do well to declare and does not."""
    from fedrec_app.plugins import API_VERSION
    from strategies.registry import BUILT_IN

    if found.__module__.partition(".")[0] == "strategies":
        return []
    lines = []
    if not found.name or "name" not in vars(found):
        lines.append(f"{found.__name__} declares no name of its own: errors and logs cannot tell it from others")
    elif found.name in BUILT_IN:
        lines.append(f"{found.name!r} is the name of a built-in strategy: an entry point of that name is ignored")
    if getattr(found, "api_version", None) is None:
        lines.append(
            f"{found.__name__} declares no api_version: with api_version = {API_VERSION} a fedrec that it does not fit "
            "refuses it and says what to do"
        )
    return lines
