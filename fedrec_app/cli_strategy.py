"""`fedrec strategy`: what strategies there are, whether one keeps the contract, and a package for a new one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec_app.cli_check import class_at, show_report
from fedrec_app.cli_plugins import add_list, stderr, stdout
from fedrec_app.errors import ConfigError, FedrecError
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
    from fedrec_app.conformance import Report
    from strategies.testing import run_all

    found = strategy_at(path)
    given = parse_options(options, "--options")
    try:
        found(given)
    except FedrecError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{found.__name__} cannot be made with the options {given}: {said}") from error
    for line in advice(found):
        stderr.print(f"[yellow]warning:[/] {line}", highlight=False, soft_wrap=True)
    show_report(Report(run_all(lambda: found(given)).results), found.__name__)


@strategy_commands.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the strategy and its package, such as 'gentle-mean'.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write to; ./NAME if left out.")] = None,
) -> None:
    """Write a package with a strategy of your own: entry point, options, tests with the kit, README."""
    from fedrec_app.strategy_template import write_package
    from strategies.registry import STRATEGIES

    folder = out or Path(name)
    for file in write_package(name, folder, STRATEGIES.names()):
        stdout.print(str(file), markup=False, highlight=False, soft_wrap=True)
    # Absolute: of a bare name pip would fetch somebody else's package.
    then = f"next: pip install {folder.absolute()} && fedrec strategy check {name}"
    stderr.print(then, markup=False, highlight=False, soft_wrap=True)


def strategy_at(path: str) -> type[RecStrategy]:
    """Returns the strategy that is meant.

    Args:
        path: "file.py", "file.py:Class", "package.module:Class", or a name that settings take.

    Raises:
        ConfigError: there is none, there are several, or it is not one that the kit can check.
    """
    from strategies.base import RecStrategy
    from strategies.registry import STRATEGIES

    found = class_at(STRATEGIES, path)
    if not issubclass(found, RecStrategy):
        raise ConfigError(f"{path!r} is {found.__name__}, no fedrec_app.api.RecStrategy: the kit cannot check it")
    return found


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
