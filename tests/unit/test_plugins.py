"""Finding classes by name. Packages are real ones, as an installer leaves them: modules beside a dist-info folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedrec_app import plugins
from fedrec_app.api import API_VERSION, DataSource, Recommender, RecStrategy
from fedrec_app.data import sources
from fedrec_app.errors import ConfigError
from fedrec_app.models.registry import MODELS, model_class
from fedrec_app.plugins import Registry
from strategies.registry import BUILT_IN, STRATEGIES, strategy_class

STRATEGY = """
from fedrec_app.api import RecStrategy
class Plug(RecStrategy):
    "A plug-in."
    name = "plug"
"""
MODEL = """
from fedrec_app.api import Recommender
class Plug(Recommender):
    name = "plug"
"""
SOURCE = """
from fedrec_app.api import DataSource, SourceOptions
class Plug(DataSource[SourceOptions]):
    name, summary = "plug", "a plug-in"
    def load(self, path, columns, options, seed):
        raise NotImplementedError
"""
KINDS = {
    "strategy": (STRATEGIES, STRATEGY, RecStrategy, "fedavg"),
    "model": (MODELS, MODEL, Recommender, "mf"),
    "dataset": (sources.DATASETS, SOURCE, DataSource, "csv"),
}
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with one module, and entry points name -> class of that module, in one group."""
    before = set(sys.modules)

    def write(package: str, code: str, group: str, version: str = "1.0", **points: str) -> Path:
        site = tmp_path / package
        info = site / f"{package}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{package}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        lines = [f"{name} = {package}:{attribute}" for name, attribute in points.items()]
        (info / "entry_points.txt").write_text(f"[{group}]\n" + "\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(site))
        return site

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_of_an_installed_package_is_found_by_its_name_and_by_its_path(kind: str, install: Install) -> None:
    registry, code, base, _ = KINDS[kind]
    install(f"found_{kind}", code, registry.group, version="2.3", plug="Plug")
    found = registry.find("plug")
    assert issubclass(found, base)
    assert found is registry.find(f"found_{kind}:Plug")
    assert "plug" in registry.names()
    (entry,) = [entry for entry in registry.listing() if entry.name == "plug"]
    assert entry == plugins.Entry("plug", f"found_{kind} 2.3", f"found_{kind}:Plug", found)


def test_the_functions_that_runs_call_find_plug_ins_too(install: Install) -> None:
    install("run_strategy", STRATEGY, "fedrec.strategies", plug="Plug")
    install("run_model", MODEL, "fedrec.models", plug="Plug")
    install("run_source", SOURCE, "fedrec.datasets", plug="Plug")
    assert strategy_class("plug").__module__ == "run_strategy"
    assert model_class("plug").__module__ == "run_model"
    assert type(sources.resolve("plug")).__module__ == "run_source"
    assert "plug" in sources.names()


@pytest.mark.parametrize("kind", KINDS)
def test_a_plug_in_never_takes_the_place_of_a_built_in(
    kind: str, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    registry, code, _, name = KINDS[kind]
    before = registry.find(name)
    package = f"shadows_{kind}"
    install(package, code, registry.group, **{name: "Plug"})
    with caplog.at_level(logging.WARNING, "fedrec"):
        assert registry.find(name) is before
        assert registry.find(name) is before
    assert caplog.messages == [
        f"{kind} {name!r} is the built-in one: that of package {package} 1.0 is ignored; its class path "
        f"'{package}:Plug' works"
    ]
    assert package not in sys.modules
    built_in, ignored = (entry for entry in registry.listing() if entry.name == name)
    assert (built_in.source, built_in.found) == ("built-in", before)
    assert (ignored.source, ignored.found) == (f"{package} 1.0", None)
    assert ignored.problem.startswith(f"ignored: {name!r} is the name of a built-in {kind}")
    assert registry.names().count(name) == 1
    assert registry.find(f"{package}:Plug").__module__ == package


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_two_packages_offer_is_an_error_that_names_both(kind: str, install: Install) -> None:
    registry, code, *_ = KINDS[kind]
    for package in (f"one_{kind}", f"two_{kind}"):
        install(package, code, registry.group, twice="Plug")
    with pytest.raises(ConfigError, match=f"{kind} 'twice' is offered by one_{kind} 1.0 and two_{kind} 1.0"):
        registry.find("twice")
    assert "twice" not in registry.names()
    problems = {entry.source: entry.problem for entry in registry.listing() if entry.name == "twice"}
    assert problems[f"one_{kind} 1.0"].startswith(f"ignored: two_{kind} 1.0 offers 'twice' too")
    assert problems[f"two_{kind} 1.0"].startswith(f"ignored: one_{kind} 1.0 offers 'twice' too")
    assert registry.find(f"one_{kind}:Plug").__module__ == f"one_{kind}"


@pytest.mark.parametrize(
    ("declared", "what_to_do"),
    [
        (
            API_VERSION + 1,
            "was written for fedrec's plug-in API 2, this is 1: update fedrec, or install a version of 'PACKAGE' for "
            "API 1",
        ),
        (
            API_VERSION - 1,
            "was written for fedrec's plug-in API 0, this is 1: update 'PACKAGE', or install a fedrec with API 0",
        ),
        ('"1"', "its api_version is '1', a whole number is expected"),
    ],
    ids=["newer", "older", "text"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_another_api_version_fails_at_load_and_says_what_to_do(
    kind: str, declared: object, what_to_do: str, install: Install
) -> None:
    registry, code, *_ = KINDS[kind]
    package = f"other_api_{kind}"
    install(package, f"{code}\nPlug.api_version = {declared}\n", registry.group, plug="Plug")
    for name in ("plug", f"{package}:Plug"):
        with pytest.raises(ConfigError) as caught:
            registry.find(name)
        assert what_to_do.replace("PACKAGE", package) in str(caught.value)
    (entry,) = [entry for entry in registry.listing() if entry.name == "plug"]
    assert entry.problem.startswith(f"broken: {kind} 'plug'")


@pytest.mark.parametrize("declared", [API_VERSION, None])
def test_this_api_version_or_none_is_taken(declared: int | None, install: Install) -> None:
    install("this_api", f"{STRATEGY}\nPlug.api_version = {declared}\n", "fedrec.strategies", plug="Plug")
    assert strategy_class("plug").__module__ == "this_api"


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (
            "import no_such_module_at_all",
            "/broken/broken.py:1): install it, or uninstall broken",
        ),
        ("raise OSError('no licence')", "OSError: no licence ("),
        ("import sys\nsys.exit('bye')", "SystemExit: bye ("),
        ("def (", "SyntaxError: "),
        (
            "x = 1",
            "module 'broken' has no 'Plug': it has no classes; the entry point in the pyproject.toml of broken names "
            "it: correct it, install again",
        ),
        (
            "class Plugg: pass\nclass _Plug: pass",
            "has no 'Plug': it has Plugg (did you mean 'broken:Plugg'?); the entry",
        ),
        ("Plug = 3", "'broken:Plug' of package broken 1.0 is a int, a class is expected"),
        (
            "class Plug: pass",
            "is the class 'broken:Plug' of package broken 1.0, which does not derive from fedrec_app.api.DataSource",
        ),
        (
            SOURCE + "    Options = {}",
            "its Options is {}, which is no pydantic model: derive it from one of the option",
        ),
        (SOURCE + "    class Options:\n        x = 1", "its Options is the class Plug.Options, which is no pydantic"),
        (
            SOURCE + "    class Options(SourceOptions):\n        p: float = 'abc'",
            "a default does not fit its own option: p is 'abc': must be a valid number",
        ),
        (
            "from fedrec_app.api import DataSource\nclass Plug(DataSource): pass",
            "Plug does not define load",
        ),
    ],
)
def test_a_broken_plug_in_is_named_with_its_cause_and_listed_as_broken(code: str, cause: str, install: Install) -> None:
    install("broken", code, sources.GROUP, plug="Plug")
    with pytest.raises(ConfigError) as caught:
        sources.resolve("plug")
    assert cause in str(caught.value)
    assert "dataset 'plug'" in str(caught.value)
    entries = sources.DATASETS.listing()
    (broken,) = [entry for entry in entries if entry.problem]
    assert (broken.name, broken.source) == ("plug", "broken 1.0")
    assert cause in broken.problem
    assert {entry.name for entry in entries if entry.found} >= set(sources.BUILT_IN)


def test_a_plug_in_that_cannot_be_imported_is_named_with_its_package(install: Install) -> None:
    install("needs_more", "import no_such_module_at_all", "fedrec.models", version="0.9", plug="Plug")
    with pytest.raises(ConfigError, match="model 'plug' cannot be loaded from 'needs_more:Plug' of package needs_more"):
        model_class("plug")


def test_an_unknown_name_says_what_there_is_and_where_plug_ins_must_be(install: Install) -> None:
    install("gentle", STRATEGY, "fedrec.strategies", gentle="Plug")
    with pytest.raises(ConfigError) as caught:
        strategy_class("gentel")
    assert "(did you mean 'gentle'?)" in str(caught.value)
    assert "must be installed where the run runs" in str(caught.value)


def test_an_unknown_name_offers_each_name_once_and_none_that_does_not_work(install: Install) -> None:
    install("gentle", STRATEGY, "fedrec.strategies", gentle="Plug", fedavg="Plug")
    install("rotten", "import no_such_module_at_all", "fedrec.strategies", rotten="Plug")
    for package in ("one", "two"):
        install(package, STRATEGY, "fedrec.strategies", twice="Plug")
    with pytest.raises(ConfigError) as caught:
        strategy_class("nothing-like-it")
    offered = str(caught.value).partition(": one of ")[2].partition(", or ")[0].split(", ")
    assert offered == sorted([*BUILT_IN, "gentle"])


def test_an_entry_point_to_a_module_that_is_not_there_names_the_nearest(install: Install) -> None:
    site = install("parcel", STRATEGY, "fedrec.strategies")
    (site / "parcel.py").unlink()
    (site / "parcel").mkdir()
    (site / "parcel" / "__init__.py").write_text("")
    (site / "parcel" / "rules.py").write_text(STRATEGY)
    (info,) = site.glob("*.dist-info")
    (info / "entry_points.txt").write_text("[fedrec.strategies]\nplug = parcel.rule:Plug\n")
    with pytest.raises(
        ConfigError, match=r"no module 'rule' in 'parcel' \(did you mean 'parcel\.rules'\?\); the entry"
    ):
        strategy_class("plug")


def test_an_entry_point_without_a_class_is_an_error(install: Install) -> None:
    site = install("no_class", STRATEGY, "fedrec.strategies")
    (info,) = site.glob("*.dist-info")
    (info / "entry_points.txt").write_text("[fedrec.strategies]\nplug = no_class\n")
    with pytest.raises(ConfigError, match=r'"package\.module:Class" is expected'):
        strategy_class("plug")


def test_a_name_of_one_kind_is_none_of_another(install: Install) -> None:
    install("a_strategy", STRATEGY, "fedrec.strategies", plug="Plug")
    with pytest.raises(ConfigError, match="unknown model 'plug'"):
        model_class("plug")


def test_a_registry_of_any_kind_goes_by_the_same_rules(install: Install) -> None:
    install("a_part", "class Part: pass", "fedrec.parts", part="Part", own="Part")
    built_in = {"own": "pathlib:Path"}
    registry = Registry("part", built_in, "fedrec.parts", object, "object")
    assert registry.find("own") is Path
    assert registry.find("part").__module__ == "a_part"
    assert registry.names() == ["own", "part"]
