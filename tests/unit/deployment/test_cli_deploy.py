"""`fedrec deploy`: what its quick commands write and refuse."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedrec_app.cli import commands
from fedrec_app.config import DataConfig
from fedrec_app.deployment.certificates import hosts_of, read_certificate
from fedrec_app.deployment.dealt_data import DealtData
from fedrec_app.deployment.supervisor import Backoff
from fedrec_app.deployment.units import write_unit
from fedrec_app.errors import ConfigError, FedrecError


def deploy(*arguments: str) -> str:
    """Returns what the command prints to standard output; its errors come through."""
    result = CliRunner().invoke(commands, ["deploy", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_certificates_come_with_an_authority_and_are_replaced_only_when_asked(tmp_path: Path) -> None:
    ask = ["certificates", "--host", "superlink.example.org", "--out", str(tmp_path), "--days", "9"]
    deploy(*ask)
    ca, server = (tmp_path / "ca.crt").read_bytes(), (tmp_path / "server.pem").read_bytes()
    assert "superlink.example.org" in hosts_of(read_certificate(tmp_path / "server.pem"))
    with pytest.raises(ConfigError, match="not overwritten"):
        deploy(*ask)
    assert (tmp_path / "server.pem").read_bytes() == server
    deploy(*ask, "--renew")
    assert (tmp_path / "server.pem").read_bytes() != server
    assert (tmp_path / "ca.crt").read_bytes() == ca


def test_a_lost_key_of_an_authority_is_not_made_up_for(tmp_path: Path) -> None:
    deploy("certificates", "--host", "a.example.org", "--out", str(tmp_path))
    (tmp_path / "ca.key").unlink()
    with pytest.raises(FedrecError, match="no usable key"):
        deploy("certificates", "--host", "a.example.org", "--out", str(tmp_path), "--renew")


def test_key_prints_its_fingerprint(tmp_path: Path) -> None:
    assert deploy("key", "--out", str(tmp_path / "sn0")).startswith("SHA256:")
    assert (tmp_path / "sn0.pub").is_file()


@pytest.mark.parametrize(
    ("what", "address", "service", "says"),
    [
        ("--listen", "0.0.0.0:8000", "fedrec-superlink.service", "--enable-supernode-auth"),
        ("--superlink", "superlink.example.org:8000", "fedrec-supernode.service", "--auth-supernode-private-key"),
    ],
)
def test_units_restart_with_growing_waits_and_systemd_takes_them(
    what: str, address: str, service: str, says: str, tmp_path: Path
) -> None:
    deploy("units", "--out", str(tmp_path), what, address)
    text = (tmp_path / service).read_text()
    assert says in text
    assert "Restart=always\n" in text
    assert "RestartSteps=4\n" in text
    assert "--insecure" not in text
    with pytest.raises(ConfigError, match="not overwritten"):
        deploy("units", "--out", str(tmp_path), what, address)
    if shutil.which("systemd-analyze"):
        checked = subprocess.run(
            ["systemd-analyze", "verify", tmp_path / service], capture_output=True, text=True, check=False
        )
        # systemd below 254 does not know these two keys, and says so.
        lines = [line for line in checked.stderr.splitlines() if "RestartSteps" not in line]
        assert not [line for line in lines if service in line and "RestartMaxDelaySec" not in line], checked.stderr


def test_letters_that_mean_something_to_systemd_are_escaped(tmp_path: Path) -> None:
    command = ["/bin/echo", "100%", "$HOME", "two words", 'a"b\\']
    write_unit(tmp_path / "x.service", "x", command, "fedrec", Backoff())
    assert r'ExecStart=/bin/echo 100%% "$$HOME" "two words" "a\"b\\"' in (tmp_path / "x.service").read_text()
    with pytest.raises(ConfigError, match="control characters"):
        write_unit(tmp_path / "y.service", "y", ["/bin/echo", "a\nExecStop=/bin/true"], "fedrec", Backoff())
    with pytest.raises(ConfigError, match="no user's name"):
        write_unit(tmp_path / "z.service", "z", command, "root\nGroup=root", Backoff())


@pytest.mark.parametrize(
    "arguments",
    [
        ["units", "--out", "x"],
        ["units", "--out", "x", "--listen", "0.0.0.0:8000", "--superlink", "a:1"],
        ["units", "--out", "x", "--listen", "8000"],
        ["units", "--out", "x", "--superlink", "host:0"],
        ["supervise"],
        ["loopback", "--data", "nowhere"],
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        deploy(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_how_shards_are_read_is_theirs_to_say_and_the_rest_the_users(tmp_path: Path) -> None:
    columns = '{"user": "reader"}'
    rows = DataConfig(options='{"num_users": 20, "num_items": 30}')
    dealt = DealtData.deal(rows, 2, tmp_path / "shards")
    assert dealt.settings["data.columns"] == ""
    told = dealt.told({"data.columns": columns, "data.name": "ml-100k", "num-server-rounds": 7})
    assert (told["data.columns"], told["data.name"], told["num-server-rounds"]) == ("", "csv", 7)
    assert told["data.path"] == str(tmp_path / "shards" / "server")


def test_shards_with_a_gap_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('data.name = "csv"\n')
    for name in ("node-0", "node-2"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="not complete: node-0, node-2"):
        DealtData.read(tmp_path)
