"""Certificates: what they say, who may read their keys, and whom a TLS client believes."""

from __future__ import annotations

import contextlib
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store

from fedrec_app.deployment.certificates import (
    Certificates,
    hosts_of,
    make_authority,
    make_server_certificate,
    read_certificate,
)
from fedrec_app.deployment.handshake import negotiated
from fedrec_app.errors import ConfigError, FedrecError, StateError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    make_authority(folder, days=100)
    return make_server_certificate(folder, ["superlink.example.org", "10.0.0.7"], days=30)


@contextlib.contextmanager
def serving(made: Certificates) -> Iterator[int]:
    """Yields the port of a server that shakes one hand."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server, made.server_key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with plain, contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as secured:
                secured.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(timeout=10)


def test_a_client_with_the_authority_shakes_hands_with_the_server(made: Certificates) -> None:
    with serving(made) as port:
        assert negotiated(port, made.ca) == "TLSv1.3"


def test_a_client_with_another_authority_refuses_the_server(made: Certificates, tmp_path: Path) -> None:
    other = make_authority(tmp_path)
    with serving(made) as port, pytest.raises(FedrecError, match="CERTIFICATE_VERIFY_FAILED"):
        negotiated(port, other.ca)


def test_a_strict_verifier_accepts_the_chain_for_each_of_its_hosts_and_no_other(made: Certificates) -> None:
    server = read_certificate(made.server)
    policy = PolicyBuilder().store(Store([read_certificate(made.ca)]))
    for name in ("superlink.example.org", "localhost"):
        policy.build_server_verifier(x509.DNSName(name)).verify(server, [])
    with pytest.raises(x509.verification.VerificationError):
        policy.build_server_verifier(x509.DNSName("example.org")).verify(server, [])
    assert hosts_of(server) == ("superlink.example.org", "10.0.0.7", "localhost", "127.0.0.1", "::1")


def test_the_authority_may_sign_servers_and_nothing_below_them(made: Certificates) -> None:
    ca = read_certificate(made.ca).extensions
    constraints = ca.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    usage = ca.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    server = read_certificate(made.server).extensions
    assert not server.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    asked = server.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [use.dotted_string for use in asked] == ["1.3.6.1.5.5.7.3.1"]


def test_keys_are_for_their_owner_alone_and_of_p256(made: Certificates) -> None:
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (made.ca_key, made.server_key, made.ca, made.server)]
    assert modes == [0o600, 0o600, 0o644, 0o644]
    for path in (made.ca, made.server):
        key = read_certificate(path).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"


def test_a_certificate_lasts_as_long_as_asked_and_never_longer_than_its_authority(
    made: Certificates, tmp_path: Path
) -> None:
    left = read_certificate(made.server).not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < left <= timedelta(days=30)
    make_authority(tmp_path, days=10)
    short = make_server_certificate(tmp_path, [], days=365)
    assert read_certificate(short.server).not_valid_after_utc == read_certificate(short.ca).not_valid_after_utc


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    make_authority(tmp_path)
    first = make_server_certificate(tmp_path, [])
    before = {path: path.read_bytes() for path in (first.ca, first.ca_key, first.server, first.server_key)}
    with pytest.raises(ConfigError, match="not overwritten"):
        make_authority(tmp_path)
    with pytest.raises(ConfigError, match="not overwritten"):
        make_server_certificate(tmp_path, [])
    assert {path: path.read_bytes() for path in before} == before
    make_server_certificate(tmp_path, [], replace=True)
    assert first.ca.read_bytes() == before[first.ca]
    assert first.server.read_bytes() != before[first.server]


@pytest.mark.parametrize("host", ["two words", "-dash.example.org", "a..b", "", "x" * 64, "https://example.org"])
def test_what_is_no_host_is_refused_by_name(host: str, tmp_path: Path) -> None:
    make_authority(tmp_path)
    with pytest.raises(ConfigError, match="neither a host name nor an address"):
        make_server_certificate(tmp_path, [host])


def test_another_authoritys_key_and_damaged_files_are_refused(tmp_path: Path) -> None:
    one, other = make_authority(tmp_path / "one"), make_authority(tmp_path / "other")
    one.ca_key.write_bytes(other.ca_key.read_bytes())
    with pytest.raises(StateError, match="is not the key of"):
        make_server_certificate(one.folder, [])
    one.ca_key.write_bytes(other.ca_key.read_bytes()[:100])
    with pytest.raises(StateError, match="no usable key"):
        make_server_certificate(one.folder, [])
    one.ca.write_bytes(b"")
    with pytest.raises(StateError, match="no usable certificate"):
        read_certificate(one.ca)


@pytest.mark.parametrize("days", [0, -1, 100_000])
def test_a_validity_that_makes_no_sense_is_refused(days: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be valid"):
        make_authority(tmp_path, days)
