"""systemd units that keep a SuperLink or a SuperNode running."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fedrec_app.deployment.supervisor import Backoff
from fedrec_app.errors import ConfigError
from fedrec_app.files import write_atomically
from fedrec_app.flower_process import QUIET

_PLAIN = re.compile(r"[\w.,:/=@%+-]+")
_UNIT = """\
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
User={user}
StateDirectory=fedrec
WorkingDirectory=/var/lib/fedrec
Environment={environment}
ExecStart={command}
Restart=always
RestartSec={first:g}s
RestartSteps={steps}
RestartMaxDelaySec={cap:g}s
KillMode=mixed
TimeoutStopSec=30s
UMask=0077
NoNewPrivileges=yes
ProtectSystem=full
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


def write_unit(path: Path, description: str, command: Sequence[str], user: str, backoff: Backoff) -> None:
    """Writes a unit that starts a command again whenever it ends, later and later.

    A SuperNode also exits with code 0 when its SuperLink forgot it, so any end is followed by a start. systemd below
    version 254 knows no RestartSteps and waits `backoff.first` seconds each time.

    Args:
        path: file of the unit.
        description: in words.
        command: its command line, absolute paths.
        user: that it runs as; its home and FLWR_HOME are /var/lib/fedrec.
        backoff: waits between starts.

    Raises:
        ConfigError: the file is there already, or the user is no name.
    """
    if path.exists():
        raise ConfigError(f"{path} is there already, and is not overwritten")
    if not user.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"{user!r} is no user's name")
    search = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    variables = {**QUIET, "HOME": "/var/lib/fedrec", "FLWR_HOME": "/var/lib/fedrec/flwr", "PATH": search}
    text = _UNIT.format(
        description=description,
        user=user,
        environment=" ".join(_word(f"{key}={value}") for key, value in variables.items()),
        command=" ".join(_word(word).replace("$", "$$") for word in command),
        first=backoff.first,
        steps=_steps(backoff),
        cap=backoff.cap,
    )
    write_atomically(path, text.encode())
    path.chmod(0o644)


def _steps(backoff: Backoff) -> int:
    """Returns how many restarts lead from the first wait to the longest."""
    steps = 1
    while backoff.seconds(steps + 1, 0.5) < backoff.cap and steps < 64:
        steps += 1
    return steps


def _word(text: str) -> str:
    """Returns a word as systemd reads it back."""
    if any(ord(letter) < 32 for letter in text):
        raise ConfigError(f"{text!r} cannot stand in a unit: it has control characters")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return escaped if _PLAIN.fullmatch(text) else f'"{escaped}"'
