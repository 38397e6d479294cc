"""`fedrec model check` and `fedrec data check`: the conformance kits on the command line."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from fedrec_app.errors import ConfigError, DataError, FedrecError, unknown

if TYPE_CHECKING:
    from fedrec_app.conformance import Report
    from fedrec_app.plugins import Registry

stdout = Console()

Options = Annotated[str, typer.Option("--options", help="Its own options, a JSON object.")]


def check_model(
    path: Annotated[str, typer.Argument(help="A file.py, file.py:Class, package.module:Class or a name.")],
    options: Options = "{}",
    embedding_dim: Annotated[
        int, typer.Option("--embedding-dim", min=0, help="Width of embeddings; the model's own if left out.")
    ] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("-c", "--run-config", help="Settings over its recipe, such as 'train.num-negatives=4'."),
    ] = None,
) -> None:
    """Run the conformance kit on a model: which check fails, on what input, and why."""
    from fedrec_app.config import parse_options, parse_overrides, validate_options
    from fedrec_app.models.registry import MODELS
    from fedrec_app.testing.models import ModelCase, run_all

    found = class_at(MODELS, path)
    given = parse_options(options, "--options")
    validate_options(found.Options, given, f"model {found.name or found.__name__!r}")
    flat = parse_overrides(settings or [])
    if embedding_dim:
        flat["model.embedding-dim"] = embedding_dim
    case = ModelCase(found, given, flat)
    _ = case.asked  # a wrong setting is the reader's, not the model's
    show_report(run_all(case), found.__name__)


def check_data(
    name: Annotated[str, typer.Argument(help="A name, package.module:Class, file.py or file.py:Class.")],
    path: Annotated[str, typer.Option("--path", help="File or folder of the data set.")] = "",
    columns: Annotated[str, typer.Option("--columns", help="Mapping 'user_id=user,item_id=film'.")] = "",
    options: Options = "{}",
) -> None:
    """Run the conformance kit on a data set as it is loaded: which check fails, on what input, and why."""
    from fedrec_app.config import parse_options
    from fedrec_app.data.sources import DATASETS
    from fedrec_app.testing.datasets import DataCase, run_all

    found = class_at(DATASETS, name)
    if columns and not found.takes_columns:
        raise ConfigError(f"dataset {name!r} has a fixed layout: a column mapping ({columns!r}) does not apply")
    if path and not found.takes_path:
        raise ConfigError(f"dataset {name!r} is generated: a path ({path!r}) does not apply")
    case = DataCase(found, path, columns, parse_options(options, "--options"))
    try:
        _ = case.data
    except FedrecError:
        raise
    except Exception as error:
        raise DataError(f"dataset {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    show_report(run_all(case), found.__name__)


def show_report(report: Report, checked: str) -> None:
    """Prints what a kit found, a check a line, and ends the command with exit code 1 where something failed.

    Args:
        report: of a kit.
        checked: what was checked.
    """
    lines = [
        f"[red]FAILED[/]  {escape(message)}" if message else f"[green]passed[/]  {name}"
        for name, message in report.results.items()
    ]
    lines += [f"[dim]not run[/] {name}" for name in report.not_run]
    passed, asked = len(report.results) - len(report.failed), len(report.results) + len(report.not_run)
    lines.append(f"{escape(checked)}: {passed} of {asked} checks passed")
    for line in lines:
        stdout.print(line, highlight=False, soft_wrap=True)
    if not report.passed:
        raise typer.Exit(1)


def class_at(registry: Registry[Any], path: str) -> type[Any]:
    """Returns the class that is meant.

    Args:
        registry: of its kind.
        path: "file.py", "file.py:Class", "package.module:Class", or a name that settings take.

    Raises:
        ConfigError: there is none, there are several, or it was written for another API.
    """
    from fedrec_app.plugins import check_api_version

    in_file = re.fullmatch(r"(.+\.py)(?::(\w+))?", path)
    if not in_file:
        return registry.find(path)
    file, name = Path(in_file.group(1)), in_file.group(2) or ""
    module = _module(file)
    classes = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, registry.base) and value.__module__ == module.__name__
    }
    public = [key for key in classes if not key.startswith("_")]
    if not classes or not (name or public):
        raise ConfigError(f"{file} holds no {registry.kind}: no class in it derives from {registry.contract}")
    if name and name not in classes:
        raise ConfigError(unknown(f"{registry.kind} in {file}", name, classes))
    if not name and len(public) > 1:
        which = " or ".join(f"{file}:{key}" for key in public)
        raise ConfigError(f"{file} holds {len(public)} of them: say which {registry.kind}, {which}")
    found = classes[name or public[0]]
    check_api_version(registry.kind, found.__name__, found, file.name)
    return found


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks annotations up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise ConfigError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
