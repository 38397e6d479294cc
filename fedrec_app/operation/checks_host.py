"""Checks of the machine: versions, environment, memory, clock."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedrec_app import __version__
from fedrec_app.operation.checks import Check

_SHOWN = ("flwr", "torch", "numpy")
_WANTED = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "Flower installs every dependency anew for each run",
    "FLWR_TELEMETRY_ENABLED": "Flower reports its use",
}
_GOOD = {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_TELEMETRY_ENABLED": "0"}
_TOLD = ("FLWR_HOME", "FLWR_LOG_LEVEL", "FEDREC_LOG_FORMAT")
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY")
_LEAST_MEMORY = 1 << 30
_SKEW = 2.0
"""Seconds by which the time stamp of a new file may differ from the clock."""
_UNSYNCHRONISED = 5


def versions() -> list[Check]:
    """Returns whether Python and packages are in the ranges that this version asks for."""
    python, needed = _requirements()
    found = [_version("python", platform.python_version(), SpecifierSet(python), "")]
    bad = []
    for requirement in needed:
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            bad.append(Check(requirement.name, "failed", "not installed", f"pip install '{requirement}'"))
            continue
        check = _version(requirement.name, there, requirement.specifier, f"pip install '{requirement}'")
        if requirement.name in _SHOWN or check.state != "ok":
            bad.append(check)
    return [Check("fedrec", "ok", __version__), *found, *bad]


def _version(name: str, there: str, allowed: SpecifierSet, advice: str) -> Check:
    if allowed.contains(there, prereleases=True):
        return Check(name, "ok", f"{there} ({allowed} is supported)")
    return Check(name, "failed", f"{there}: {allowed} is supported", advice or f"install {name} {allowed}")


def _requirements() -> tuple[str, list[Requirement]]:
    """Returns the range of Python and the dependencies: of the checkout, else of the installed package."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        said = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return said["requires-python"], [Requirement(text) for text in said["dependencies"]]
    try:
        texts = requires("fedrec") or []
    except PackageNotFoundError:
        texts = []
    needed = [Requirement(text) for text in texts]
    return ">=3.11", [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]


def environment() -> list[Check]:
    """Returns what environment variables do to Flower."""
    found = []
    for name, otherwise in _WANTED.items():
        value = os.environ.get(name, "")
        if value == _GOOD[name]:
            found.append(Check(name, "ok", value))
        else:
            advice = f"export {name}={_GOOD[name]} before the SuperLink starts (`fedrec run` does so by itself)"
            found.append(Check(name, "warning", f"{value or 'not set'}: {otherwise}", advice))
    found += [Check(name, "note", os.environ[name]) for name in _TOLD if name in os.environ]
    if proxies := [name for name in _PROXIES if os.environ.get(name)]:
        advice = "export no_proxy=<host of the SuperLink>, if it is not to be reached through the proxy"
        found.append(Check("proxy", "warning", f"{', '.join(proxies)}: gRPC goes through it", advice))
    return found


def memory() -> Check:
    """Returns how much memory is free."""
    free = psutil.virtual_memory().available
    text = f"{free / 2**30:.1f} GiB free"
    if free < _LEAST_MEMORY:
        return Check("memory", "warning", text, "a ClientApp process takes 0.5 GiB before it has read any data")
    return Check("memory", "ok", text)


def clock(folder: Path | None) -> list[Check]:
    """Returns what can be said of the clock without asking another one.

    Args:
        folder: on whose file system a file's time is compared; None: none.
    """
    found = [_synchronised()]
    if folder is not None and folder.is_dir():
        probe = folder / f".fedrec-doctor-{os.getpid()}"
        try:
            probe.touch()
            skew = probe.stat().st_mtime - time.time()
            probe.unlink()
        except OSError:
            return found  # whether it can be written another check says
        state = "ok" if abs(skew) <= _SKEW else "warning"
        advice = "" if state == "ok" else "the clock of the file server differs from this machine's: set both by NTP"
        found.append(Check("clock of the disk", state, f"{abs(skew):.1f} s from this machine's", advice))
    note = "not measured: neither TLS nor gRPC tells the time; compare `date -u` on both machines"
    found.append(Check("clock of the SuperLink", "note", note))
    return found


def _synchronised() -> Check:
    """Returns whether the kernel says that something keeps its clock right."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if not sys.platform.startswith("linux"):
        return Check("clock", "note", f"{now}; whether it is synchronised is not known on this system")
    try:
        # struct timex, its `modes` 0: nothing is set.
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        state = -1
    if state == _UNSYNCHRONISED:
        advice = "start an NTP service: certificates are judged by this clock"
        return Check("clock", "warning", f"{now}; the kernel says that nothing synchronises it", advice)
    return Check("clock", "note" if state < 0 else "ok", f"{now}{', synchronised' if state >= 0 else ''}")
