"""A certificate authority of one's own, and the SuperLink's certificate that it signs."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedrec_app.errors import ConfigError, StateError
from fedrec_app.files import write_atomically

CA_CERTIFICATE, CA_KEY, SERVER_CERTIFICATE, SERVER_KEY = "ca.crt", "ca.key", "server.pem", "server.key"
CA_DAYS, SERVER_DAYS = 3650, 365
LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names that every server certificate has: the SuperLink's own children reach it by them."""
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_READABLE = 0o644
# A clock that is a little behind must not refuse a certificate that is new.
_SKEW = timedelta(minutes=10)


@dataclass(frozen=True)
class Certificates:
    """Where the files of a deployment's TLS are.

    Attributes:
        folder: holds all four. SuperNodes and users need `ca` only; `ca_key` is best kept on a machine of its own.
    """

    folder: Path

    @property
    def ca(self) -> Path:
        """Certificate of the authority: what everybody trusts."""
        return self.folder / CA_CERTIFICATE

    @property
    def ca_key(self) -> Path:
        """Key of the authority: whoever has it can be the SuperLink."""
        return self.folder / CA_KEY

    @property
    def server(self) -> Path:
        """Certificate of the SuperLink."""
        return self.folder / SERVER_CERTIFICATE

    @property
    def server_key(self) -> Path:
        """Key of the SuperLink."""
        return self.folder / SERVER_KEY


def make_authority(folder: Path, days: int = CA_DAYS) -> Certificates:
    """Returns the files of a new authority, which may sign servers and nothing else.

    Args:
        folder: where they go; it is made.
        days: of validity.

    Raises:
        ConfigError: there is one already, or the days make no sense.
    """
    made = Certificates(folder)
    _refuse_existing(made.ca, made.ca_key)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedrec CA")])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(name, name, key.public_key(), key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(made.ca_key, key, made.ca, certificate)
    return made


def make_server_certificate(
    folder: Path, hosts: Sequence[str], days: int = SERVER_DAYS, replace: bool = False
) -> Certificates:
    """Returns the files of a server whose certificate the authority in the same folder has signed.

    Args:
        folder: with the authority.
        hosts: names and addresses that SuperNodes and users reach the SuperLink by; those of the machine itself are
            added.
        days: of validity; not longer than the authority's.
        replace: put a new key and certificate in the place of old ones.

    Raises:
        ConfigError: a host is none, or there is a certificate already.
        StateError: there is no authority, or its files are damaged.
    """
    made = Certificates(folder)
    if not replace:
        _refuse_existing(made.server, made.server_key)
    names = [_subject_name(host) for host in dict.fromkeys((*hosts, *LOCAL))]
    authority, signer = read_certificate(made.ca), _read_key(made.ca_key)
    if signer.public_key() != authority.public_key():
        raise StateError(f"{made.ca_key} is not the key of {made.ca}")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedrec SuperLink")])
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(subject, authority.subject, key.public_key(), signer.public_key(), days, authority.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(signer, hashes.SHA256())
    )
    _write(made.server_key, key, made.server, certificate)
    return made


def read_certificate(path: Path) -> x509.Certificate:
    """Returns the certificate in a PEM file.

    Raises:
        StateError: it is missing or damaged.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StateError(f"no usable certificate in {path}: {error}") from None


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Returns the names and addresses that a server certificate is for."""
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in found)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    days: int,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    if not 1 <= days <= CA_DAYS * 2:
        raise ConfigError(f"a certificate cannot be valid for {days} days: 1 to {CA_DAYS * 2} is allowed")
    now = datetime.now(UTC)
    end = min(now + timedelta(days=days), latest) if latest else now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _subject_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise ConfigError(f"{host!r} is neither a host name nor an address: 'superlink.example.org' or '10.0.0.7'")
    return x509.DNSName(host)


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path} is there already, and is not overwritten")


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise StateError(f"no usable key in {path}: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StateError(f"{path} is no key of an elliptic curve")
    return key


def _write(key_path: Path, key: ec.EllipticCurvePrivateKey, path: Path, certificate: x509.Certificate) -> None:
    """Writes a key, which its owner alone may read, and its certificate, which everybody may."""
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomically(key_path, secret)
    write_atomically(path, certificate.public_bytes(serialization.Encoding.PEM))
    path.chmod(_READABLE)
