"""One round for a model that is solved and not trained: nodes send sums over their users, the server solves.

Not in the registry: such a model brings it along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from logging import INFO, WARNING
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log

from fedrec_app.records import ARRAYS, CONFIG, STAT, Arrays, Ask, Said, to_record
from strategies.base import RecStrategy
from strategies.options import StrategyOptions
from strategies.rollcall import Roster, messages_to
from strategies.settings import Settings
from strategies.update import BadReply, Expected, Intake, Update, opened

NAME = "closed-form"


class Sums(Protocol):
    """What the statistics of nodes are added up in; see `fedrec_app.models.closed_form.Sums`."""

    def add(self, arrays: Arrays, num_users: int) -> None:
        """Adds what a node sent, or raises ValueError."""
        ...

    def solve(self) -> Arrays:
        """Returns the shared parameters."""
        ...

    def remarks(self) -> list[str]:
        """Returns what should be known of them."""
        ...


class ClosedForm(RecStrategy):
    """Asks every node for its statistics, adds them up as they come, and solves.

    Args:
        sums: returns an empty sum.
        settings: see `Settings`.
        roster: the nodes of the run.

    Attributes:
        remarks: of the sums that were solved.
    """

    name = NAME
    summary_line = "one round of sums over users, solved on the server"
    Options = StrategyOptions

    def __init__(self, sums: Callable[[], Sums], settings: Settings, roster: Roster | None) -> None:
        super().__init__({}, settings, roster)
        self._sums = sums
        self.remarks: list[str] = []

    def problem(self, num_nodes: int | None) -> str:
        """Returns that it is for everybody."""
        if self.settings.fraction_train < 1 or self.settings.user_fraction < 1:
            return "it sums over all users, in one round: set strategy.fraction-train=1 and train.user-fraction=1"
        return super().problem(num_nodes)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns one message for every node; parameters, which mean nothing yet, are not sent."""
        self._asked = self._members(grid)
        ask = ConfigRecord({**config, Ask.ROUND: server_round, Ask.UPDATE: "statistics"})
        content = RecordDict({ARRAYS: ArrayRecord(), CONFIG: ask})
        return messages_to(self._asked, content, MessageType.TRAIN, str(server_round))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns the solved parameters, or None when the quorum was missed, and the metrics of the round."""
        sums = self._sums()

        def read(message: Message, expected: Expected) -> Update:
            update = _statistics(message, expected)
            users = {member.partition_id: member.num_users for member in self._asked}[update.partition_id]
            try:
                sums.add(update.arrays, users)
            except ValueError as error:
                raise BadReply("bad-statistics", str(error)) from None
            return update

        intake = Intake(self._expected(server_round), read)
        for _ in intake.updates(replies):
            pass
        metrics = MetricRecord({f"dropped/{reason}": count for reason, count in sorted(intake.dropped.items())})
        for detail in intake.details:
            log(WARNING, "round %s: dropped a reply, %s", server_round, detail)
        if why := self._too_few(intake):
            return self._skipped(server_round, why, metrics, self.state())
        for key in (Said.NUM_USERS, Said.NUM_EXAMPLES):
            metrics[key] = sum(intake.scalars[key])
        metrics["num-updates"] = len(intake.partitions)
        params = sums.solve()
        self.remarks = sums.remarks()
        for remark in self.remarks:
            log(INFO, "%s", remark)
        return to_record(params), metrics


def _statistics(message: Message, expected: Expected) -> Update:
    """Returns the statistics in a reply, by bare name."""
    arrays, scalars, partition = opened(message, expected)
    if wrong := [name for name in arrays if not name.startswith(STAT)]:
        raise BadReply("extra-array", f"{', '.join(sorted(wrong))} was not asked for")
    return Update({name.removeprefix(STAT): array for name, array in arrays.items()}, scalars, partition)
