"""`fedrec model check` and `fedrec data check`: the conformance kits on the command line."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
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
    from fedrec_app.models.registry import GROUP, MODELS
    from fedrec_app.plugins import plug_in_code
    from fedrec_app.testing.models import ModelCase, run_all

    found = class_at(MODELS, path)
    given = parse_options(options, "--options")
    validate_options(found.Options, given, f"model {found.name or found.__name__!r}")
    flat = parse_overrides(settings or [])
    if embedding_dim:
        flat["model.embedding-dim"] = embedding_dim
    case = ModelCase(found, given, flat)
    _ = case.asked  # a wrong setting is the reader's, not the model's
    with plug_in_code("model", path, found, GROUP, ("embedding_dim", "options")):
        case.make()
    show_report(run_all(case), found.__name__)


def check_data(
    name: Annotated[str, typer.Argument(help="A name, package.module:Class, file.py or file.py:Class.")],
    path: Annotated[str, typer.Option("--path", help="File or folder of the data set.")] = "",
    columns: Annotated[str, typer.Option("--columns", help="Mapping 'user_id=user,item_id=film'.")] = "",
    options: Options = "{}",
) -> None:
    """Run the conformance kit on a data set as it is loaded: which check fails, on what input, and why."""
    from fedrec_app.config import parse_options
    from fedrec_app.data.sources import DATASETS, GROUP
    from fedrec_app.plugins import plug_in_code
    from fedrec_app.testing.datasets import DataCase, run_all

    found = class_at(DATASETS, name)
    if columns and not found.takes_columns:
        raise ConfigError(f"dataset {name!r} has a fixed layout: a column mapping ({columns!r}) does not apply")
    if path and not found.takes_path:
        raise ConfigError(f"dataset {name!r} is generated: a path ({path!r}) does not apply")
    with plug_in_code("dataset", name, found, GROUP, ()):
        found()
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
    colours = {"passed": "green", "FAILED": "red", "not run": "dim"}
    lines = [f"[{colours[word]}]{word:<7}[/] {escape(text)}" for word, text in report.lines()]
    passed, asked = len(report.results) - len(report.failed), len(report.results) + len(report.not_run)
    lines.append(f"{escape(checked)}: {passed} of {asked} checks passed")
    for line in lines:
        stdout.print(line, highlight=False, soft_wrap=True)
    if not report.passed:
        raise typer.Exit(1)


def class_at(registry: Registry[Any], path: str, *parts: Registry[Any]) -> type[Any]:
    """Returns the class that is meant.

    Args:
        registry: of its kind.
        path: "file.py", "file.py:Class", "package.module:Class", or a name that settings take.
        parts: of kinds that are taken too, where the file or the path leads to none of the first kind.

    Raises:
        ConfigError: there is none, there are several, or it was written for another API.
    """
    from fedrec_app.plugins import load

    if in_file := re.fullmatch(r"(.+\.py)(?::(\w+))?", path):
        return _in_file((registry, *parts), Path(in_file.group(1)), in_file.group(2) or "")
    if Path(path).is_dir() and path not in registry.names():
        raise ConfigError(_folder_problem(registry, Path(path)))
    if ":" in path and parts:
        found = load(registry.kind, path, path)
        return next((kind for kind in (registry, *parts) if issubclass(found, kind.base)), registry).find(path)
    return registry.find(path)


def _in_file(registries: Sequence[Registry[Any]], file: Path, name: str) -> type[Any]:
    from fedrec_app.plugins import check_declarations

    module, wanted = _module(file), registries[0]
    by_kind = [_classes(module, registry) for registry in registries]
    # A class that is named may be of any kind; without a name those of the first kind that there is.
    holds = [classes for classes in by_kind if name in classes or (not name and any(map(_is_public, classes)))]
    if not holds and not any(by_kind):
        raise ConfigError(f"{file} holds no {wanted.kind}: no class in it derives from {wanted.contract}")
    if not holds and not name:
        raise ConfigError(f"{file} holds no {wanted.kind} whose name has no leading underscore")
    if not holds:
        raise ConfigError(unknown(f"{wanted.kind} in {file}", name, {key for classes in by_kind for key in classes}))
    public = [key for key in holds[0] if _is_public(key)]
    if not name and len(public) > 1:
        which = " or ".join(f"{file}:{key}" for key in public)
        raise ConfigError(f"{file} holds {len(public)} of them: say which {wanted.kind}, {which}")
    found = holds[0][name or public[0]]
    check_declarations(wanted.kind, found.__name__, found, file.name)
    return found


def _classes(module: ModuleType, registry: Registry[Any]) -> dict[str, type[Any]]:
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, registry.base) and value.__module__ == module.__name__
    }


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _folder_problem(registry: Registry[Any], folder: Path) -> str:
    files = [
        str(file)
        for file in sorted([*folder.glob("*.py"), *folder.glob("*/*.py")])
        if file.parent.name not in ("tests", "build") and "fedrec_app" in file.read_text("utf-8", "replace")
    ]
    hint = f" (did you mean {' or '.join(files)}?)" if files else ""
    return f"{folder} is a folder: a file.py, or the name of a {registry.kind}, is expected{hint}"


def _module(path: Path) -> ModuleType:
    from fedrec_app.plugin_faults import import_problem

    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks annotations up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise ConfigError(f"{path} cannot be imported: {import_problem(error, spec.name, '')}") from error
    return module
