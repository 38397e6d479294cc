"""The roll-call: which nodes are there, which part of the users each one holds, and whether they fit this run."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log
from numpy.typing import NDArray

from fedrec_app.errors import FedrecError
from fedrec_app.passed_grid import PassedGrid
from fedrec_app.records import ARRAYS, CONFIG, SCHEMA, STAT, Arrays, Ask, Said, from_record
from strategies.update import MAX_DETAIL, MAX_UNITS

_OUR_ERROR = re.compile(r"^(?:fedrec_app\.errors\.\w+: |.*<class 'fedrec_app\.errors\.\w+'>:<')(.*?)(?:'>.*)?$")
"""An error of ours as Python writes it, or as Flower's ClientApp does: `<class 'fedrec_app.errors.X'>:<'text'>`."""


_PAUSE = 1.0
"""Seconds between two looks at who is there."""
_LATER = 30.0
"""Seconds that the others wait for one who joins when the rounds have begun; he is called again."""
_LONGEST_RECALL = 64
_TAKEN = "is taken by another node"
_NUMBERS = (
    Said.PARTITION, "num-partitions", Said.NUM_USERS, Said.NUM_EXAMPLES, Said.QUARANTINED, Said.COHORT_SIZE
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A node that answered the roll-call.

    Attributes:
        node_id: Flower's id, random in every run.
        partition_id: which part of the users it holds; what sampling and order refer to.
        num_partitions: how many parts there are, as the node was told.
        num_users: users of its cohort with something to train on.
        num_examples: their training interactions.
        num_quarantined: rows of its data that were set aside.
        cohort_size: all its users, those with nothing to train on included.
    """

    node_id: int
    partition_id: int
    num_partitions: int
    num_users: int
    num_examples: int
    num_quarantined: int = 0
    cohort_size: int = 0


@dataclass
class _Recall:
    """When a node that was refused is called again: after 2, 4, 8, ... looks at who is there, then every 64."""

    wait: int = 1
    looks: int = 0

    def is_due(self) -> bool:
        """Returns whether it is called at this look."""
        self.looks += 1
        return self.looks >= self.wait

    def put_off(self) -> None:
        """Notes one more refusal."""
        self.wait, self.looks = min(2 * self.wait, _LONGEST_RECALL), 0


@dataclass
class Roster:
    """The members of a run by node id.

    Args:
        catalog_hash: the catalog that a node must hold.
        model_hash: names and shapes of the shared parameters that a node must have.
        statistics: additive statistics to ask every node for ("item-counts").
        timeout: seconds to wait for the answers to one roll-call.
        lineage: of the run, told to the nodes.
    """

    catalog_hash: str
    model_hash: str
    statistics: Sequence[str] = ()
    timeout: float = 60.0
    lineage: str = ""
    members: dict[int, Member] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    sums: Arrays = field(default_factory=dict)
    withheld: int = 0
    _counted: set[int] = field(default_factory=set)
    _silent: set[int] = field(default_factory=set)
    _recall: dict[int, _Recall] = field(default_factory=dict)
    _begun: bool = False

    def refresh(self, grid: Grid) -> None:
        """Calls the nodes that are new, and those that were refused now and then; forgets those that left."""
        present = set(grid.get_node_ids())
        gone = set(self.members) - present
        for node in gone:
            log(INFO, "partition %s left", self.members.pop(node).partition_id)
        # Whoever was refused because his partition was taken, a node that was restarted, is called again.
        self.refused = {
            node: why for node, why in self.refused.items() if node in present and not (gone and why.endswith(_TAKEN))
        }
        self._recall = {node: recall for node, recall in self._recall.items() if node in present}
        again = {node for node in self.refused if self._recall[node].is_due()}
        new = sorted(present - set(self.members) - (set(self.refused) - again))
        if not new:
            return
        # Popularity is that of the nodes a run begins with: who joins later keeps his counts.
        config = ConfigRecord({Ask.STATISTICS: "" if self._begun else ",".join(self.statistics)})
        if self.lineage:
            config[Ask.LINEAGE] = self.lineage
        messages = [Message(RecordDict({CONFIG: config}), node, MessageType.QUERY) for node in new]
        silent = set(new)
        timeout = min(self.timeout, _LATER) if self._begun else self.timeout
        for reply in grid.send_and_receive(messages, timeout=timeout):
            silent.discard(reply.metadata.src_node_id)
            self._admit(reply)
        for node in silent & (self._silent | again):
            self._refuse(node, "it did not answer two roll-calls")  # or every round would wait for it
        self._silent = silent

    def wait(self, grid: Grid, min_nodes: int) -> None:
        """Calls until every partition that the nodes speak of is there, or the timeout has passed.

        Raises:
            FedrecError: fewer than `min_nodes` fit this run by then.
        """
        end = time.monotonic() + self.timeout
        while True:
            self.refresh(grid)
            announced = max((m.num_partitions for m in self.members.values()), default=1)
            if len(self.members) + len(self.refused) >= max(announced, min_nodes) or time.monotonic() > end:
                break
            time.sleep(0.2)
        if len(self.members) < min_nodes:
            waited = self.timeout - max(end - time.monotonic(), 0)
            reasons = Counter(self.refused.values()).most_common(5)
            refused = "".join(f"; {count} refused: {why}" for why, count in reasons)
            raise FedrecError(
                f"{len(self.members)} of at least {min_nodes} nodes take part after {waited:.1f} s{refused}"
            )
        for name in list(self.sums):
            if self.withheld:
                del self.sums[name]
        self._begun = True

    def gather(self, grid: Grid, min_nodes: int) -> None:
        """Refreshes; where nodes have left and too few are there, waits for them to come back, up to the timeout: a
        SuperLink takes a node that was restarted only when it has missed the heartbeats of the one before.

        Args:
            grid: how nodes are reached.
            min_nodes: how many are enough.
        """
        before = len(self.members)
        self.refresh(grid)
        if len(self.members) >= min(before, min_nodes):
            return
        log(WARNING, "%s of at least %s nodes are there: waiting for those that left", len(self.members), min_nodes)
        end = time.monotonic() + self.timeout
        while len(self.members) < min_nodes and time.monotonic() < end:
            time.sleep(min(_PAUSE, max(end - time.monotonic(), 0)))
            self.refresh(grid)

    def partitions(self) -> list[Member]:
        """Returns the members sorted by partition: the order that everything else follows."""
        return sorted(self.members.values(), key=lambda member: member.partition_id)

    def _admit(self, reply: Message) -> None:
        node = reply.metadata.src_node_id
        try:
            member = self._read(reply)
        except KeyError as error:
            self._refuse(node, f"its answer has no {error}")
            return
        except (ValueError, TypeError) as error:
            self._refuse(node, str(error))
            return
        self.members[node] = member
        if self.refused.pop(node, None) is not None:
            log(INFO, "node %s (partition %s) takes part now", node, member.partition_id)
        if self._begun or member.partition_id in self._counted:
            return  # a node that was restarted: its statistics are in the sums
        self._counted.add(member.partition_id)
        offered = _arrays(reply)
        for name in self.statistics:
            array = offered.get(STAT + name)
            if array is None or not _adds_up_to(array, member.num_examples):
                self.withheld += 1
                continue
            total = self.sums.setdefault(name, np.zeros_like(array))
            if total.shape == array.shape:
                self.sums[name] = total + array
            else:
                self.withheld += 1

    def _refuse(self, node: int, reason: str) -> None:
        if self.refused.get(node) != reason[:MAX_DETAIL]:
            log(WARNING, "node %s is refused: %s", node, reason[:MAX_DETAIL])
        self.refused[node] = reason[:MAX_DETAIL]
        self._recall.setdefault(node, _Recall()).put_off()

    def _read(self, reply: Message) -> Member:
        if reply.has_error():
            lines = [line.strip() for line in (reply.error.reason or "").splitlines() if line.strip()]
            raise ValueError(_OUR_ERROR.sub(r"\1", lines[-1]) if lines else f"error {reply.error.code}")
        said = reply.content.config_records[CONFIG]
        if said[Said.SCHEMA] != SCHEMA:
            raise ValueError(f"its message {Said.SCHEMA} is {str(said[Said.SCHEMA])[:12]}, this run's is {SCHEMA}")
        for key, expected in ((Said.CATALOG, self.catalog_hash), (Said.MODEL, self.model_hash)):
            if expected and said[key] != expected:
                raise ValueError(f"its {key} is {str(said[key])[:12]}, this run's is {expected[:12]}")
        numbers = [said[key] for key in _NUMBERS]
        if not all(isinstance(n, int) and 0 <= n <= MAX_UNITS for n in numbers):
            raise ValueError(f"its numbers {numbers} are not whole numbers from 0 to {MAX_UNITS:.0e}")
        partition, *counts = [int(n) for n in numbers]  # type: ignore[arg-type]
        if partition in {member.partition_id for member in self.members.values()}:
            raise ValueError(f"partition {partition} {_TAKEN}")
        return Member(reply.metadata.src_node_id, partition, *counts)


def _adds_up_to(counts: NDArray, num_examples: int) -> bool:
    """Returns whether these are (num_items,) counts of a node's training interactions."""
    fits = counts.dtype == np.int64 and counts.ndim == 1 and not (counts < 0).any()
    return fits and float(counts.sum(dtype=np.float64)) == num_examples


def _arrays(reply: Message) -> Arrays:
    try:
        record = reply.content.array_records.get(ARRAYS)
        return {} if record is None else from_record(record)
    except Exception as error:  # whatever a broken payload makes numpy raise
        log(WARNING, "node %s: its statistics cannot be read: %s", reply.metadata.src_node_id, error)
        return {}


def sample(members: Sequence[Member], size: int, generator: np.random.Generator) -> list[Member]:
    """Returns `size` members, drawn by their place in the order of partitions, in that order."""
    if size >= len(members):
        return list(members)
    chosen = generator.choice(len(members), size=size, replace=False)
    return [members[i] for i in sorted(chosen)]


def messages_to(members: Iterable[Member], content: RecordDict, kind: str, group: str) -> list[Message]:
    """Returns one message a member, all with the same content."""
    return [Message(content, member.node_id, kind, group_id=group) for member in members]


class MembersOnly(PassedGrid):
    """A grid on which only members of a roster are seen: stock strategies draw nodes from the grid and know no roster.

    Args:
        grid: the grid.
        roster: whose members are seen; it is refreshed with each look.
        patience: seconds that somebody may go on asking for more nodes than there are: stock strategies wait
            without limit for `min_available_nodes`.
    """

    def __init__(self, grid: Grid, roster: Roster, patience: float) -> None:
        super().__init__(grid)
        self._roster, self._patience = roster, patience
        self._looks: list[float] = []

    def get_node_ids(self) -> Iterable[int]:
        """Returns the members' node ids in the order of partitions.

        Raises:
            FedrecError: it has been asked again and again, with nothing sent in between, for longer than the patience.
        """
        now = time.monotonic()
        self._looks.append(now)
        if now - self._looks[0] > self._patience:
            raise FedrecError(
                f"the strategy has waited {self._patience:g} s for more than {len(self._roster.members)} nodes"
            )
        self._roster.refresh(self._grid)
        return [member.node_id for member in self._roster.partitions()]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Sends messages and returns the replies."""
        self._looks.clear()
        return super().send_and_receive(messages, timeout=timeout)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages and returns their ids."""
        self._looks.clear()
        return super().push_messages(messages)
