"""`bench.py aggregate`: streaming sparse aggregation against Flower's own FedAvg, from the same replies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as StockFedAvg
from numpy.typing import NDArray

from benchmarks.measure import MB, interleaved
from benchmarks.report import Comparison, Report
from fedrec_app.records import ARRAYS, CONFIG, DELTA, METRICS, ROWS, Arrays, Said, from_record, num_bytes, to_record
from strategies.fedavg import FedAvg
from strategies.rollcall import Member, Roster
from strategies.settings import Settings
from strategies.testing.nodes import Nodes, enter_run, silent

TABLE = "item_embedding"
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Client:
    """What one node has to say: the rows that it trained, its weighted sum of deltas there, and the weight."""

    rows: NDArray[np.int32]
    delta: NDArray[np.float32]
    weight: int


def measure(repeats: int, threads: int, quick: bool, say: Callable[[str], None] = lambda text: None) -> Report:
    """Returns the figures of aggregation.

    Args:
        repeats: how often each is timed.
        threads: of torch and of compiled loops.
        quick: tiny sizes.
        say: told what runs next.
    """
    torch.set_num_threads(threads)
    num_items, num_clients = (300, 6) if quick else (50_000, 200)
    report = Report("aggregate", quick, f"synthetic: {num_items:,} items x 32, {num_clients} nodes")
    # A user with a hundred interactions and four negatives each; and a node of some 25 of them.
    for key, num_rows in {"aggregate": num_items // 100, "aggregate-fifth-of-rows": num_items // 5}.items():
        report.comparisons.append(_compare(key, num_items, num_clients, num_rows, repeats, say))
    return report


def _compare(
    key: str, num_items: int, num_clients: int, num_rows: int, repeats: int, say: Callable[[str], None]
) -> Comparison:
    generator = np.random.default_rng(0)
    params = {TABLE: generator.standard_normal((num_items, 32), dtype=np.float32)}
    clients = [_client(generator, num_items, num_rows) for _ in range(num_clients)]
    whole, sparse = whole_tables(params, clients), sparse_rows(clients)
    found = interleaved(
        {"Flower's FedAvg": stock_fedavg(whole), "fedrec's FedAvg": fedrec_fedavg(params, clients, sparse)},
        repeats,
        say,
    )
    theirs, ours = (from_record(result)[TABLE] for result in found.results.values())
    if not np.allclose(ours, theirs, rtol=0, atol=_TOLERANCE):
        raise RuntimeError(f"the two means differ by up to {np.abs(ours - theirs).max()}")
    return Comparison(
        key,
        f"{num_clients} replies, {num_rows:,} of {num_items:,} rows each",
        "flwr FedAvg.aggregate_train, whole tables",
        "fedrec FedAvg.aggregate_train, sparse rows, validated",
        *found.timings.values(),
        checks={
            "largest_difference_of_means": float(np.abs(ours - theirs).max()),
            "received_by_baseline_mb": sum(num_bytes(reply.content) for reply in whole) / MB,
            "received_by_ours_mb": sum(num_bytes(reply.content) for reply in sparse) / MB,
        },
    )


def _client(generator: np.random.Generator, num_items: int, num_rows: int) -> Client:
    rows = np.sort(generator.choice(num_items, num_rows, replace=False)).astype(np.int32)
    weight = int(generator.integers(20, 200))
    return Client(rows, weight * 0.01 * generator.standard_normal((num_rows, 32), dtype=np.float32), weight)


def whole_tables(params: Arrays, clients: list[Client]) -> list[Message]:
    """Returns replies as Flower's FedAvg wants them: each node's whole table."""
    replies = []
    for client, message in zip(clients, _asked(len(clients)), strict=True):
        table = params[TABLE].copy()
        table[client.rows] += client.delta / np.float32(client.weight)
        metrics = MetricRecord({Said.NUM_EXAMPLES: client.weight})
        replies.append(Message(RecordDict({ARRAYS: to_record({TABLE: table}), METRICS: metrics}), reply_to=message))
    return replies


def sparse_rows(clients: list[Client]) -> list[Message]:
    """Returns replies as fedrec's nodes send them: the rows that they changed."""
    replies = []
    for client, message in zip(clients, _asked(len(clients)), strict=True):
        metrics = MetricRecord(
            {
                Said.WEIGHT: float(client.weight),
                Said.NUM_USERS: 1,
                Said.NUM_EXAMPLES: client.weight,
                Said.LOSS: 0.5 * client.weight,
                Said.ROUND: 1,
            }
        )
        arrays = to_record({ROWS + TABLE: client.rows, DELTA + TABLE: client.delta})
        replies.append(Message(RecordDict({ARRAYS: arrays, METRICS: metrics}), reply_to=message))
    return replies


def stock_fedavg(replies: list[Message]) -> Callable[[], ArrayRecord]:
    """Returns the baseline: Flower's FedAvg on whole tables, the only thing that it takes."""
    strategy = StockFedAvg()

    def run() -> ArrayRecord:
        arrays, _ = strategy.aggregate_train(1, replies)
        if arrays is None:
            raise RuntimeError("Flower's FedAvg aggregated nothing")
        return arrays

    return run


def fedrec_fedavg(params: Arrays, clients: list[Client], replies: list[Message]) -> Callable[[], ArrayRecord]:
    """Returns ours: fedrec's FedAvg on sparse rows, every check of replies included.

    Args:
        params: the current parameters.
        clients: who replies, for the weights that the roll-call has told.
        replies: from `sparse_rows`.
    """
    nodes = [reply.metadata.src_node_id for reply in replies]
    members = {
        node: Member(node, place, len(clients), num_users=1, num_examples=client.weight)
        for place, (node, client) in enumerate(zip(nodes, clients, strict=True))
    }
    strategy = FedAvg({}, Settings(row_names=(TABLE,)), Roster("", "", members=members))
    grid = Nodes([silent] * len(clients), ids=nodes)
    list(strategy.configure_train(1, to_record(params), ConfigRecord({}), grid))

    def run() -> ArrayRecord:
        arrays, metrics = strategy.aggregate_train(1, replies)
        if arrays is None or metrics is None or metrics["num-updates"] != len(replies):
            raise RuntimeError(f"fedrec's FedAvg dropped replies: {dict(metrics or {})}")
        return arrays

    return run


def _asked(num_clients: int) -> list[Message]:
    enter_run()
    content = RecordDict({CONFIG: ConfigRecord({})})
    return [Message(content, 101 + place, MessageType.TRAIN, group_id="1") for place in range(num_clients)]
