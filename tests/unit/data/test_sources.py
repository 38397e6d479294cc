import sys
from pathlib import Path

import pandas as pd
import pytest

from fedrec_app.data import sources
from fedrec_app.data.schema import Dataset
from fedrec_app.data.sources.base import DataSource, SourceOptions
from fedrec_app.errors import ConfigError, DataError


class Tiny(DataSource[SourceOptions]):
    name = "tiny"
    summary = "three rows"

    def load(self, path: str, columns: str, options: SourceOptions, seed: int) -> Dataset:
        return Dataset.assemble(pd.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["x", "y", path]}))


def plug_in(monkeypatch, site: Path, **points: str) -> None:
    """Installs a package called as its folder, with entry points name -> "package.module:Class"."""
    info = site / f"{site.name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {site.name}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {path}\n" for name, path in points.items())
    (info / "entry_points.txt").write_text(f"[{sources.GROUP}]\n{lines}")
    monkeypatch.syspath_prepend(str(site))


def test_every_built_in_resolves_to_its_own_name() -> None:
    for name in sources.BUILT_IN:
        assert sources.resolve(name).name == name
        assert sources.resolve(name).summary


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown dataset 'ml100k': one of .* \(did you mean 'ml-100k'\?\)"):
        sources.load("ml100k")


def test_entry_point_and_class_path_are_found(monkeypatch, tmp_path) -> None:
    plug_in(monkeypatch, tmp_path / "a_shop", tiny=f"{__name__}:Tiny")
    assert "tiny" in sources.names()
    for name in ("tiny", f"{__name__}:Tiny"):
        data = sources.load(name, path="z", min_interactions=2)
        assert data.users.index.tolist() == ["a"]
        assert data.catalog.item_ids == ("x", "y", "z")
        assert sources.load_catalog(name, path="z").hash == data.catalog.hash


def test_plug_in_never_shadows_a_built_in_or_another(monkeypatch, tmp_path) -> None:
    plug_in(monkeypatch, tmp_path / "a_shop", csv=f"{__name__}:Tiny", t="one:Tiny")
    assert type(sources.resolve("csv")).__name__ == "CsvFile"
    plug_in(monkeypatch, tmp_path / "b_shop", t="two:Tiny")
    with pytest.raises(ConfigError, match=r"offered by a_shop 1\.0 and b_shop 1\.0.*'one:Tiny' or 'two:Tiny'"):
        sources.resolve("t")


@pytest.mark.parametrize("name", ["no.such.module:Thing", "json:Nothing", "json:loads", "pathlib:Path", "json:"])
def test_a_class_path_that_leads_nowhere_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError):
        sources.resolve(name)


def test_loading_one_data_set_imports_no_other() -> None:
    import subprocess

    code = "import sys; from fedrec_app.data import sources; sources.resolve('amazon-video'); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "fedrec_app.data.sources.amazon" in found
    assert "fedrec_app.data.sources.synthetic" not in found
    assert "matplotlib" not in found
    assert "torch" not in found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('{"num_user": 3}', "unknown option of dataset 'synthetic' 'num_user'.*did you mean 'num_users'"),
        ('{"num_users": 0}', "'num_users'.*found 0"),
        ('{"num_users": "many"}', "'num_users'.*found 'many'"),
        ('{"mean_interactions": 3}', "mean_interactions is below min_interactions"),
        ("[]", "must be a JSON object"),
        ("{", "are not JSON"),
    ],
)
def test_wrong_options_are_named(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sources.load("synthetic", options=options)


def test_option_of_a_data_set_without_options() -> None:
    with pytest.raises(ConfigError, match="unknown option of dataset 'ml-100k' 'x': it takes none"):
        sources.load("ml-100k", options='{"x": 1}')


def test_arguments_that_do_not_apply_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="fixed layout"):
        sources.load("amazon-video", str(tmp_path), columns="user_id=u")
    with pytest.raises(ConfigError, match="is generated"):
        sources.load("synthetic", str(tmp_path))


@pytest.mark.parametrize("name", ["ml-100k", "amazon-video", "csv"])
def test_paths_that_hold_nothing_are_named(name: str, tmp_path) -> None:
    with pytest.raises(DataError, match="needs a path"):
        sources.load(name)
    with pytest.raises(DataError, match="there is nothing at"):
        sources.load(name, str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"no file .* \(it has nothing\)"):
        sources.load(name, str(tmp_path))
    empty = tmp_path / "empty.dat"
    empty.touch()
    with pytest.raises(DataError, match="is empty"):
        sources.load(name, str(empty))
