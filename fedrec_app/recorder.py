"""What is done with a round when it is over."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from logging import INFO

from flwr.supercore import log

from fedrec_app.artifacts import RunFolder
from fedrec_app.operation import json_log
from fedrec_app.operation.audit_log import AuditLog
from fedrec_app.operation.tracking import Tracker
from fedrec_app.private_run import PrivateRun
from strategies.rounds import Progress, RoundRecord
from strategies.saver import Saver

OnRound = Callable[[RoundRecord, Progress, int], None]


@dataclass
class Recorder:
    """Writes each round to the audit log, to metrics.jsonl and to a checkpoint, logs a line, and tells whoever watches.

    Args:
        folder: of the run.
        num_rounds: that it may have.
        metric: that is shown.
        watchers: called after each round with (record, progress, num_rounds).
        audit: of the run.
        tracker: of the run.
        private: its privacy; times are told of no round then.
        saver: of checkpoints.
    """

    folder: RunFolder
    num_rounds: int
    metric: str
    watchers: Iterable[OnRound]
    audit: AuditLog
    tracker: Tracker
    private: PrivateRun | None = None
    saver: Saver | None = None
    _seconds: list[float] = field(default_factory=list)
    _charges: int = 0

    def before_round(self, server_round: int) -> None:
        """Charges what a round costs before it begins."""
        json_log.bind(round=server_round)
        if self.private is not None:
            self._charges = len(self.private.ledger.events)
            self.private.before_round(server_round)

    def on_round(self, record: RoundRecord, progress: Progress) -> None:
        """Records a round: the audit log first, the checkpoint that knows of it last."""
        self._seconds.append(record.seconds)
        if self.private is not None:
            if not record.train.get("skipped"):
                self.private.require_charged(self._charges, record.round)
            record.train["epsilon"] = self.private.budget.spent()  # of the ledger, whatever the strategy says
        told = {**asdict(record), "best_round": progress.best_round}
        if self.private is not None:
            del told["seconds"]
        self.audit.on_round(record, progress, told)
        self.folder.append_metrics(told)
        line = progress_line(record, progress, self.num_rounds, self.metric, self._seconds)
        log(INFO, "%s", line, extra=json_log.fields(told))
        self.tracker.on_round(told)
        if self.saver is not None:
            self.saver.on_round(record, progress)
        for watch in self.watchers:
            watch(record, progress, self.num_rounds)


def progress_line(record: RoundRecord, progress: Progress, num_rounds: int, metric: str, seconds: list[float]) -> str:
    """Returns a round in one line: metric, best so far, loss, and, where rounds are timed, seconds and what is left."""
    value = (record.validation or {}).get(metric)
    parts = [f"round {record.round}/{num_rounds}"]
    if isinstance(value, float):
        parts.append(f"{metric} {value:.4f} (best {progress.best_value:.4f}, round {progress.best_round})")
    if isinstance(loss := record.train.get("loss"), float):
        parts.append(f"loss {loss:.4f}")
    if isinstance(epsilon := record.train.get("epsilon"), float):
        parts.append(f"epsilon {epsilon:.3f}")
    if dropped := sum(int(n) for key, n in record.train.items() if key.startswith("dropped/")):
        parts.append(f"dropped {dropped}")
    if record.seconds:
        left = statistics.median(seconds[-10:]) * (num_rounds - record.round)
        parts += [f"{record.seconds:.2f} s", f"ETA {int(left) // 60}:{int(left) % 60:02d}"]
    return " | ".join(parts)
