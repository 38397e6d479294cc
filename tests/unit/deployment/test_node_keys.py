"""Node keys: what Flower and OpenSSH read."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedrec_app.deployment.node_keys import fingerprint, make_node_key
from fedrec_app.errors import ConfigError


def test_a_key_is_of_p384_in_openssh_formats_and_for_its_owner_alone(tmp_path: Path) -> None:
    made = make_node_key(tmp_path / "keys" / "sn0")
    private = load_ssh_private_key(made.private.read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp384r1"
    assert load_ssh_public_key(made.public.read_bytes()) == private.public_key()
    assert made.public == tmp_path / "keys" / "sn0.pub"
    assert made.public.read_bytes().startswith(b"ecdsa-sha2-nistp384 ")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (made.private, made.public)] == [0o600, 0o644]


def test_flowers_own_readers_take_both_files(tmp_path: Path) -> None:
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve

    made = make_node_key(tmp_path / "sn0")
    private = load_ssh_private_key(made.private.read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert uses_nist_ec_curve(private.public_key())
    assert try_load_public_key(made.public) == public_key_to_bytes(private.public_key())


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_ssh_keygen_agrees_on_the_key_and_on_its_fingerprint(tmp_path: Path) -> None:
    made = make_node_key(tmp_path / "sn0")
    listed = subprocess.run(["ssh-keygen", "-l", "-f", made.public], capture_output=True, text=True, check=True).stdout
    assert listed.split()[:2] == ["384", made.fingerprint]
    derived = subprocess.run(["ssh-keygen", "-y", "-f", made.private], capture_output=True, check=True).stdout
    assert derived.split()[:2] == made.public.read_bytes().split()[:2]
    assert fingerprint(derived) == made.fingerprint


@pytest.mark.parametrize("name", ["sn0", "sn0.pub"])
def test_a_key_is_never_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"kept")
    with pytest.raises(ConfigError, match="not overwritten"):
        make_node_key(tmp_path / "sn0")
    assert (tmp_path / name).read_bytes() == b"kept"
