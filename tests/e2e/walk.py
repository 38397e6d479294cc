"""An environment of its own: a fresh venv that borrows what the tests' environment has installed.

fedrec, Flower and torch are those of the environment that the tests run in; the commands of Flower are installed anew,
so that they start the venv's Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

from tests.conftest import REPO
from tests.e2e.helpers import Sandbox


class Walk:
    """A sandbox whose `python`, `fedrec` and `flwr` are those of a fresh environment.

    Args:
        place: the sandbox.
    """

    def __init__(self, place: Sandbox) -> None:
        self.place = place
        self.venv = place.folder / "v"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.venv)], check=True, timeout=60)
        self.bin = self.venv / "bin"
        site = Path(sysconfig.get_path("purelib", "venv", {"base": str(self.venv), "platbase": str(self.venv)}))
        # By addsitedir, so that .pth files there count too (editable installs).
        site.joinpath("borrowed.pth").write_text(
            f"{REPO}\nimport site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        )
        self.site = site
        for name in ("fedrec", "flwr", "ray"):
            self._install_commands(name)
        environment = place.environment
        environment["PATH"] = f"{self.bin}{os.pathsep}{environment['PATH']}"
        environment["VIRTUAL_ENV"] = str(self.venv)
        del environment["PYTHONPATH"]

    def install(self, package: str) -> None:
        """Installs a package from its folder, and nothing that it depends on."""
        self.call(
            "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", package
        )  # fmt: skip

    def _install_commands(self, name: str) -> None:
        for point in distribution(name).entry_points.select(group="console_scripts"):
            script = self.bin / point.name
            script.write_text(
                f"#!{self.bin / 'python'}\nimport sys\nfrom {point.module} import {point.attr}\n"
                f"sys.exit({point.attr}())\n"
            )
            script.chmod(0o755)

    def call(self, *command: str, cwd: Path | None = None) -> str:
        """Returns what a command of the environment printed; raises where it failed."""
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]], env=self.place.environment, cwd=cwd or self.place.folder,
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout
