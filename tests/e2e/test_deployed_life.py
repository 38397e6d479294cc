"""What a deployment goes through in its life: private runs that continue each other, feedback, a renewed certificate.

Every process writes its log as JSON.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator

import pytest

from fedrec_app.artifacts import RunFolder
from fedrec_app.config import Scalar, read_toml
from fedrec_app.data.catalog import Catalog
from fedrec_app.deployment.loopback import Loopback
from fedrec_app.operation import json_log
from fedrec_app.private_state import PrivateState
from fedrec_app.seeding import user_key
from tests.e2e.helpers import SMALL, Sandbox, deployed, sandbox, small_shards

LATE, UNKNOWN = "a visitor who came late", "a film of no catalog"
PLAIN = re.compile(r"^\d\d/\d\d/\d{4} ", re.MULTILINE)
"""How a logger writes that a library has set up."""
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
    with deployed(place, small_shards(place).nodes) as loopback:
        yield loopback


def run(place: Sandbox, up: Loopback, **settings: Scalar) -> tuple[RunFolder, str]:
    """Returns the folder of a private run that has completed, and the server's log: what `fedrec run` wrote."""
    own = read_toml(place.folder / "shards" / "run.toml")
    flat = {**SMALL, **own, **PRIVATE, "output-dir": str(place.outputs), **settings}
    before = set(place.outputs.glob("????-??-??/*"))
    done = place.run_there(up, flat)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = set(place.outputs.glob("????-??-??/*")) - before
    assert RunFolder(path).read_summary()["status"] == "completed"
    return RunFolder(path), done.stderr


@pytest.fixture(scope="module")
def ran(place: Sandbox, up: Loopback) -> tuple[RunFolder, str]:
    return run(place, up)


@pytest.fixture(scope="module")
def first(ran: tuple[RunFolder, str]) -> RunFolder:
    return ran[0]


def of_nodes(up: Loopback) -> str:
    """Returns what the nodes' processes have written."""
    return "".join(node.log.read_text() for node in up.supernodes if node.log is not None)


def test_a_private_run_is_charged_audited_tracked_and_told(place: Sandbox, up: Loopback, first: RunFolder) -> None:
    summary = first.read_summary()
    assert summary["num_nodes"] == 2
    assert summary["privacy"]["epsilon"] > 0
    checked = place.call("fedrec", "audit", "verify", str(first.path))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    told = place.call("fedrec", "status", str(first.path), "--json")
    assert json.loads(told.stdout)["epsilon"] == pytest.approx(summary["privacy"]["epsilon"], abs=1e-3)
    assert list((first.path / "tensorboard").iterdir())


def test_every_line_of_the_servers_log_is_json_and_none_is_written_twice(
    up: Loopback, ran: tuple[RunFolder, str]
) -> None:
    folder, log = ran
    lines = list(json_log.lines_of(log))
    assert len(lines) == len([line for line in log.splitlines() if line])
    rounds = [line for line in lines if "fields" in line]
    assert [(line["run"], line["round"]) for line in rounds] == [(folder.path.name, 1), (folder.path.name, 2)]
    assert not any("seconds" in line["fields"] for line in rounds)
    assert rounds[-1]["fields"]["train"]["epsilon"] > 0
    assert not PLAIN.search(log + of_nodes(up))
    assert not re.search(r"\bu\d{2,}\b", log + of_nodes(up))


def test_feedback_reaches_the_run_that_continues_and_epsilon_is_that_of_both(
    place: Sandbox, up: Loopback, first: RunFolder
) -> None:
    state = up.node_folder(1) / "state"
    catalog = Catalog.from_file(place.folder / "shards/server/catalog.jsonl").item_ids
    clicks = place.folder / "clicks.csv"
    rows = [f"{LATE},{item},{2_000_000_000 + n}" for n, item in enumerate((*catalog[:9], UNKNOWN))]
    clicks.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    given = place.call("fedrec", "feedback", "--state-dir", str(state), "--file", str(clicks))
    assert given.returncode == 0, given.stderr
    second, log = run(place, up, **{"checkpoint.continue-from": str(first.path)})
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
    told = [line for line in json_log.lines_of(of_nodes(up)) if "set aside" in line["message"]]
    assert [(line["partition"], line["message"][:7]) for line in told] == [(1, "rows of")]  # how many is withheld
    assert not re.search(f"{LATE}|{UNKNOWN}", log + of_nodes(up))
    assert not PLAIN.search(log + of_nodes(up))


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
    folder, _ = run(place, up, **{"num-server-rounds": 1})
    assert folder.read_summary()["num_nodes"] == 2
    assert [node.pid for node in up.supernodes if node.alive] == pids
