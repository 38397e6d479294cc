"""What a deployment goes through in its life: private runs that continue each other, feedback, a renewed certificate.

Every process writes its log as JSON.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedrec_app.artifacts import RunFolder
from fedrec_app.config import Scalar, read_toml
from fedrec_app.deployment.dealt_data import DealtData
from fedrec_app.deployment.loopback import Loopback
from fedrec_app.operation import json_log
from fedrec_app.private_state import PrivateState
from fedrec_app.seeding import user_key
from tests.e2e.helpers import SMALL, Sandbox, deployed, sandbox

LATE = "a visitor who came late"
PRIVATE: dict[str, Scalar] = {
    "num-server-rounds": 2, "evaluate.bootstrap": 0, "privacy.unit": "user", "privacy.noise-multiplier": 2.0,
    "model.name": "neumf", "model.embedding-dim": 8, "model.options": '{"layers": [8]}', "strategy.options": "{}",
    "strategy.min-nodes": 2, "tracking.backend": "tensorboard",
}  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place() -> Iterator[Sandbox]:
    with sandbox(**{json_log.VARIABLE: "json"}) as made:
        yield made


@pytest.fixture(scope="module")
def up(place: Sandbox) -> Iterator[Loopback]:
    shards = place.folder / "shards"
    dealt = place.call(
        "fedrec", "data", "prepare", "synthetic", "--nodes", "2", "--out", str(shards),
        "--options", str(SMALL["data.options"]),
    )  # fmt: skip
    assert dealt.returncode == 0, dealt.stderr
    with deployed(place, DealtData.read(shards).nodes) as loopback:
        yield loopback


def run(place: Sandbox, up: Loopback, **settings: Scalar) -> RunFolder:
    """Returns the folder of a private run that has completed."""
    own = read_toml(place.folder / "shards" / "run.toml")
    flat = {**SMALL, **own, **PRIVATE, "output-dir": str(place.outputs), **settings}
    done = place.run_there(up, flat, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["status"] == "completed"
    return RunFolder(Path(said["folder"]))


@pytest.fixture(scope="module")
def first(place: Sandbox, up: Loopback) -> RunFolder:
    return run(place, up)


def logged(up: Loopback) -> list[dict[str, Any]]:
    """Returns all JSON lines of all processes; those that Flower writes around them are its own."""
    logs = [part.log.read_text() for part in (up.superlink, *up.supernodes) if part.log is not None]
    return [json.loads(line) for log in logs for line in log.splitlines() if line.startswith('{"time"')]


def test_a_private_run_is_charged_audited_tracked_and_told(place: Sandbox, up: Loopback, first: RunFolder) -> None:
    summary = first.read_summary()
    assert summary["num_nodes"] == 2
    assert summary["privacy"]["epsilon"] > 0
    checked = place.call("fedrec", "audit", "verify", str(first.path))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    told = place.call("fedrec", "status", str(first.path), "--json")
    assert json.loads(told.stdout)["epsilon"] == pytest.approx(summary["privacy"]["epsilon"], abs=1e-3)
    assert list((first.path / "tensorboard").iterdir())


def test_json_logs_of_server_and_nodes_have_rounds_and_quote_no_user(up: Loopback, first: RunFolder) -> None:
    lines = logged(up)
    server = [line for line in lines if line.get("run") == first.path.name]
    assert {line["round"] for line in server if "round" in line} >= {1, 2}
    assert {line.get("partition") for line in lines} >= {0, 1}
    everything = json.dumps(lines)
    assert not re.search(r"\bu\d{2,}\b", everything)
    assert str(first.read_summary()["privacy"]["epsilon"])[:4] in everything


def test_feedback_reaches_the_run_that_continues_and_epsilon_is_that_of_both(
    place: Sandbox, up: Loopback, first: RunFolder
) -> None:
    state = up.node_folder(1) / "state"
    catalog = [json.loads(line)["item_id"] for line in (place.folder / "shards/server/catalog.jsonl").open()]
    clicks = place.folder / "clicks.csv"
    rows = [f"{LATE},{item},{2_000_000_000 + n}" for n, item in enumerate(catalog[:9])]
    clicks.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    given = place.call("fedrec", "feedback", "--state-dir", str(state), "--file", str(clicks))
    assert given.returncode == 0, given.stderr
    second = run(place, up, **{"checkpoint.continue-from": str(first.path)})
    before, after = first.read_summary(), second.read_summary()
    assert after["continued_from"]["lineage"] == before["lineage"] != after["lineage"]
    assert after["privacy"]["epsilon"] > before["privacy"]["epsilon"] + 0.1
    checked = place.call("fedrec", "audit", "verify", str(second.path))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    held = [PrivateState(state, summary["lineage"], 1).newest(2) for summary in (before, after)]
    assert [rows is not None and user_key(LATE) in rows["user-keys"] for rows in held] == [False, True]

    bundle = place.folder / "bundle"
    made = place.call("fedrec", "export", "--run", str(second.path), "--out", str(bundle))
    assert made.returncode == 0, made.stderr
    served = place.call(
        "fedrec", "recommend", "--state-dir", str(state), "--model", str(bundle), "--user", LATE, "-k", "3", "--json",
        "--data-path", str(place.folder / "shards/node-1"),
    )  # fmt: skip
    assert served.returncode == 0, served.stderr
    found = json.loads(served.stdout)
    assert found["method"] == "private rows"
    assert not {item["item_id"] for item in found["items"]} & set(catalog[:9])
    assert LATE not in json.dumps(logged(up))


def test_a_renewed_certificate_is_served_after_a_restart_and_nodes_notice_nothing(place: Sandbox, up: Loopback) -> None:
    assert up.certificates is not None
    address = ("127.0.0.1", up.port)
    before = ssl.get_server_certificate(address)
    renewed = place.call(
        "fedrec", "deploy", "certificates", "--host", "localhost", "--out", str(up.certificates.folder), "--renew"
    )
    assert renewed.returncode == 0, renewed.stderr
    assert ssl.get_server_certificate(address) == before  # it reads them when it starts
    pids = [node.pid for node in up.supernodes]
    up.superlink.restart()
    up.await_superlink()
    assert ssl.get_server_certificate(address) == up.certificates.server.read_text() != before
    folder = run(place, up, **{"num-server-rounds": 1})
    assert folder.read_summary()["num_nodes"] == 2
    assert [node.pid for node in up.supernodes if node.alive] == pids
