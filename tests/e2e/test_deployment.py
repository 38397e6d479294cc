"""A SuperLink with TLS and authentication, and SuperNodes with data of their own: real processes, nothing stands in.

Each message starts a process on its node, so a round takes ten seconds and more; several tests share a deployment.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedrec_app.artifacts import METRICS, RunFolder
from fedrec_app.config import Scalar, read_toml
from fedrec_app.deployment.certificates import make_authority
from fedrec_app.deployment.commands import SuperNodeSettings
from fedrec_app.deployment.handshake import negotiated
from fedrec_app.deployment.loopback import Loopback
from fedrec_app.deployment.node_keys import make_node_key
from fedrec_app.deployment.part import Part
from fedrec_app.errors import FedrecError
from fedrec_app.flower_control import FlowerControl
from fedrec_app.flower_process import flower_environment, free_port
from fedrec_app.simulate import simulate
from fedrec_app.superlink_run import run_on_superlink
from tests.conftest import REPO
from tests.e2e.helpers import (
    SMALL,
    Sandbox,
    assert_same_arrays,
    assert_same_numbers,
    deployed,
    sandbox,
    small_shards,
    wait_until,
)


@pytest.mark.slow
def test_one_command_brings_up_a_deployment_trains_on_it_and_leaves_nothing() -> None:
    """Also with a shard for each node, which gives what a simulation of the same nodes gives."""
    settings: dict[str, Scalar] = {**SMALL, "num-server-rounds": 1, "evaluate.bootstrap": 0}
    with sandbox() as place:
        done = place.call("fedrec", "deploy", "loopback", "--nodes", "2", *place.settings(settings), "--json")
        assert done.returncode == 0, done.stderr[-3000:]
        summary = json.loads(done.stdout.splitlines()[-1])
        assert (summary["status"], summary["num_nodes"], summary["rounds"]) == ("completed", 2, 1)
        assert "TLSv1.3" in done.stderr
        assert "registered keys only" in done.stderr
        assert place.command_lines() == []
        assert sorted(path.name for path in (place.folder / "t").iterdir()) == []
        deployed_model = place.run_folder().read_model()[0]
        simulated = simulate({**settings, "output-dir": str(place.folder / "simulated")}, 2)
        assert_same_numbers(summary["test"], simulated.summary["test"])
        assert_same_arrays(deployed_model, simulated.folder.read_model()[0])


@pytest.mark.slow
def test_a_deployment_that_is_interrupted_says_how_its_run_goes_on_and_it_does() -> None:
    """Private rows are in its folder, so the run is what it was."""
    settings: dict[str, Scalar] = {**SMALL, "num-server-rounds": 100, "checkpoint.every": 1, "evaluate.bootstrap": 0}
    with sandbox() as place:
        command = ["fedrec", "deploy", "loopback", "--nodes", "2", "--folder", str(place.folder / "d")]
        process = subprocess.Popen(
            [*command, *place.settings(settings)],
            env=place.environment, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_until(lambda: any(place.outputs.glob("*/*/" + METRICS)) or process.poll() is not None, 200, "a round")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=90)
        assert process.returncode == 128 + signal.SIGTERM, said[-3000:]
        assert place.command_lines() == []
        folder = place.run_folder()
        rounds = len(folder.read_metrics())
        hint = next(line for line in said.splitlines() if "to go on: " in line).split("to go on: ")[1]
        again = place.call(*shlex.split(hint), "-c", f"num-server-rounds={rounds + 1}")
        assert again.returncode == 0, again.stderr[-3000:]
        summary = folder.read_summary()
        assert (summary["status"], summary["rounds"]) == ("completed", rounds + 1)
        simulated = simulate({**settings, "num-server-rounds": rounds + 1, "output-dir": str(place.folder / "s")}, 2)
        assert_same_numbers(summary["test"], simulated.summary["test"])


@pytest.mark.slow
def test_ml_100k_on_three_nodes_with_tls_gives_what_the_simulation_gives(ml_100k: Path, tmp_path: Path) -> None:
    source: dict[str, Scalar] = {"data.name": "ml-100k", "data.path": str(ml_100k), "seed": 3, "num-server-rounds": 3}
    with sandbox() as place:
        shards = place.folder / "shards"
        made = place.call(
            "fedrec", "data", "prepare", "ml-100k", "--nodes", "3", "--source", str(ml_100k), "--out", str(shards)
        )
        assert made.returncode == 0, made.stderr[-3000:]
        settings: dict[str, Scalar] = {"seed": 3, "num-server-rounds": 3}
        done = place.call(
            "fedrec", "deploy", "loopback", "--data", str(shards), *place.settings(settings), "--json", timeout=500
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "TLSv1.3" in done.stderr
        folder = place.run_folder()
        summary, model = folder.read_summary(), folder.read_model()[0]
        assert place.command_lines() == []
    simulated = simulate({**source, "output-dir": str(tmp_path)}, 3)
    assert summary["num_nodes"] == 3
    assert summary["test"]["num_users"] == 943
    assert summary["dropped_updates"] == {}
    for part in ("test", "sampled", "validation", "validation_sampled"):
        assert_same_numbers(summary[part], simulated.summary[part], where=part)
    assert summary["best_round"] == simulated.summary["best_round"]
    assert_same_arrays(model, simulated.folder.read_model()[0])


@pytest.fixture(scope="module")
def place() -> Iterator[Sandbox]:
    with sandbox() as made:
        yield made


@pytest.fixture(scope="module")
def settings(place: Sandbox) -> dict[str, Scalar]:
    """Of runs on the deployment."""
    return {**SMALL, **read_toml(place.folder / "shards" / "run.toml")}


@pytest.fixture(scope="module")
def up(place: Sandbox) -> Iterator[Loopback]:
    """A deployment of two nodes with TLS, which several tests use, and none leaves changed."""
    with deployed(place, small_shards(place).nodes) as loopback:
        yield loopback


@pytest.mark.slow
def test_a_superlink_speaks_tls_to_those_who_know_its_authority_and_lists_its_nodes(up: Loopback) -> None:
    assert up.certificates is not None
    assert negotiated(up.port, up.certificates.ca) == "TLSv1.3"
    assert [node["status"] for node in up.control.nodes()] == ["online", "online"]
    assert {int(node["node-id"]) for node in up.control.nodes()} == {up.await_supernode(n) for n in up.supernodes}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "said"),
    [
        ("wrong authority", "CERTIFICATE_VERIFY_FAILED"),
        ("unregistered key", "[code: 2004] Failed to activate SuperNode"),
        ("no key", "All SuperNodes must be registered"),
    ],
)
def test_a_node_that_may_not_come_is_refused_and_told_why(who: str, said: str, up: Loopback, tmp_path: Path) -> None:
    assert up.certificates is not None
    ca = make_authority(tmp_path / "other").ca if who == "wrong authority" else up.certificates.ca
    key = None if who == "no key" else make_node_key(tmp_path / "stranger").private
    with _node(up, tmp_path, ca, key) as node, pytest.raises(FedrecError) as refused:
        up.await_supernode(node, 60)
    assert said in str(refused.value)
    assert "Exit Code: 305" in str(refused.value)
    assert node.process is not None
    assert node.process.returncode == 1
    assert len(up.control.nodes()) == 2


@pytest.mark.slow
def test_a_plaintext_node_and_a_plaintext_user_get_no_answer(up: Loopback, tmp_path: Path) -> None:
    with _node(up, tmp_path, None, None) as node:
        node.wait(lambda: node.logged().count("Connection attempt failed") >= 2, 60, "two failed attempts")
        assert "SuperNode ID" not in node.logged()
    for name, trust in (("plain", "insecure = true"), ("other", f'root-certificates = "{_other_ca(tmp_path)}"')):
        home = tmp_path / name
        home.mkdir()
        (home / "config.toml").write_text(f'[superlink.x]\naddress = "127.0.0.1:{up.port}"\n{trust}\n')
        with pytest.raises(FedrecError, match="Connection to the SuperLink is unavailable"):
            FlowerControl("x", flower_environment(str(home))).nodes()


@pytest.mark.slow
def test_a_killed_node_is_refused_until_its_heartbeat_lapses_and_its_supervisor_gets_it_back(
    place: Sandbox, up: Loopback
) -> None:
    """One that is stopped may come back at once."""
    node = up.supernodes[0]
    before = up.await_supernode(node)
    node.restart()
    assert up.await_supernode(node) == before
    node.kill()
    node.stop()
    node.start()
    with pytest.raises(FedrecError, match="Failed to activate SuperNode"):
        up.await_supernode(node, 60)
    from fedrec_app.deployment.supervisor import Supervisor

    keeper = Supervisor(node)
    keeper.start()
    wait_until(lambda: "SuperNode ID" in node.logged(), 150, "the node is back")
    keeper._stopping.set()
    assert up.await_supernode(node) == before


@pytest.mark.slow
def test_the_outcome_of_a_run_whose_folder_is_elsewhere_is_the_superlinks(
    place: Sandbox, up: Loopback, settings: dict[str, Scalar], tmp_path: Path
) -> None:
    """`/proc/self/cwd` is another folder for each process, as a path is another one on each machine."""
    elsewhere = "/proc/self/cwd/there"
    flat = {**settings, "num-server-rounds": 1, "output-dir": elsewhere}
    done = place.run_there(up, flat, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["status"] == "completed"
    assert said["folder"].startswith(f"{elsewhere}/")
    assert up.control.run_state(said["run_id"]).status == "finished:completed"
    assert not (tmp_path / "there").exists()
    written = place.folder / "superlink-cwd" / said["folder"].removeprefix("/proc/self/cwd/")
    assert RunFolder(written).read_summary()["status"] == "completed"

    failing = {**flat, "data.path": str(tmp_path / "nowhere")}
    failed = place.run_there(up, failing, cwd=tmp_path)
    assert failed.returncode == 1
    assert "error: the run failed" in failed.stderr
    assert f"{elsewhere}/" in failed.stderr


@pytest.mark.slow
def test_a_run_that_is_interrupted_is_stopped_on_the_superlink_and_can_go_on(
    place: Sandbox, up: Loopback, settings: dict[str, Scalar]
) -> None:
    out = place.folder / "interrupted"
    flat = {**settings, "num-server-rounds": 100, "checkpoint.every": 1, "output-dir": str(out)}
    process = place.start_there(up, flat)
    wait_until(lambda: any(out.glob("????-??-??/*/" + METRICS)) or process.poll() is not None, 200, "a round")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said[-3000:]
    (path,) = out.glob("????-??-??/*")
    assert f'checkpoint.resume-from="{path}"' in said.replace("\n", "")
    run_id = (path / "config.toml").read_text().split()[2]
    assert up.control.run_state(run_id).status == "finished:stopped"
    rounds = len(RunFolder(path).read_metrics())
    assert RunFolder(path).read_summary()["status"] == "stopped"
    wait_until(lambda: not _server_apps(up), 60, "the ServerApp ends")

    resumed = {"checkpoint.resume-from": str(path), "num-server-rounds": rounds + 1}
    done = place.run_there(up, resumed)
    assert done.returncode == 0, done.stderr[-3000:]
    assert RunFolder(path).read_summary()["status"] == "completed"
    assert [record["round"] for record in RunFolder(path).read_metrics()] == list(range(1, rounds + 2))


@pytest.mark.slow
def test_a_detached_run_goes_on_alone(place: Sandbox, up: Loopback, settings: dict[str, Scalar]) -> None:
    out = place.folder / "detached"
    flat = {**settings, "num-server-rounds": 1, "output-dir": str(out)}
    done = place.run_there(up, flat, "--detach", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    run_id = json.loads(done.stdout)["run_id"]
    wait_until(lambda: up.control.run_state(run_id).finished, 200, "its end")
    assert up.control.run_state(run_id).status == "finished:completed"
    (path,) = out.glob("????-??-??/*")
    assert RunFolder(path).read_summary()["status"] == "completed"


@pytest.mark.slow
def test_a_run_whose_superlink_is_killed_ends_with_an_error_that_says_how_to_go_on(
    place: Sandbox, up: Loopback, settings: dict[str, Scalar]
) -> None:
    """And its nodes find the SuperLink again when it is back on its database."""
    out = place.folder / "killed"
    flat: dict[str, Scalar] = {**settings, "num-server-rounds": 100, "checkpoint.every": 1, "output-dir": str(out)}
    rounds: list[dict[str, Any]] = []

    def kill(record: dict[str, Any]) -> None:
        rounds.append(record)
        up.superlink.kill()

    with pytest.raises(FedrecError, match="out of reach") as lost:
        run_on_superlink(flat, up.connection, on_round=kill, environment=up.environment, patience=5)
    (path,) = out.glob("????-??-??/*")
    assert f'checkpoint.resume-from="{path}"' in str(lost.value)
    assert len(rounds) == 1
    wait_until(lambda: not _server_apps(up), 60, "the ServerApp ends")

    up.superlink.stop()
    up.superlink.start()
    up.await_superlink()
    assert all(node.alive for node in up.supernodes)
    done = place.run_there(up, {"checkpoint.resume-from": str(path), "num-server-rounds": 2})
    assert done.returncode == 0, done.stderr[-3000:]
    assert RunFolder(path).read_summary()["status"] == "completed"
    assert [record["round"] for record in RunFolder(path).read_metrics()] == [1, 2]


def _server_apps(up: Loopback) -> list[int]:
    return [process.pid for process in up.superlink.family() if process.name() == "flwr-serverapp"]


def _other_ca(folder: Path) -> Path:
    return make_authority(folder / "authority").ca


class _node:
    """A further SuperNode of the deployment, which is ended after the block."""

    def __init__(self, up: Loopback, folder: Path, ca: Path | None, key: Path | None) -> None:
        home = folder / "home"
        home.mkdir()
        settings = SuperNodeSettings(f"127.0.0.1:{up.port}", up.node_folder(0) / "node.toml", ca, key, free_port())
        environment = {**up.environment, "FLWR_HOME": str(home)}
        self.part = Part("a further SuperNode", settings.command(), environment, folder / "node.log")

    def __enter__(self) -> Part:
        self.part.start()
        return self.part

    def __exit__(self, *error: object) -> None:
        self.part.stop()
