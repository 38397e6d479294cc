"""What leaves a client, byte by byte."""

from __future__ import annotations

import traceback
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from safetensors.numpy import load_file

from fedrec_app import client_app
from fedrec_app.config import RunConfig
from fedrec_app.errors import DataError, FedrecError
from fedrec_app.node_data import cohort
from fedrec_app.records import Arrays, changed_rows, from_record, num_bytes, to_record
from fedrec_app.simulate import simulate
from tests.small import SMALL

SHARED = {
    "mf": {"item_embedding"},
    "neumf": {
        "item_gmf", "item_mlp", "item_bias", "output.weight", "output.bias",
        *(f"mlp.{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias")),
    },
}  # fmt: skip
ROW_NAMES = {"mf": {"item_embedding"}, "neumf": {"item_gmf", "item_mlp", "item_bias"}}
SUMS = {"eval/names", "eval/sums", "eval/item_counts", "eval/counts", "stat/item-counts"}


def sent_by_clients(messages: list[Message]) -> bytes:
    """Everything in replies that a listener on the wire would see: names, arrays, metrics and configs."""
    return b"".join(
        record.deflate() + bytes(repr(dict(record)), "utf8") for m in messages for record in m.content.values()
    )


@pytest.mark.parametrize("update", ["delta", "parameters"])
@pytest.mark.parametrize("model", ["mf", "neumf"])
def test_no_private_array_and_no_user_id_leaves_a_client(tmp_path: Path, model: str, update: str) -> None:
    replies: list[Message] = []

    def tap(message: Message) -> None:
        if message.metadata.reply_to_message_id:
            replies.append(message)

    flat = {
        "output-dir": str(tmp_path), "num-server-rounds": 3, "data.options": SMALL, "model.name": model,
        "model.options": '{"loss": "bce"}' if model == "mf" else "{}", "train.num-negatives": 2,
    }  # fmt: skip
    if update == "parameters":
        flat["strategy.name"] = "flwr.serverapp.strategy:FedAvg"
    result = simulate(flat, 3, taps=[tap])
    assert len(replies) == 3 * (1 + 3 + 3 + 1)  # roll-call, three rounds of training and validation, test

    prefixed = {f"delta/{name}" for name in SHARED[model]} if update == "delta" else SHARED[model]
    rows = {f"rows/{name}" for name in ROW_NAMES[model]} if update == "delta" else set()
    names = {name for m in replies for record in m.content.array_records.values() for name in record}
    assert names <= prefixed | rows | SUMS
    assert prefixed <= names

    wire = sent_by_clients(replies)
    everyone = cohort(_data_config(flat), None, 1)
    for user in everyone.user_ids:
        assert f"'{user}'".encode() not in wire
        assert f'"{user}"'.encode() not in wire
    stored = list((tmp_path / "nodes" / result.summary["lineage"]).glob("*/*.safetensors"))
    assert stored, "private state was written, so there is something that could have leaked"
    floats = {
        array.astype(np.float32).tobytes()
        for m in replies
        for record in m.content.array_records.values()
        for array in from_record(record).values()
    }
    rows = [row for path in stored for name, a in load_file(path).items() if name != "user-keys" for row in a]
    assert rows
    for row in rows:
        if np.any(row):
            assert not any(row.astype(np.float32).tobytes() in payload for payload in floats)
    for key in everyone.keys:
        assert int(key).to_bytes(8, "little") not in wire


def _data_config(flat: dict[str, object]):  # type: ignore[no-untyped-def]
    return RunConfig.from_flat({k: v for k, v in flat.items() if k.startswith("data.")}).data


def test_the_last_gate_stops_an_array_that_is_not_shared() -> None:
    class Client:
        class model:
            @staticmethod
            def shared_names() -> list[str]:
                return ["item_embedding"]

    passing = ["delta/item_embedding", "count/item_embedding", "rows/item_embedding", "eval/sums"]
    client_app._check_outgoing(passing, Client())  # type: ignore[arg-type]
    for name in ("user_embedding", "delta/user_embedding", "rows/user_embedding", "user-keys"):
        with pytest.raises(FedrecError, match="must not leave the node"):
            client_app._check_outgoing([name], Client())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "weighting"),
    [("mf", "examples"), ("mf", "rows"), ("neumf", "rows"), pytest.param("neumf", "examples", marks=pytest.mark.slow)],
)
def test_nodes_send_the_rows_that_they_changed_alone_which_changes_nothing_but_the_traffic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, weighting: str
) -> None:
    flat = {
        "output-dir": str(tmp_path), "num-server-rounds": 2, "data.options": SMALL, "model.name": model,
        "model.options": '{"loss": "bce"}' if model == "mf" else "{}", "train.num-negatives": 1,
        "strategy.name": "fedavg", "strategy.options": f'{{"weighting": "{weighting}"}}',
    }  # fmt: skip
    trained: list[Arrays] = []

    def tap(message: Message) -> None:
        if message.metadata.reply_to_message_id and message.metadata.message_type == "train":
            trained.append(from_record(message.content.array_records["arrays"]))

    def run() -> tuple[dict[str, bytes], int]:
        result = simulate(flat, 40, taps=[tap])
        arrays, _, _ = result.folder.read_model()
        assert result.summary["dropped_updates"] == {}
        return {name: array.tobytes() for name, array in arrays.items()}, result.summary["bytes_up"]

    model_from_rows, bytes_of_rows = run()
    alone = [arrays for arrays in trained if any(name.startswith("rows/") for name in arrays)]
    assert len(alone) > len(trained) / 2
    for arrays in alone:
        for rows_name in (name for name in arrays if name.startswith("rows/")):
            name = rows_name.removeprefix("rows/")
            delta, count = arrays[f"delta/{name}"], arrays.get(f"count/{name}")
            assert name in ROW_NAMES[model]
            assert len(arrays[rows_name]) == len(delta) < 60
            assert (count is None) == (weighting != "rows")
            assert count is None or len(count) == len(delta)
    monkeypatch.setattr("fedrec_app.outgoing.changed_rows", lambda delta, count=None: None)
    model_from_tables, bytes_of_tables = run()
    assert model_from_rows == model_from_tables
    assert bytes_of_rows < 0.9 * bytes_of_tables


def test_the_rows_that_are_sent_are_those_that_changed_or_count_and_only_where_that_is_less() -> None:
    delta = np.zeros((1000, 4))
    delta[[3, 700], 1] = 1e-300, -2.0
    rows = changed_rows(delta)
    assert rows is not None
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows, [3, 700])
    count = np.zeros(1000)
    count[[3, 5]] = 2.0
    np.testing.assert_array_equal(changed_rows(delta, count), [3, 5, 700])  # type: ignore[arg-type]
    np.testing.assert_array_equal(changed_rows(np.zeros((1000, 4))), [])  # type: ignore[arg-type]
    np.testing.assert_array_equal(changed_rows(np.full((1000, 1, 1), 0.0) + (np.arange(1000) == 9)[:, None, None]), [9])  # type: ignore[arg-type]
    for size in range(0, 1001, 50):
        delta = np.zeros((1000, 4), dtype=np.float32)
        delta[:size] = 1
        rows = changed_rows(delta)
        alone = to_record({"rows/t": np.arange(size, dtype=np.int32), "delta/t": delta[:size]})
        assert (rows is not None) == (
            num_bytes(RecordDict({"a": alone})) < num_bytes(RecordDict({"a": to_record({"delta/t": delta})}))
        )
    for few in (np.zeros((0, 4)), np.zeros((3, 4)), np.zeros((5, 0))):
        assert changed_rows(few) is None


def test_an_error_on_the_node_does_not_quote_its_data(tmp_path: Path) -> None:
    @client_app._discreet
    def train(message: Message, context: object) -> Message:
        raise KeyError("user anna likes i0001")

    @client_app._discreet
    def query(message: Message, context: object) -> Message:
        raise DataError("repeats user 'anna'")

    node = {"partition-id": 0, "num-partitions": 1, "state-dir": str(tmp_path)}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})
    for handler, expected in ((train, "KeyError on the node"), (query, "data is not usable")):
        with pytest.raises(FedrecError, match=expected) as caught:
            handler(Message(RecordDict(), 1, "train"), context)
        shown = "".join(traceback.format_exception(caught.value))
        assert "anna" not in str(caught.value)
        assert caught.value.__suppress_context__
        assert "likes" not in shown.split("raise FedrecError")[-1]


def test_small_cohorts_keep_their_item_counts(tmp_path: Path) -> None:
    flat = {"output-dir": str(tmp_path), "num-server-rounds": 1, "data.options": SMALL}
    told = simulate(flat, 2).summary
    assert "popularity@10" in told["test"]
    train = cohort(_data_config(flat), None, 1).train
    assert told["cold_items"] == 60 - len(np.unique(train.items))
    kept = simulate(flat, 20).summary
    assert "popularity@10" not in kept["test"]
    assert "cold_items" not in kept
    assert "popularity@10" in simulate({**flat, "privacy.min-cohort": 2}, 20).summary["test"]
