"""FedBuff: asynchronous aggregation by a buffer. Replies count as they arrive, stale ones less.

Federated Learning with Buffered Asynchronous Aggregation, Nguyen et al., AISTATS 2022,
https://arxiv.org/abs/2106.06639 (Algorithm 1). A server step is taken whenever K updates have come. An update that
started tau server steps ago is multiplied with 1 / (1 + tau)^alpha (Xie et al., Asynchronous Federated Optimization,
2019, https://arxiv.org/abs/1903.03934, section 5.2; alpha is 1/2 in the experiments of Nguyen et al.):

    x = x + learning rate * sum_K w_i d_i / (1 + tau_i)^alpha / sum_K w_i

(the paper has equal weights). Unlike there, a node that has answered gets new parameters with the next server step and
not at once: between two steps they are the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from pydantic import BaseModel, Field

from fedrec_app.seeding import rng
from strategies.base import RecStrategy
from strategies.options import WithServerOptimizer
from strategies.outstanding import Outstanding
from strategies.rollcall import Member, Roster, sample
from strategies.settings import Settings
from strategies.update import Expected, Update


class FedBuff(RecStrategy):
    """A server step for every `buffer_size` updates, whoever sends them; nobody waits for the slow.

    A round of the run is a server step. `strategy.fraction-train` is the concurrency: the share of the nodes that are
    at work at a time. Each step gives work to as many idle nodes as that leaves room for, drawn from the seed and the
    step, and reads replies until the buffer is full. When the timeout passes before, what has come is aggregated, or
    the step is skipped where that is less than `strategy.min-nodes`; nodes that have not answered stay at work. A node
    that answers with an error is idle again, one that left is forgotten.

    It overrides `exchange` and not Flower's `start`, so best round, validation and early stopping stay the loop's.
    Validation asks all nodes, and a SuperNode handles one message at a time, so there it waits for the slowest:
    `evaluate.every` should be large. Private rows are stored under the round that asked for them; a node that is at
    work while a round is validated stores rows that go with that round or are older.

    The state is the server optimiser's alone: a run that is resumed abandons messages that are under way.
    """

    name = "fedbuff"
    summary_line = "asynchronous: the first updates count, stale ones less (Nguyen et al., AISTATS 2022)"
    needs = "individual"  # staleness is each node's own
    depends_on_arrival = True

    class Options(WithServerOptimizer):
        """Options of the buffer."""

        buffer_size: int = Field(default=10, ge=1, description="K, updates a server step")
        staleness_exponent: float = Field(
            default=0.5, ge=0, le=10, description="alpha: an update tau steps old counts 1 / (1 + tau)^alpha"
        )

    def __init__(
        self, options: BaseModel | dict[str, Any] | None = None, settings: Settings = Settings(),
        roster: Roster | None = None,
    ) -> None:  # fmt: skip
        super().__init__(options, settings, roster)
        self._outstanding: Outstanding | None = None
        self._rounds: dict[int, int] = {}  # node id -> the step that asked it, of nodes at work
        self._round = 0
        self._staleness: list[int] = []
        self._skipped_rounds: list[int] = []

    def problem(self, num_nodes: int | None) -> str:
        """Returns that the buffer never fills, or that a full one is not enough."""
        size = self.options.buffer_size
        if self.settings.min_nodes > size:
            return f"a step has buffer_size = {size} updates, fewer than strategy.min-nodes = {self.settings.min_nodes}"
        if num_nodes is not None and size > num_nodes:
            return (
                f"a buffer of {size} updates never fills while {num_nodes} nodes work at a time "
                "(strategy.fraction-train of all): set a smaller buffer_size"
            )
        return super().problem(num_nodes)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns one message for each idle node that is drawn."""
        if server_round == 1:
            self._outstanding, self._skipped_rounds = None, []  # another run's
        messages = super().configure_train(server_round, arrays, config, grid)
        self._rounds.update({member.node_id: server_round for member in self._asked})
        self._asked = [member for member in self.members if member.node_id in self._rounds]
        return messages

    def exchange(self, grid: Grid, messages: Iterable[Message], timeout: float) -> Outstanding:
        """Returns the messages of the run so far on their way, these among them."""
        if self._outstanding is None:
            self._outstanding = Outstanding(grid)
        self._outstanding.send(messages, timeout)
        return self._outstanding

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns what every strategy returns; metrics also tell the mean staleness, and how many are still at work."""
        self._round, self._staleness = server_round, []
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            self._skipped_rounds.append(server_round)
        if metrics is not None and self._staleness:
            metrics["staleness"] = sum(self._staleness) / len(self._staleness)
        if metrics is not None and self._outstanding is not None:
            metrics["num-outstanding"] = len(self._outstanding.busy)
        return arrays, metrics

    def _choose(self, members: list[Member], server_round: int) -> list[Member]:
        present = {member.node_id for member in members}
        busy: set[int] = set()
        if self._outstanding is not None:
            self._outstanding.forget(self._outstanding.busy - present)
            busy = self._outstanding.busy
        self._rounds = {node: asked for node, asked in self._rounds.items() if node in busy}
        idle = [member for member in members if member.node_id not in busy]
        room = max(self._sample_size(len(members)) - len(busy), 0)
        return sample(idle, room, rng(self.settings.seed, "nodes", server_round))

    def _expected(self, server_round: int) -> Expected:
        lasting = self._outstanding is not None  # who has not answered is still at work
        return replace(super()._expected(server_round), rounds=dict(self._rounds), lasting=lasting)

    def _take(self, updates: Iterator[Update]) -> Iterator[Update]:
        for update in itertools.islice(updates, self.options.buffer_size):
            idle = sum(at > update.base_round for at in self._skipped_rounds)  # rounds without a server step
            staleness = self._round - 1 - update.base_round - idle
            self._staleness.append(staleness)
            yield update.scaled((1 + staleness) ** -self.options.staleness_exponent) if staleness else update
