"""Federated evaluation: every node judges the model on its own users and returns sums.

It belongs to the run and not to a rule of aggregation, so it serves our strategies and stock ones alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from logging import WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.supercore import log
from numpy.typing import NDArray

from fedrec_app.evaluation.metrics import MetricSums, finalise
from fedrec_app.records import ARRAYS, CONFIG, EVAL, Ask, from_record
from strategies.rollcall import Member, messages_to


class FederatedEvaluation:
    """Asks every node for metric sums and adds them up.

    Args:
        popularity: (num_items,) training interactions of each item over all nodes, where every node has told it.
    """

    def __init__(self, popularity: NDArray | None = None) -> None:
        self.popularity = popularity

    def configure(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, members: Sequence[Member]
    ) -> list[Message]:
        """Returns one message a member with the parameters and what is asked for."""
        ask = ConfigRecord(dict(config))
        ask[Ask.ROUND] = server_round
        ask[Ask.SUMS] = True
        ask.setdefault(Ask.PRIVATE_ROUND, server_round)
        content = RecordDict({ARRAYS: arrays, CONFIG: ask})
        return messages_to(members, content, MessageType.EVALUATE, str(server_round))

    def aggregate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Returns means over users, with intervals as "ci/<name>" where bootstrap sums came; None if no node answered.

        A reply that is an error or does not fit is dropped, counted as "dropped-evaluations" and logged.
        """
        alike: dict[Hashable, list[tuple[int, MetricSums]]] = {}
        dropped = 0
        for reply in replies:
            node = reply.metadata.src_node_id
            try:
                sums = _read(reply)
            except Exception as error:
                dropped += 1
                log(WARNING, "round %s: dropped an evaluation of node %s, %s", server_round, node, error)
                continue
            kind = (sums.names, sums.sums.shape, sums.item_counts.shape, sums.list_length)
            alike.setdefault(kind, []).append((node, sums))
        if not alike:
            return None
        # One node of another version must not decide what all the others are measured by.
        most = max(alike.values(), key=len)
        for node, _ in (answer for answers in alike.values() if answers is not most for answer in answers):
            dropped += 1
            log(WARNING, "round %s: dropped an evaluation of node %s, it measures other things", server_round, node)
        total = most[0][1]
        for _, other in most[1:]:
            total = total + other
        metrics = MetricRecord()
        for name, value in finalise(total, self.popularity).items():
            if name == "ci":
                for inner, (low, high) in value.items():
                    metrics[f"ci/{inner}"] = [float(low), float(high)]
            else:
                metrics[name] = value
        if dropped:
            metrics["dropped-evaluations"] = dropped
        return metrics


def _read(reply: Message) -> MetricSums:
    if reply.has_error():
        lines = [line.strip() for line in (reply.error.reason or "").splitlines() if line.strip()]
        raise ValueError(lines[-1] if lines else f"error {reply.error.code}")
    arrays = from_record(reply.content.array_records[ARRAYS])
    return MetricSums.from_arrays({name.removeprefix(EVAL): array for name, array in arrays.items()})
