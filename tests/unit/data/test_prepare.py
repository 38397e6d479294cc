import functools
import hashlib
import http.server
import io
import json
import stat
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from fedrec_app.data import prepare as prepare_module
from fedrec_app.data import sources
from fedrec_app.data.prepare import RECIPES, prepare, write_clean
from fedrec_app.errors import ConfigError, DataError

GENRES = "unknown|0\nAction|1\n\n"
ITEMS = "1|Amélie (2001)|01-Jan-2001|||0|1\n2|Nameless||||1|0\n"
FILES = {
    "u.data": "1\t1\t5\t10\n1\t2\t3\t20\n2\t1\t4\t30\n",
    "u.item": ITEMS,
    "u.user": "1|30|F|writer|00000\n2|40|M|other|00000\n",
    "u.genre": GENRES,
}


def zipped(members: dict[str, str], links: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            info = zipfile.ZipInfo(name)
            if name in links:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, text.encode("latin-1"))
    return buffer.getvalue()


GOOD = {f"ml-100k/{name}": text for name, text in FILES.items()}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Yields the address of a local web server and the folder that it serves."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder
        httpd.shutdown()
        thread.join()


def pin(monkeypatch, **changes: object) -> None:
    recipe = RECIPES["ml-100k"]
    assert recipe.archive is not None
    monkeypatch.setitem(RECIPES, "ml-100k", replace(recipe, archive=replace(recipe.archive, **changes)))


def serve(monkeypatch, server: tuple[str, Path], content: bytes, **changes: object) -> None:
    (server[1] / "ml.zip").write_bytes(content)
    pin(
        monkeypatch,
        **{
            "url": f"{server[0]}/ml.zip",
            "sha256": hashlib.sha256(content).hexdigest(),
            "max_bytes": 10_000,
            "max_unpacked": 10_000,
            **changes,
        },
    )


def test_the_official_archive_is_pinned() -> None:
    archive = RECIPES["ml-100k"].archive
    assert archive is not None
    assert archive.url == "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
    assert archive.sha256 == "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"


def test_download_gives_a_folder_that_loads(monkeypatch, server, tmp_path) -> None:
    serve(monkeypatch, server, zipped({"ml-100k/README": "terms", "ml-100k/mku.sh": "rm", **GOOD}))
    out = tmp_path / "out"
    assert prepare("ml-100k", None, out).rows_kept == 3
    assert sorted(path.name for path in out.iterdir()) == ["README", "u.data", "u.genre", "u.item", "u.user"]
    data = sources.load("ml-100k", str(out))
    assert data.catalog.features["title"].tolist() == ["Amélie (2001)", "Nameless"]
    assert data.catalog.features["category"].tolist() == ["Action", "unknown"]
    assert data.catalog.features["year"].tolist()[0] == 2001


def test_another_archive_than_the_pinned_one_is_refused(monkeypatch, server, tmp_path) -> None:
    serve(monkeypatch, server, zipped(GOOD), sha256="0" * 64)
    with pytest.raises(DataError, match="is not the expected file: SHA-256"):
        prepare("ml-100k", None, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("members", "links"),
    [
        ({"/etc/evil": "x"}, ()),
        ({"ml-100k/../../evil": "x"}, ()),
        ({"ml-100k\\..\\..\\evil": "x"}, ()),
        ({"C:/evil": "x"}, ()),
        ({"ml-100k/u.data": "/etc/passwd"}, ("ml-100k/u.data",)),
    ],
)
def test_unsafe_archives_are_refused_whole(monkeypatch, server, tmp_path, members, links) -> None:
    serve(monkeypatch, server, zipped({**GOOD, **members}, links))
    with pytest.raises(DataError, match="unsafe"):
        prepare("ml-100k", None, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert not list(tmp_path.rglob("evil"))


def test_archives_that_are_too_large_broken_or_lack_a_file_are_refused(monkeypatch, server, tmp_path) -> None:
    content = zipped(GOOD)
    serve(monkeypatch, server, content, max_bytes=len(content) - 1)
    with pytest.raises(DataError, match="is larger than"):
        prepare("ml-100k", None, tmp_path)
    serve(monkeypatch, server, content, max_unpacked=50)
    with pytest.raises(DataError, match="unpacks to more than 50 bytes"):
        prepare("ml-100k", None, tmp_path)
    serve(monkeypatch, server, b"<html>moved</html>")
    with pytest.raises(DataError, match="not an intact zip file"):
        prepare("ml-100k", None, tmp_path)
    serve(monkeypatch, server, zipped({name: text for name, text in GOOD.items() if "u.user" not in name}))
    with pytest.raises(DataError, match=r"has no file ml-100k/u\.user"):
        prepare("ml-100k", None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["www"]


def test_no_network_says_what_to_do(monkeypatch, server, tmp_path) -> None:
    pin(monkeypatch, url=f"{server[0]}/gone.zip")
    with pytest.raises(DataError, match=r"cannot download .*gone\.zip.*fetch it elsewhere"):
        prepare("ml-100k", None, tmp_path)


def test_a_folder_is_copied_and_a_zip_file_unpacked(monkeypatch, tmp_path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, text in FILES.items():
        (source / name).write_bytes(text.encode("latin-1"))
    assert prepare("ml-100k", source, tmp_path / "one").rows_kept == 3
    assert (tmp_path / "one" / "u.item").read_bytes() == (source / "u.item").read_bytes()
    content = zipped(GOOD)
    (tmp_path / "ml.zip").write_bytes(content)
    pin(monkeypatch, sha256=hashlib.sha256(content).hexdigest())
    assert prepare("ml-100k", tmp_path / "ml.zip", tmp_path / "two").rows_kept == 3
    (source / "u.user").unlink()
    with pytest.raises(DataError, match=r"no file u\.user"):
        prepare("ml-100k", source, tmp_path / "three")


def test_what_does_not_load_is_not_kept(tmp_path) -> None:
    (tmp_path / "ratings.dat").write_text("u,,5,1\n")
    with pytest.raises(DataError, match="no usable interaction"):
        prepare("amazon-video", tmp_path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_other_data_sets_say_what_they_need(tmp_path) -> None:
    (tmp_path / "ratings.dat").write_text("u,i,5,1\n")
    assert prepare("amazon-video", tmp_path, tmp_path / "out").rows_kept == 1
    with pytest.raises(DataError, match=r"cannot be downloaded: give a folder with ratings\.dat"):
        prepare("amazon-video", None, tmp_path / "out")
    with pytest.raises(DataError, match="there is nothing at"):
        prepare("amazon-video", tmp_path / "gone", tmp_path / "out")
    with pytest.raises(ConfigError, match="needs no preparation"):
        prepare("synthetic", None, tmp_path / "out")
    with pytest.raises(ConfigError, match="did you mean 'ml-100k'"):
        prepare("ml100k", None, tmp_path / "out")


def test_downloads_are_never_started_by_loading(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(prepare_module.urllib.request, "urlopen", lambda *a, **k: pytest.fail("network"))
    with pytest.raises(DataError):
        sources.load("ml-100k", str(tmp_path / "gone"))


@pytest.mark.parametrize("labels", [False, True])
def test_a_cleaned_data_set_is_written_and_loads_again_as_it_was(tmp_path, labels: bool) -> None:
    options = {"num_users": 60, "num_items": 150, "mean_interactions": 20, "min_interactions": 5, "labels": labels}
    data = sources.load("synthetic", options=json.dumps(options), k_core=4, max_interactions=200)
    assert 0 < data.num_items < 150
    path, to_read = write_clean(data, tmp_path / "out")
    again = sources.load("csv", str(path), options=json.dumps(to_read))
    pd.testing.assert_frame_equal(again.interactions.table, data.interactions.table, check_categorical=False)
    assert (again.user_codes == data.user_codes).all()
    pd.testing.assert_frame_equal(again.users, data.users)
    assert again.catalog.hash == data.catalog.hash
    assert again.friends is not None
    assert again.friends.equals(data.friends)
    with pytest.raises(DataError, match="it is not empty"):
        write_clean(data, tmp_path / "out")
