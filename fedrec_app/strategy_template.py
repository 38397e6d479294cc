"""The package that `fedrec strategy new` writes: its files as texts, filled in by `string.Template`."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from collections.abc import Collection
from pathlib import Path
from string import Template

from fedrec_app.errors import ConfigError
from fedrec_app.plugins import API_VERSION

_RESERVED = {"auto", "fedrec", "tests"}

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=70.1"]
build-backend = "setuptools.build_meta"

[project]
name = "$name"
version = "0.1.0"
description = "The federated strategy $name, a plug-in of fedrec"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["fedrec"]

[project.optional-dependencies]
dev = ["pytest>=8"]

[project.entry-points."fedrec.strategies"]
$name = "$package.strategy:$cls"

[tool.setuptools]
packages = ["$package"]

[tool.pytest.ini_options]
testpaths = ["tests"]

[tool.ruff]
line-length = 120
"""

_INIT = '''\
"""The federated strategy $name, a plug-in of fedrec."""
'''

_STRATEGY = '''\
"""$cls: the weighted mean of the updates, in steps of bounded length."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from fedrec_app.api import Arrays, MeanOptions, RecStrategy, Update
from pydantic import Field


class $cls(RecStrategy):
    """The weighted mean; no parameter moves further than `max_norm` in a round, whatever the nodes send."""

    name = "$name"
    summary_line = "weighted mean, in steps of bounded length"
    api_version = $api_version

    class Options(MeanOptions):
        """What users set with `strategy.options`, beside the weighting."""

        max_norm: float = Field(default=10.0, gt=0, description="L2 norm that a parameter moves by at most")

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        """Returns the mean delta of each parameter, shortened to `max_norm` where it is longer.

        Args:
            updates: of the nodes, validated; read once, as they arrive.
            params: the current parameters.
        """
        mean = super().aggregate(updates, params)
        return {name: delta * self._factor(delta) for name, delta in mean.items()}

    def _factor(self, delta: np.ndarray) -> float:
        norm = float(np.linalg.norm(delta))
        return min(1.0, self.options.max_norm / norm) if norm > 0 else 1.0
'''

_CONFORMANCE = '''\
"""The strategy keeps the contract of every strategy.

It is found as a run finds it, by its name: the entry point in pyproject.toml says which class that is.
"""

from __future__ import annotations

from typing import Any

import pytest
from fedrec_app.api import CHECKS, applicable
from strategies.registry import strategy_class

Strategy: Any = strategy_class("$name")
# With each of these the strategy is checked: options without a default are needed here, others are worth a line.
OPTIONS: list[dict[str, Any]] = [{}]


@pytest.mark.parametrize(
    ("options", "check"),
    [(options, check) for options in OPTIONS for check in applicable(lambda options=options: Strategy(options))],
    ids=str,
)
def test_conforms(check: str, options: dict[str, Any]) -> None:
    CHECKS[check](lambda: Strategy(options))
'''

_NUMBERS = '''\
"""Replace me with your numbers: what the strategy, as it was made, does to a mean that was worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fedrec_app.api import ConfigError, Update
from strategies.registry import strategy_class

Strategy: Any = strategy_class("$name")
pytestmark = pytest.mark.skipif(
    "max_norm" not in Strategy.Options.model_fields,
    reason="replace tests/test_numbers.py with your numbers: it is about the option max_norm, which is gone",
)


def test_steps_are_as_long_as_the_mean_or_as_max_norm() -> None:
    params = {"w": np.zeros(2, np.float32)}
    deltas = [([12.0, 0.0], 1.0), ([0.0, 12.0], 3.0)]  # weighted sums and their weights: the mean is (3, 3)
    updates = [Update({"delta/w": np.array(delta)}, {"weight": weight}) for delta, weight in deltas]
    whole = Strategy().aggregate(iter(updates), params)["w"]
    np.testing.assert_allclose(whole, [3.0, 3.0])
    short = Strategy({"max_norm": 1.0}).aggregate(iter(updates), params)["w"]
    np.testing.assert_allclose(short, [0.5**0.5, 0.5**0.5])


def test_a_norm_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_norm"):
        Strategy({"max_norm": 0})
'''

_README = """\
# $name

A federated strategy for fedrec: the weighted mean of the updates, in steps of bounded length.

## Install

Into the environment where fedrec is installed, on every machine that runs part of a federation (server and nodes):

    pip install .

## Check

    pip install -e '.[dev]' && pytest
    fedrec strategy check $name
    fedrec strategy list $name

`fedrec strategy check $package/strategy.py` checks the file as it is, before it is installed.

## Run

    fedrec run -c 'strategy.name="$name" num-server-rounds=20'
    fedrec run -c 'strategy.name="$name"' -c "strategy.options='{\\"max_norm\\": 1.0}'"

In a checkout of fedrec, `flwr run . -c 'strategy.name="$name"'` does the same with Flower's own command; fedrec's
README says what to set before.

## Make it yours

Edit `$package/strategy.py`: override `aggregate` for another rule, `server_step` for another step; what comes from
nodes has been validated before either sees it. `api_version` says which plug-in API of fedrec it was written for: a
fedrec with another one refuses it, and says what to do.

| file | what to do with it |
|---|---|
| `tests/test_conformance.py` | runs fedrec's kit, which finds most mistakes: keep it, add options to its list |
| `tests/test_numbers.py` | is about `max_norm`: replace it with numbers that you worked out for your rule |

Two places name the class `$cls`: `$package/strategy.py`, and the entry point in `pyproject.toml`. Rename it in both,
then install again. The name `$name` stands in `strategy.py` (`name`), in `pyproject.toml` (the key of the entry point)
and in the tests.
"""

_FILES = {
    "pyproject.toml": _PYPROJECT,
    "README.md": _README,
    "$package/__init__.py": _INIT,
    "$package/strategy.py": _STRATEGY,
    "tests/test_conformance.py": _CONFORMANCE,
    "tests/test_numbers.py": _NUMBERS,
}


def write_package(name: str, folder: Path, taken: Collection[str]) -> list[Path]:
    """Returns the files of a new package, written.

    Args:
        name: of the package and of its strategy.
        folder: to write to; it is made, and must be empty.
        taken: names of strategies that are there already.

    Raises:
        ConfigError: the name does not do, or there is something in the folder.
    """
    package = module_name(name, taken)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already: --out takes a folder that is new or empty")
    words = {
        "name": name,
        "package": package,
        "cls": "".join(word[:1].upper() + word[1:] for word in package.split("_")),
        "api_version": str(API_VERSION),
    }
    written = []
    for path, text in _FILES.items():
        target = folder / Template(path).substitute(words)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(text).substitute(words), encoding="utf-8")
        written.append(target)
    return written


def named_in(name: str) -> tuple[str, str]:
    """Returns where a new package names its class: a rename that leaves one of them out breaks it."""
    return f"{name.replace('-', '_')}/strategy.py", "the entry point in pyproject.toml (install again after a change)"


def module_name(name: str, taken: Collection[str]) -> str:
    """Returns the Python package of a plug-in: "trimmed_twice" for "trimmed-twice".

    Args:
        name: lower-case letters, digits, "-" and "_", a letter first, so that it is a package's name too.
        taken: names of strategies that are there already.

    Raises:
        ConfigError: the name is malformed, or stands for something else already.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9_-]*[a-z0-9])?", name):
        raise ConfigError(f"{name!r} is no name for a strategy: lower-case letters, digits, - and _, a letter first")
    package = name.replace("-", "_")
    if package in {other.replace("-", "_") for other in taken}:
        raise ConfigError(
            f"there is a strategy {name!r} already, and a plug-in never takes its place: choose another name"
        )
    if keyword.iskeyword(package) or keyword.issoftkeyword(package):
        raise ConfigError(f"{name!r} is a word of Python: choose another name")
    if name in _RESERVED or package in sys.stdlib_module_names:
        raise ConfigError(f"{name!r} means something else already: choose another name")
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        raise ConfigError(f"the Python package {package!r} is installed already ({spec.origin}): choose another name")
    return package
