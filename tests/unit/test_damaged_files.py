"""Files that were cut short or changed by a bit: what reads them says so, and nobody works with what is left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedrec_app import client_app
from fedrec_app.artifacts import RunFolder
from fedrec_app.config import Scalar, read_toml
from fedrec_app.data import sources
from fedrec_app.data.shards import write_shards
from fedrec_app.errors import StateError
from fedrec_app.local_grid import LocalGrid
from fedrec_app.recommend import recommend
from fedrec_app.server_app import run_server
from fedrec_app.simulate import simulate
from tests.small import SMALL, run_folder

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut in the middle": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "one bit of a number": lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
    "empty": lambda content: b"",
}
damaged = pytest.mark.parametrize("how", list(DAMAGES))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_folder(tmp_path_factory.mktemp("finished"), num_server_rounds=1, evaluate__bootstrap=0)


@damaged
def test_no_run_starts_from_a_model_file_that_is_damaged(how: str, finished: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(DAMAGES[how]((finished.path / file.name).read_bytes()))
    flat = {"data.options": SMALL, "model.init-from": str(file), "output-dir": str(tmp_path / "out")}
    with pytest.raises(StateError, match=r"model\.safetensors is damaged"):
        simulate(flat, 2)


@damaged
def test_nobody_gets_recommendations_of_a_model_file_that_is_damaged(
    how: str, finished: RunFolder, tmp_path: Path
) -> None:
    copy = RunFolder(Path(shutil.copytree(finished.path, tmp_path / "copy")))
    file = copy.path / "model.safetensors"
    file.write_bytes(DAMAGES[how](file.read_bytes()))
    with pytest.raises(StateError, match=r"model\.safetensors is damaged"):
        recommend(copy, "", [], 5)


@pytest.mark.parametrize("how", ["cut in the middle", "empty"])
def test_a_node_whose_shard_is_damaged_is_refused_and_the_others_train(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = sources.load("synthetic", min_interactions=5, options=SMALL)
    shards = write_shards(dataset, "users", 3, 0, tmp_path / "shards", {})
    file = shards.node(1) / "interactions.parquet"
    file.write_bytes(DAMAGES[how](file.read_bytes()))
    nodes: list[dict[str, Scalar]] = [
        {"partition-id": k, "num-partitions": 3, "data-path": str(shards.node(k)), "state-dir": str(tmp_path / f"s{k}")}
        for k in range(3)
    ]
    flat: dict[str, Scalar] = {
        **read_toml(shards.settings), "output-dir": str(tmp_path / "out"), "num-server-rounds": 1,
        "privacy.min-cohort": 1, "strategy.join-timeout": 0.3, "evaluate.bootstrap": 0,
    }  # fmt: skip
    result = run_server(LocalGrid(client_app.app, flat, 3, node_configs=nodes), flat)
    assert (result.summary["num_nodes"], result.summary["refused_nodes"]) == (2, 1)
    said = [r.getMessage() for r in caplog.records if "is refused" in r.getMessage()]
    assert any("the node's data is not usable; its own log says why" in line for line in said)
    assert not any(str(file) in line for line in said)
