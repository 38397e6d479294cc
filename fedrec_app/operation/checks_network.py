"""Checks of certificates, connections and ports."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fedrec_app.errors import ConfigError
from fedrec_app.flower_process import host_and_port
from fedrec_app.operation.checks import Check

_SOON = 30
"""Days before its end from which a certificate is worth a warning."""
_PATIENCE = 5.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_NEW = "make a new one; SuperNodes and users need it only where the CA is new"


def authority(path: Path) -> list[Check]:
    """Returns whether a CA's certificate is one, and how long it holds."""
    found = _read(path, "CA")
    if isinstance(found, Check):
        return [found]
    constraints = [each.value for each in found.extensions if isinstance(each.value, x509.BasicConstraints)]
    if not (constraints and constraints[0].ca):
        text = f"{path.name} is no authority's certificate"
        return [Check("CA", "failed", text, "name the certificate that signed the SuperLink's")]
    return [_lasting(found, "CA")]


def server_certificate(path: Path, ca: Path | None) -> list[Check]:
    """Returns what is to be said of a SuperLink's certificate: who signed it, for which hosts, how long it holds."""
    found = _read(path, "certificate")
    if isinstance(found, Check):
        return [found]
    checks = [_lasting(found, "certificate")]
    with contextlib.suppress(x509.ExtensionNotFound):
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [str(each.value) for each in names]
        checks.append(Check("host names", "ok", ", ".join(hosts)))
    if len(checks) == 1:
        advice = "make it with the names under which nodes reach the SuperLink"
        checks.append(Check("host names", "failed", "the certificate names no host", advice))
    signer = _read(ca, "CA") if ca is not None else None
    if isinstance(signer, x509.Certificate):
        try:
            found.verify_directly_issued_by(signer)
            checks.append(Check("chain", "ok", "signed by the CA"))
        except (ValueError, TypeError, InvalidSignature):
            text = f"{path.name} is not signed by this CA"
            checks.append(Check("chain", "failed", text, "give nodes the CA that signed it, or sign it anew"))
    return checks


def connection_of(name: str) -> tuple[Check, str, Path | None]:
    """Returns a check of a connection in Flower's config.toml, its address and its CA."""
    from flwr.cli.constant import FLOWER_CONFIG_FILE
    from flwr.supercore.utils import get_flwr_home

    return _connection(name, get_flwr_home() / FLOWER_CONFIG_FILE)


def _connection(name: str, path: Path) -> tuple[Check, str, Path | None]:
    label = f"connection {name}"
    try:
        known = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {})
    except (OSError, ValueError) as error:
        return Check(label, "failed", f"{path}: {error}", "write it, or set FLWR_HOME"), "", None
    said = known.get(name)
    if not isinstance(said, dict) or "address" not in said:
        allowed = ", ".join(sorted(key for key, value in known.items() if isinstance(value, dict))) or "none"
        return (
            Check(label, "failed", f"{path} has no such address; it has {allowed}", "see docs/deployment.md"),
            "",
            None,
        )
    address = str(said["address"])
    ca = Path(str(said["root-certificates"])).expanduser() if said.get("root-certificates") else None
    ca = ca if ca is None or ca.is_absolute() else path.parent / ca
    if said.get("insecure") and address.rpartition(":")[0].strip("[]") not in _LOOPBACK:
        advice = 'set root-certificates="/path/ca.crt" in its place'
        return Check(label, "failed", f"{address}, in plain text over a network", advice), address, ca
    return Check(label, "ok", f"{address}, {'in plain text' if said.get('insecure') else 'TLS'}"), address, ca


def local_port(port: int) -> Check:
    """Returns whether a port of this machine is free, or who listens on it."""
    name = f"port {port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return Check(name, "ok", "free")
        except OverflowError:
            return Check(name, "failed", "there is no such port", "name one from 1 to 65535")
        except OSError as error:
            text = f"in use by {_listener(port)}" if error.errno != 13 else "this user may not listen on it"
            return Check(name, "failed", text, "end that process, or choose another port")


def reachable(address: str, ca: Path | None) -> list[Check]:
    """Returns whether a SuperLink answers, and whether its certificate is good for this address.

    Args:
        address: HOST:PORT.
        ca: certificate of the authority; None: TLS is not tried.
    """
    try:
        host, port = host_and_port(address)
    except ConfigError as error:
        return [Check("SuperLink", "failed", str(error), "such as localhost:8000")]
    host = host.strip("[]")
    try:
        with socket.create_connection((host, port), timeout=_PATIENCE) as plain:
            found = [Check("SuperLink", "ok", f"{address} answers")]
            if ca is None:
                return found
            return [*found, _handshake(plain, host, ca)]
    except OSError as error:
        advice = "is it started, and does a firewall let this machine through?"
        return [Check("SuperLink", "failed", f"{address}: {error}", advice)]


def _handshake(plain: socket.socket, host: str, ca: Path) -> Check:
    try:
        context = ssl.create_default_context(cafile=str(ca))
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(plain, server_hostname=host) as secure:
            der = secure.getpeercert(binary_form=True) or b""
            return _lasting(x509.load_der_x509_certificate(der), f"TLS, {secure.version()}")
    except ssl.SSLCertVerificationError as error:
        advice = "give this machine the CA that signed the SuperLink's certificate, and a host name that is in it"
        return Check("TLS", "failed", error.verify_message, advice)
    except (ssl.SSLError, OSError) as error:
        return Check("TLS", "failed", f"no TLS there: {error}", "is the SuperLink started with --ssl-certfile?")


def _read(path: Path, name: str) -> x509.Certificate | Check:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        return Check(name, "failed", f"{path} is no certificate: {error}", "name a PEM file")


def _lasting(certificate: x509.Certificate, name: str) -> Check:
    now = datetime.now(UTC)
    days = (certificate.not_valid_after_utc - now).days
    until = f"until {certificate.not_valid_after_utc:%Y-%m-%d}"
    if certificate.not_valid_before_utc > now:
        text = f"not valid before {certificate.not_valid_before_utc:%Y-%m-%dT%H:%MZ}"
        return Check(name, "failed", text, "is this machine's clock right?")
    if certificate.not_valid_after_utc <= now:
        return Check(name, "failed", f"expired {-days} days ago, {until}", _NEW)
    return Check(name, "warning" if days < _SOON else "ok", f"{days} days, {until}", _NEW if days < _SOON else "")


def _listener(port: int) -> str:
    try:
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr[1] == port and each.pid:
                return f"{psutil.Process(each.pid).name()} (pid {each.pid})"
    except psutil.Error:
        pass
    return "another process"
