"""SuperNodes that live and have lost their SuperLink: seen, ended, started again; processes with real connections."""

from __future__ import annotations

import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from fedrec_app.deployment.part import Part
from fedrec_app.deployment.supervisor import Backoff, Supervisor
from fedrec_app.deployment.touch import Touch, superlink_of
from fedrec_app.errors import ConfigError
from fedrec_app.flower_process import flower_environment, free_port
from tests.e2e.helpers import wait_until

HANGS_UP_WHEN_TOLD = """\
import signal, socket, sys
host, port = sys.argv[2].split(":")
line = socket.create_connection((host, int(port)))
signal.signal(signal.SIGUSR1, lambda *_: line.close())
print("connected", flush=True)
while True:
    signal.pause()
"""


def node(folder: Path, port: int) -> Part:
    program = folder / "flower-supernode"
    program.write_text(f"#!{sys.executable}\n{HANGS_UP_WHEN_TOLD}")
    program.chmod(0o700)
    command = [str(program), "--superlink", f"127.0.0.1:{port}"]
    return Part("the node", command, flower_environment(str(folder)), folder / "log")


def test_a_node_without_a_connection_is_started_again_and_only_while_its_superlink_listens(tmp_path: Path) -> None:
    said: list[str] = []
    port = free_port()
    kept = node(tmp_path, port)
    touch = Touch(kept, patience=1.0, every=0.2)
    keeper = Supervisor(kept, Backoff(first=0.1, cap=0.1), say=said.append, out_of_touch=touch.lost)
    superlink = socket.create_server(("127.0.0.1", port))
    keeper.start()
    try:
        kept.wait(lambda: "connected" in kept.logged(), 20, "it connects")
        time.sleep(2.0)
        assert said == []
        superlink.close()
        kept.send(signal.SIGUSR1)
        time.sleep(2.0)
        assert said == []
        with socket.create_server(("127.0.0.1", port)):
            wait_until(lambda: keeper.restarts == 1 and "connected" in kept.logged(), 20, "a restart")
            why = f"has had no connection to 127.0.0.1:{port}, which listens, for 1 s"
            assert said[0] == f"the node lives but {why}: it is ended"
    finally:
        superlink.close()
        keeper.stop()
    assert keeper.restarts == 1


@pytest.mark.parametrize(
    ("command", "address"),
    [
        ("/bin/flower-supernode --insecure --superlink a.example.org:8000", ("a.example.org", 8000)),
        ("flower-supernode --superlink=[::1]:8000 --insecure", ("::1", 8000)),
        ("flower-supernode --superlink", None),
        ("flower-supernode --superlink nowhere", None),
        ("flower-supernode --insecure", None),
        ("flower-superlink --superlink a:8000", None),
    ],
)
def test_where_a_superlink_is_comes_from_the_command_line_of_a_node(
    command: str, address: tuple[str, int] | None
) -> None:
    assert superlink_of(command.split()) == address


def test_what_is_no_node_cannot_be_out_of_touch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no flower-supernode"):
        Touch(Part("it", ["sleep", "1"], {}, None))
