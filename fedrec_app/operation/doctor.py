"""`fedrec doctor`: whether this machine is fit for a run, looked at before one fails on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedrec_app.operation.checks import Check
from fedrec_app.operation.checks_files import catalogs, data, key_mode, state_folder
from fedrec_app.operation.checks_host import clock, environment, memory, versions
from fedrec_app.operation.checks_network import authority, connection_of, local_port, reachable, server_certificate


@dataclass(frozen=True)
class Asked:
    """What is to be looked at besides the machine itself; what is left out is not.

    Attributes:
        ca: certificate of the authority that nodes and users trust.
        certificate: of the SuperLink on this machine.
        keys: private keys.
        superlink: HOST:PORT of a SuperLink that must be reached.
        connection: name of a connection in Flower's config.toml.
        ports: that processes of this machine are to listen on.
        data_path: data that the node alone has.
        catalogs: files whose items must be the same.
        state_dir: where the node keeps its state.
    """

    ca: Path | None = None
    certificate: Path | None = None
    keys: tuple[Path, ...] = ()
    superlink: str = ""
    connection: str = ""
    ports: tuple[int, ...] = ()
    data_path: Path | None = None
    catalogs: tuple[Path, ...] = ()
    state_dir: Path | None = None


def examine(asked: Asked) -> list[Check]:
    """Returns every check, in the order in which they are shown; none of them changes anything."""
    return [*versions(), *environment(), memory(), *clock(asked.state_dir), *_network(asked), *_files(asked)]


def healthy(checks: Iterable[Check]) -> bool:
    """Returns whether nothing failed."""
    return all(check.state != "failed" for check in checks)


def _network(asked: Asked) -> list[Check]:
    found, address, ca = [], asked.superlink, asked.ca
    if asked.connection:
        check, own_address, own_ca = connection_of(asked.connection)
        found.append(check)
        address, ca = address or own_address, ca or own_ca
    if ca is not None:
        found += authority(ca)
    if asked.certificate is not None:
        found += server_certificate(asked.certificate, ca)
    found += [local_port(port) for port in asked.ports]
    if address:
        found += reachable(address, ca)
    return found


def _files(asked: Asked) -> list[Check]:
    found = [key_mode(path) for path in asked.keys]
    if asked.data_path is not None:
        found.append(data(asked.data_path))
    if asked.catalogs:
        found += catalogs(asked.catalogs)
    if asked.state_dir is not None:
        found += state_folder(asked.state_dir)
    return found
