"""`fedrec doctor` finds what would make a run fail on this machine."""

from __future__ import annotations

import json
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from fedrec_app import cli
from fedrec_app.data.catalog import Catalog
from fedrec_app.deployment.certificates import make_authority, make_server_certificate
from fedrec_app.operation import checks_host
from fedrec_app.operation.checks import Check
from fedrec_app.operation.doctor import Asked, examine, healthy


def found(asked: Asked, *names: str) -> list[tuple[str, str]]:
    """Returns (name, state) of the checks of these names."""
    return [(check.name, check.state) for check in examine(asked) if check.name in names]


def only(asked: Asked, name: str) -> Check:
    (check,) = [check for check in examine(asked) if check.name == name]
    return check


def self_signed(folder: Path, begins: int, ends: int) -> Path:
    """Returns a certificate that holds from and to so many days from now."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now + timedelta(days=begins)).not_valid_after(now + timedelta(days=ends))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    path = folder / "test.crt"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_this_environment_is_supported_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED", raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    checks = examine(Asked())
    assert healthy(checks)
    states = {check.name: check.state for check in checks}
    assert {name: states[name] for name in ("fedrec", "python", "flwr", "torch", "numpy")} == dict.fromkeys(
        ("fedrec", "python", "flwr", "torch", "numpy"), "ok"
    )
    assert states["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "ok"
    assert (states["FLWR_TELEMETRY_ENABLED"], states["proxy"]) == ("warning", "warning")


def test_a_version_out_of_range_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_host, "version", lambda name: "0.9" if name == "flwr" else "9999")
    flwr = only(Asked(), "flwr")
    assert (flwr.state, flwr.found) == ("failed", "0.9: <2,>=1.41 is supported")
    assert flwr.advice.startswith("pip install 'flwr[simulation]")


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_host, "_LEAST_MEMORY", 1 << 60)
    assert only(Asked(), "memory").state == "warning"


def test_certificates_of_one_authority_are_good_and_those_of_another_are_not(tmp_path: Path) -> None:
    mine, other = make_authority(tmp_path / "mine"), make_authority(tmp_path / "other")
    make_server_certificate(mine.folder, ["fedrec.example"])
    checks = {check.name: check for check in examine(Asked(ca=mine.ca, certificate=mine.server))}
    assert {checks[name].state for name in ("CA", "certificate", "host names", "chain")} == {"ok"}
    assert checks["certificate"].found.startswith("364 days")
    assert "fedrec.example" in checks["host names"].found
    assert only(Asked(ca=other.ca, certificate=mine.server), "chain").state == "failed"
    assert only(Asked(ca=mine.server), "CA").state == "failed"
    assert only(Asked(ca=tmp_path / "none.crt"), "CA").state == "failed"


@pytest.mark.parametrize(
    ("begins", "ends", "state", "text"),
    [(-9, 40, "ok", "39 days"), (-9, 20, "warning", "19 days"), (-9, -2, "failed", "expired"), (2, 9, "failed", "not")],
)
def test_how_long_a_certificate_holds(tmp_path: Path, begins: int, ends: int, state: str, text: str) -> None:
    check = only(Asked(ca=self_signed(tmp_path, begins, ends)), "CA")
    assert check.state == state
    assert check.found.startswith(text)


def test_a_tls_server_is_held_to_the_authority_and_its_name(tmp_path: Path) -> None:
    import ssl

    mine, other = make_authority(tmp_path / "mine"), make_authority(tmp_path / "other")
    make_server_certificate(mine.folder, ["fedrec.example"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(mine.server, mine.server_key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                connection, _peer = listener.accept()
                try:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        secure.recv(1)
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"localhost:{listener.getsockname()[1]}"
        good = [check for check in examine(Asked(ca=mine.ca, superlink=address)) if check.name.startswith("TLS")]
        assert [(check.name, check.state) for check in good] == [("TLS, TLSv1.3", "ok")]
        assert found(Asked(ca=other.ca, superlink=address), "SuperLink", "TLS") == [
            ("SuperLink", "ok"), ("TLS", "failed")
        ]  # fmt: skip
        thread.join()
    assert found(Asked(superlink=address), "SuperLink") == [("SuperLink", "failed")]
    assert found(Asked(superlink="nonsense"), "SuperLink") == [("SuperLink", "failed")]


def test_a_port_is_free_or_somebody_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        check = only(Asked(ports=(port,)), f"port {port}")
        assert check.state == "failed"
        assert check.found.startswith("in use by ")
    assert only(Asked(ports=(port,)), f"port {port}").state == "ok"
    assert only(Asked(ports=(99999,)), "port 99999").state == "failed"


def test_a_connection_is_read_from_flowers_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    make_authority(tmp_path)
    (tmp_path / "config.toml").write_text(
        '[superlink.tls]\naddress = "localhost:1"\nroot-certificates = "ca.crt"\n'
        '[superlink.open]\naddress = "fedrec.example:x"\ninsecure = true\n'
    )
    assert found(Asked(connection="tls"), "connection tls", "CA", "SuperLink") == [
        ("connection tls", "ok"), ("CA", "ok"), ("SuperLink", "failed")
    ]  # fmt: skip
    assert found(Asked(connection="open"), "connection open") == [("connection open", "failed")]
    assert "it has open, tls" in only(Asked(connection="tsl"), "connection tsl").found


def test_keys_data_and_state(tmp_path: Path) -> None:
    key, data, state = tmp_path / "key", tmp_path / "data.csv", tmp_path / "state"
    key.write_text("secret")
    data.write_text("user_id,item_id\n")
    state.mkdir(mode=0o700)
    asked = Asked(keys=(key,), data_path=data, state_dir=state)
    key.chmod(0o640)
    data.chmod(0o644)
    names = ("key key", "data", "state-dir")
    assert [s for _, s in found(asked, *names)] == ["failed", "warning", "ok"]
    key.chmod(0o600)
    data.chmod(0o640)
    state.chmod(0o755)
    assert [s for _, s in found(asked, *names)] == ["ok", "ok", "warning"]
    assert list(state.iterdir()) == []
    assert only(asked, "clock of the disk").state == "ok"
    nowhere = Asked(keys=(tmp_path / "no",), data_path=tmp_path / "no", state_dir=tmp_path / "no")
    assert [s for _, s in found(nowhere, "key no", "data", "state-dir")] == ["failed"] * 3
    assert not (tmp_path / "no").exists()


def test_catalogs_must_be_the_same(tmp_path: Path) -> None:
    one, same, other = tmp_path / "a.jsonl", tmp_path / "b.parquet", tmp_path / "c.jsonl"
    Catalog.of_ids(["i1", "i2"]).to_file(one)
    Catalog.of_ids(["i1", "i2"]).to_file(same)
    Catalog.of_ids(["i1", "i3"]).to_file(other)
    assert only(Asked(catalogs=(one, same)), "catalogs").state == "ok"
    check = only(Asked(catalogs=(one, other)), "catalogs")
    assert (check.state, check.found) == ("failed", "different: ids, features or their order")


def test_the_command_ends_with_1_where_something_failed(tmp_path: Path) -> None:
    good = CliRunner().invoke(cli.commands, ["doctor", "--json"])
    assert (good.exit_code, json.loads(good.stdout)["healthy"]) == (0, True)
    bad = CliRunner().invoke(cli.commands, ["doctor", "--state-dir", str(tmp_path / "none")])
    assert bad.exit_code == 1
    assert "mkdir -m 700" in " ".join(bad.stdout.split())
