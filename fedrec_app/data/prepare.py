"""Fetching a public data set once, so that every later run works offline, and writing a cleaned one."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fedrec_app.data import sources
from fedrec_app.data.schema import Dataset, LoadReport
from fedrec_app.data.sources import amazon, lastfm, movielens
from fedrec_app.errors import ConfigError, DataError

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Archive:
    """A public zip file.

    Attributes:
        url: where it is.
        sha256: of the whole file, hexadecimal.
        folder: in the archive, that holds the files.
        max_bytes: of the zip file.
        max_unpacked: bytes of all its members together.
    """

    url: str
    sha256: str
    folder: str
    max_bytes: int
    max_unpacked: int


@dataclass(frozen=True)
class Recipe:
    """What a data set consists of and where it comes from.

    Attributes:
        files: that must be there.
        extras: that are taken along where they exist, such as terms of use.
        archive: to download, or None where the data set must be given.
        obtain: what a person does who does not have it.
    """

    files: tuple[str, ...]
    extras: tuple[str, ...] = ("README",)
    archive: Archive | None = None
    obtain: str = ""


# the checksum is the one that TensorFlow Datasets pins for this archive, which has not changed since 1998
RECIPES = {
    "ml-100k": Recipe(
        files=(movielens.RATINGS, movielens.ITEMS, movielens.USERS, movielens.GENRES),
        archive=Archive(
            url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
            folder="ml-100k",
            max_bytes=10_000_000,
            max_unpacked=50_000_000,
        ),
    ),
    "amazon-video": Recipe(
        files=(amazon.RATINGS,),
        obtain="a folder with ratings.dat: lines of user,item,rating,timestamp made from the Amazon Instant Video "
        "reviews of users who wrote at least five (McAuley et al., SIGIR 2015)",
    ),
    "lastfm-2k": Recipe(
        files=(lastfm.LISTENING, lastfm.FRIENDS, lastfm.ARTISTS),
        obtain="a folder with user_artists.dat, user_friends.dat (two columns, no header) and artists.dat of the "
        "HetRec 2011 Last.fm data of GroupLens (non-commercial use)",
    ),
}


def prepare(name: str, source_dir: str | Path | None, out_dir: str | Path) -> LoadReport:
    """Returns what loading said about a data set that now lies in `out_dir`, ready as a data path.

    Nothing is put into `out_dir` before it has been loaded without an error.

    Args:
        name: of the data set.
        source_dir: folder with the files, or its zip file; None to download.
        out_dir: folder to write to; made if needed.

    Raises:
        ConfigError: no such data set, or one that needs no preparation.
        DataError: it cannot be fetched, is not what was expected, or does not load.
    """
    sources.resolve(name)
    recipe = RECIPES.get(name)
    if recipe is None:
        raise ConfigError(f"dataset {name!r} needs no preparation: only {', '.join(sorted(RECIPES))} do")
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error}") from error
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=out) as scratch:
        staged = Path(scratch) / "files"
        staged.mkdir()
        _gather(name, recipe, Path(source_dir) if source_dir else None, Path(scratch), staged)
        report = sources.load(name, str(staged)).report
        for file in sorted(staged.iterdir()):
            os.replace(file, out / file.name)
    return report


def write_clean(dataset: Dataset, out_dir: str | Path) -> tuple[Path, dict[str, str]]:
    """Returns the file to give as `data.path`, and the options, with which the data set `csv` loads this one again.

    Whoever holds all of the data cleans it so, once: nodes that hold parts of it cannot count the users of an item.

    Args:
        dataset: loaded and cleaned.
        out_dir: folder to write to; made if needed, and empty.

    Raises:
        DataError: it cannot be written to, or has files in it.
    """
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise DataError(f"cannot write to {out}: it is not empty")
        table = dataset.interactions.table
        path = out / "interactions.parquet"
        table.astype({"user_id": "str", "item_id": "str"}).to_parquet(path, index=False)
        options = {"catalog": "catalog.jsonl", "users": "users.parquet"}
        dataset.catalog.to_file(out / options["catalog"])
        dataset.users.reset_index().to_parquet(out / options["users"], index=False)
        if dataset.friends is not None:
            options["friends"] = "friends.parquet"
            dataset.friends.to_parquet(out / options["friends"], index=False)
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error}") from error
    return path, options


def _gather(name: str, recipe: Recipe, source: Path | None, scratch: Path, staged: Path) -> None:
    if source is not None and source.is_dir():
        for file in (*recipe.files, *recipe.extras):
            if (source / file).is_file():
                shutil.copyfile(source / file, staged / file)
            elif file in recipe.files:
                raise DataError(f"dataset {name!r}: no file {file} in {source}")
        return
    if source is not None and not source.exists():
        raise DataError(f"dataset {name!r}: there is nothing at {source}")
    if recipe.archive is None:
        raise DataError(f"dataset {name!r} cannot be downloaded: give {recipe.obtain}")
    if source is None:
        source = scratch / "archive.zip"
        download(recipe.archive, source)
    check_sum(source, recipe.archive.sha256)
    unpack(source, recipe, recipe.archive, staged)


def download(archive: Archive, path: Path) -> None:
    """Writes the archive to `path`.

    Raises:
        DataError: it cannot be reached, or is larger than it may be.
    """
    try:
        # the address is a constant above, and what comes back must have the pinned checksum
        with (
            urllib.request.urlopen(archive.url, timeout=_TIMEOUT_SECONDS) as reply,  # noqa: S310
            path.open("wb") as file,
        ):
            size = 0
            while chunk := reply.read(_CHUNK):
                size += len(chunk)
                if size > archive.max_bytes:
                    raise DataError(f"{archive.url} is larger than {archive.max_bytes:,} bytes")
                file.write(chunk)
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        hint = "fetch it elsewhere and give its folder or zip file as the source"
        raise DataError(f"cannot download {archive.url}: {error}; {hint}") from error


def check_sum(path: Path, sha256: str) -> None:
    """Checks that a file is the one that was pinned.

    Raises:
        DataError: its SHA-256 is another one.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DataError(f"{path.name} is not the expected file: SHA-256 {found} instead of {sha256}")


def unpack(path: Path, recipe: Recipe, archive: Archive, staged: Path) -> None:
    """Writes the recipe's files, and nothing else, from a zip file to the folder `staged`.

    Raises:
        DataError: not a zip file; a member is absolute, climbs with "..", or is a link; too large; a file is missing.
    """
    try:
        with zipfile.ZipFile(path) as zipped:
            members = {member.filename: member for member in zipped.infolist()}
            for member in zipped.infolist():
                _refuse_unsafe(path, member)
            if sum(member.file_size for member in zipped.infolist()) > archive.max_unpacked:
                raise DataError(f"{path.name} unpacks to more than {archive.max_unpacked:,} bytes")
            for file in (*recipe.files, *recipe.extras):
                member = members.get(f"{archive.folder}/{file}")
                if member is None:
                    if file in recipe.files:
                        raise DataError(f"{path.name} has no file {archive.folder}/{file}")
                    continue
                with zipped.open(member) as source, (staged / file).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path.name} is not an intact zip file: {error}") from error


def _refuse_unsafe(path: Path, member: zipfile.ZipInfo) -> None:
    name = PurePosixPath(member.filename.replace("\\", "/"))
    drive = len(name.parts) > 0 and name.parts[0].endswith(":")
    if name.is_absolute() or ".." in name.parts or drive or stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(f"{path.name} is unsafe: it has the member {member.filename!r}")
