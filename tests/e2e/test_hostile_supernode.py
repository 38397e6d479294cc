"""SuperNodes that lie, with keys that are registered, beside honest ones in a real run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedrec_app import client_app
from fedrec_app.client import RecommenderClient
from fedrec_app.config import Scalar
from fedrec_app.deployment.dealt_data import DealtData
from fedrec_app.deployment.loopback import Loopback
from fedrec_app.deployment.node_keys import make_node_key
from fedrec_app.local_grid import LocalGrid
from fedrec_app.models.registry import resolved
from fedrec_app.node_settings import NodeSettings
from fedrec_app.records import Said
from fedrec_app.server_app import run_server
from tests.conftest import REPO
from tests.e2e.helpers import SMALL, Sandbox, assert_same_arrays, deployed, sandbox, small_shards, wait_until
from tests.e2e.lies import EVALUATE, EXAMPLES, QUERY, TRAIN, USERS

HONEST = 2
TIMEOUT = 60.0
_EVERY = 3


def _settings(dealt: DealtData) -> dict[str, Scalar]:
    return {
        **SMALL, **dealt.settings, "model.options": '{"loss": "bce"}', "train.num-negatives": 2,
        "strategy.options": '{"tau": 1e-4}', "evaluate.bootstrap": 0, "checkpoint.every": 0,
    }  # fmt: skip


def _honest_nodes(dealt: DealtData) -> list[dict[str, Scalar]]:
    return [{**node, "num-partitions": HONEST} for node in dealt.nodes[:HONEST]]


def _properties(
    settings: Mapping[str, Scalar], node: Mapping[str, Scalar], partition: int, folder: Path
) -> dict[str, Any]:
    """Returns what a node that knows the run would tell the roll-call, as another partition with other numbers."""
    told = NodeSettings.of({**node, "state-dir": str(folder)}, folder)
    said = RecommenderClient(told.of_run(resolved(settings)), told).get_properties({})
    mine = {Said.PARTITION: partition, Said.NUM_USERS: USERS, Said.NUM_EXAMPLES: EXAMPLES, Said.COHORT_SIZE: USERS}
    return {**said, **mine, "num-partitions": 0}


@contextmanager
def _hostile(place: Sandbox, up: Loopback, plan: Mapping[str, Any], name: str) -> Iterator[Path]:
    """Yields what a hostile SuperNode tells of itself, while it runs."""
    key = make_node_key(place.folder / name)
    up.control.register(key.public)
    assert up.certificates is not None
    told = place.folder / f"{name}.jsonl"
    command = [sys.executable, "-m", "tests.e2e.hostile_supernode", str(up.certificates.ca), str(key.private)]
    with told.open("wb") as log:
        process = subprocess.Popen(
            [*command, f"127.0.0.1:{up.port}", json.dumps(plan)],
            env={**up.environment, "FLWR_HOME": str(place.folder / f"home-{name}")}, cwd=REPO, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            wait_until(lambda: b"SuperNode ID" in told.read_bytes() or process.poll() is not None, 60, "it is known")
            assert process.poll() is None, told.read_text()
            yield told
        finally:
            process.kill()
            process.wait(timeout=10)


def _dealt(items: Sequence[str], hands: int) -> list[list[str]]:
    return [list(items[hand::hands]) for hand in range(hands)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_lie_of_a_registered_node_hurts_a_run() -> None:
    """Every round each liar tells another lie; the model is the one that honest nodes make alone."""
    hands = 4
    train, evaluate = _dealt(list(TRAIN), hands), _dealt(list(EVALUATE), hands)
    rounds = max(map(len, train))
    with sandbox() as place:
        dealt = small_shards(place, HONEST)
        nodes = _honest_nodes(dealt)
        settings: dict[str, Scalar] = {
            **_settings(dealt), "num-server-rounds": rounds, "evaluate.every": _EVERY,
            "strategy.round-timeout": TIMEOUT, "strategy.join-timeout": TIMEOUT,
        }  # fmt: skip
        plans = [
            {
                "properties": _properties(settings, nodes[0], HONEST + hand, place.folder / "p"),
                "train": train[hand], "evaluate": evaluate[hand],
            }
            for hand in range(hands)
        ]  # fmt: skip
        refused = {"properties": _properties(settings, nodes[0], 99, place.folder / "p"), "query": list(QUERY) * 9}
        with deployed(place, nodes) as up:
            liars = [_hostile(place, up, plan, f"liar{number}") for number, plan in enumerate([*plans, refused])]
            told = [liar.__enter__() for liar in liars]
            try:
                process = place.start_there(up, {**settings, "output-dir": str(place.outputs)})
                _, words = process.communicate(timeout=1500)
            finally:
                for liar in liars:
                    liar.__exit__(None, None, None)
            assert process.returncode == 0, words[-3000:]
            folder = place.run_folder()
            records, model = folder.read_metrics(), folder.read_model()[0]
        said = [[json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")] for path in told]

        assert [record["round"] for record in records] == list(range(1, rounds + 1))
        wrong = []
        for record in records:
            lies = [name for each in train for name in each[record["round"] - 1 : record["round"]]]
            told_of = [line for lines in said for line in lines if line["lie"] in lies]
            wrong += [f"{text}; said {told_of}" for text in [_wrongly_dropped(record, lies, hands)] if text]
        assert not wrong, "\n".join(wrong)
        assert {record["train"]["num-updates"] for record in records} == {HONEST}
        assert {line["lie"] for lines in said for line in lines} >= {*TRAIN, *list(QUERY)[:3]}
        judged = [record["validation"] for record in records if record["validation"]]
        assert [found["dropped-evaluations"] for found in judged] == [hands] * len(judged)
        alone = run_server(
            LocalGrid(client_app.app, settings, HONEST, node_configs=[
                {**node, "state-dir": str(place.folder / f"s{number}")} for number, node in enumerate(nodes)
            ]),
            {**settings, "output-dir": str(place.folder / "alone")},
        )  # fmt: skip
        assert_same_arrays(model, alone.folder.read_model()[0])
        figures = [record["validation"]["ndcg@10"] for record in alone.folder.read_metrics() if record["validation"]]
        assert [found["ndcg@10"] for found in judged] == pytest.approx(figures, abs=1e-5)


def _wrongly_dropped(record: Mapping[str, Any], lies: Sequence[str], liars: int) -> str:
    """Returns how what was dropped in a round differs from what was told in it; who has no lie left says nothing."""
    dropped = Counter({k.removeprefix("dropped/"): int(n) for k, n in record["train"].items() if "dropped/" in k})
    left, where = dropped.copy(), f"round {record['round']}: {lies}, dropped {dict(dropped)}"
    if dropped.total() != liars:
        return f"{where}, not {liars}"
    reasons = [TRAIN[name].reason for name in lies]
    for reason in sorted(reasons, key=lambda one: isinstance(one, tuple)):  # those that allow several come last
        found = next((one for one in ([reason] if isinstance(reason, str) else reason) if left[one] > 0), None)
        if found is None:
            return f"{where}: none for {reason}"
        left[found] -= 1
    return ""
