"""Federated evaluation: every node judges the model on its own users and returns sums.

It belongs to the run and not to a rule of aggregation, so it serves our strategies and stock ones alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from logging import WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.supercore import log
from numpy.typing import NDArray

from fedrec_app.evaluation.metrics import MetricSums, finalise
from fedrec_app.records import ARRAYS, CONFIG, EVAL, METRICS, Ask, Said, from_record
from strategies.accumulator import ExactSum
from strategies.rollcall import Member, messages_to
from strategies.update import MAX_DETAIL


class _Alike:
    """Answers that measure the same things, added up: exactly, so that the order of arrival does not show.

    Args:
        like: an answer of this kind, which is not added yet.

    Attributes:
        partitions: whose answers were added.
    """

    def __init__(self, like: MetricSums) -> None:
        self.partitions: list[int] = []
        self._added = MetricSums.zero(like.names, len(like.item_counts), len(like.sums) - 1, like.list_length)
        self._sums = ExactSum(like.sums.shape)

    def add(self, partition: int, sums: MetricSums) -> None:
        """Adds an answer, which need not be kept."""
        self.partitions.append(partition)
        self._added += sums
        self._sums.add(sums.sums)

    def total(self) -> MetricSums:
        """Returns the sums over all users; whole numbers were exact all along, the others are rounded here."""
        return replace(self._added, sums=self._sums.total())


class FederatedEvaluation:
    """Asks every node for metric sums and adds them up.

    Args:
        popularity: (num_items,) training interactions of each item over all nodes, where every node has told it.
    """

    def __init__(self, popularity: NDArray | None = None) -> None:
        self.popularity = popularity
        self.last_problem = ""
        self._asked: dict[int, Member] = {}

    def configure(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, members: Sequence[Member]
    ) -> list[Message]:
        """Returns one message a member with the parameters and what is asked for."""
        self._asked = {member.node_id: member for member in members}
        ask = ConfigRecord(dict(config))
        ask[Ask.ROUND] = server_round
        ask[Ask.SUMS] = True
        ask.setdefault(Ask.PRIVATE_ROUND, server_round)
        content = RecordDict({ARRAYS: arrays, CONFIG: ask})
        return messages_to(members, content, MessageType.EVALUATE, str(server_round))

    def aggregate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Returns means over users, with intervals as "ci/<name>" where bootstrap sums came; None if no node answered.

        Replies are read once, as they come, and not kept. The order in which they come changes no bit of the metrics.
        A reply that is an error, was not asked for, or does not fit is dropped, counted as "dropped-evaluations" and
        logged, and so is one that did not come. What most nodes measure is what counts; between equal numbers, what the
        lowest partition measures.
        """
        alike: dict[Hashable, _Alike] = {}
        dropped = 0
        seen: set[int] = set()
        for reply in replies:
            node = reply.metadata.src_node_id
            try:
                sums = self._read(reply, server_round, seen)
            except Exception as error:
                dropped += 1
                self._drop(server_round, node, str(error))
                continue
            kind = (sums.names, sums.sums.shape, sums.item_counts.shape, sums.list_length)
            if kind not in alike:
                alike[kind] = _Alike(sums)
            alike[kind].add(self._asked[node].partition_id, sums)
            del reply, sums  # before the next one comes
        for node in sorted(set(self._asked) - seen):
            dropped += 1
            self._drop(server_round, node, "it did not answer in time")
        if not alike:
            return None
        # One node of another version must not decide what all the others are measured by.
        most = max(alike.values(), key=lambda answers: (len(answers.partitions), -min(answers.partitions)))
        for partition in (number for answers in alike.values() if answers is not most for number in answers.partitions):
            dropped += 1
            self._drop(server_round, partition, "it measures other things")
        metrics = MetricRecord()
        for name, value in finalise(most.total(), self.popularity).items():
            if name == "ci":
                for inner, (low, high) in value.items():
                    metrics[f"ci/{inner}"] = [float(low), float(high)]
            else:
                metrics[name] = value
        if dropped:
            metrics["dropped-evaluations"] = dropped
        return metrics

    def _drop(self, server_round: int, node: int, detail: str) -> None:
        self.last_problem = detail[:MAX_DETAIL]
        log(WARNING, "round %s: dropped an evaluation of node %s, %s", server_round, node, self.last_problem)

    def _read(self, reply: Message, server_round: int, seen: set[int]) -> MetricSums:
        node = reply.metadata.src_node_id
        if node not in self._asked:
            raise ValueError("it was not asked")
        if node in seen:
            raise ValueError("it answered twice")
        seen.add(node)
        if reply.has_error():
            lines = [line.strip() for line in (reply.error.reason or "").splitlines() if line.strip()]
            raise ValueError(lines[-1] if lines else f"error {reply.error.code}")
        answered = reply.content.metric_records[METRICS].get(Said.ROUND)
        if answered != server_round:
            raise ValueError(f"it answers round {answered}")
        arrays = from_record(reply.content.array_records[ARRAYS])
        sums = MetricSums.from_arrays({name.removeprefix(EVAL): array for name, array in arrays.items()})
        most = self._asked[node].cohort_size
        if sums.num_users > most or (sums.sums[1:, -1] > 100.0 * most).any():
            raise ValueError(f"it judged {sums.num_users} users, the roll-call told of {most}")
        return sums
