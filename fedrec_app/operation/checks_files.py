"""Checks of files: keys, data, catalogs, the state folder and its disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fedrec_app.errors import FedrecError
from fedrec_app.files import require_writable, write_atomically
from fedrec_app.operation.checks import Check

_LITTLE, _TOO_LITTLE = 1 << 30, 50 << 20


def key_mode(path: Path) -> Check:
    """Returns whether a private key is there, and its owner's alone."""
    name = f"key {path.name}"
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        return Check(name, "failed", f"{error.strerror}: {path}", "name the file that the process is started with")
    if not os.access(path, os.R_OK):
        return Check(name, "failed", f"{path} cannot be read by this user", "run the process as the owner of the key")
    if mode & 0o077:
        return Check(name, "failed", f"mode {mode:o}: others may read it", f"chmod 600 {path}")
    return Check(name, "ok", f"mode {mode:o}")


def data(path: Path) -> Check:
    """Returns whether a node's data can be read, and by whom else; nothing of it is looked at."""
    try:
        files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
        size = sum(each.stat().st_size for each in files)
        unreadable = [each for each in files if not os.access(each, os.R_OK)]
        open_to_all = [each for each in files if each.stat().st_mode & 0o004]
    except OSError as error:
        return Check("data", "failed", f"{error.strerror}: {path}", "name a file or folder in data-path")
    if unreadable:
        return Check("data", "failed", f"{unreadable[0]} cannot be read", "run the SuperNode as its owner")
    if not size:
        return Check("data", "failed", f"{path} is empty", "name a file or folder with data in data-path")
    found = f"{len(files)} files, {size / 2**20:.1f} MiB"
    if open_to_all:
        return Check("data", "warning", f"{found}; everybody on this machine may read it", f"chmod -R o-r {path}")
    return Check("data", "ok", found)


def catalogs(paths: tuple[Path, ...]) -> list[Check]:
    """Returns the hash of each catalog, and whether they are one: a node with another one is refused."""
    from fedrec_app.data.catalog import Catalog

    found, hashes = [], {}
    for path in paths:
        try:
            catalog = Catalog.from_file(path)
        except (FedrecError, OSError, ValueError) as error:
            found.append(Check(f"catalog {path.name}", "failed", str(error), "take the server's file"))
            continue
        hashes[path] = catalog.hash
        found.append(Check(f"catalog {path.name}", "ok", f"{len(catalog)} items, {catalog.hash}"))
    if len(hashes) > 1:
        same = len(set(hashes.values())) == 1
        text = "the same" if same else "different: ids, features or their order"
        advice = "" if same else "copy the server's file to the node; a node with another catalog is refused"
        found.append(Check("catalogs", "ok" if same else "failed", text, advice))
    return found


def state_folder(path: Path) -> list[Check]:
    """Returns whether state can be kept there: written, flushed and renamed; and how much room there is."""
    if not path.is_dir():
        return [Check("state-dir", "failed", f"no folder {path}", f"mkdir -m 700 {path}, as the process's user")]
    probe = path / ".fedrec-doctor"
    try:
        require_writable(path)
        write_atomically(probe, b"old")
        write_atomically(probe, b"new")
        kept = probe.read_bytes() == b"new"
        probe.unlink()
    except OSError as error:
        return [Check("state-dir", "failed", f"{error.strerror}: {path}", "give the process's user a folder to write")]
    mode = path.stat().st_mode & 0o777
    if not kept:
        found = Check("state-dir", "failed", "a file did not keep what was written", "use a local file system")
    elif mode & 0o007:
        found = Check("state-dir", "warning", f"mode {mode:o}: everybody may look into it", f"chmod 700 {path}")
    else:
        found = Check("state-dir", "ok", f"mode {mode:o}; written, flushed and renamed")
    free = shutil.disk_usage(path).free
    state = "failed" if free < _TOO_LITTLE else "warning" if free < _LITTLE else "ok"
    advice = "" if state == "ok" else "make room: checkpoints and private state are kept in up to three versions"
    return [found, Check("disk", state, f"{free / 2**30:.1f} GiB free", advice)]
