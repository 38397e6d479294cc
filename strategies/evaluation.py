"""Federated evaluation: every node judges the model on its own users and returns sums.

It belongs to the run and not to a rule of aggregation, so it serves our strategies and stock ones alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        sums: list[tuple[int, MetricSums]] = []
        dropped = 0
        for reply in replies:
            node = reply.metadata.src_node_id
            try:
                sums.append((node, _read(reply, sums[0][1] if sums else None)))
            except Exception as error:
                dropped += 1
                log(WARNING, "round %s: dropped an evaluation of node %s, %s", server_round, node, error)
        if not sums:
            return None
        total = sums[0][1]
        for _, other in sums[1:]:
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


def _read(reply: Message, like: MetricSums | None) -> MetricSums:
    if reply.has_error():
        lines = [line.strip() for line in reply.error.reason.splitlines() if line.strip()]
        raise ValueError(lines[-1] if lines else f"error {reply.error.code}")
    arrays = from_record(reply.content.array_records[ARRAYS])
    found = MetricSums.from_arrays({name.removeprefix(EVAL): array for name, array in arrays.items()})
    if like is not None:
        like + found  # raises where the two do not fit together
    return found
