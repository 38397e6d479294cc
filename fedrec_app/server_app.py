"""The ServerApp: configuration -> roll-call -> rounds -> test -> artefacts."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from logging import ERROR, INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log
from numpy.typing import NDArray

from fedrec_app import node_data, pretrained
from fedrec_app.artifacts import SUMMARY, Made, RunFolder
from fedrec_app.base_transfer import WithBase
from fedrec_app.checkpoint import FOLDER, Checkpoints
from fedrec_app.config import RunConfig
from fedrec_app.continued import Continued
from fedrec_app.data.catalog import Catalog
from fedrec_app.errors import FedrecError
from fedrec_app.models.adapted import Adapted, plain_arrays, plain_hash
from fedrec_app.models.base import Recommender, model_hash
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.models.registry import resolved
from fedrec_app.operation import json_log
from fedrec_app.operation.audit_log import AuditLog
from fedrec_app.operation.tracking import Tracker, Untracked, tracker_of
from fedrec_app.paths import default_output_dir
from fedrec_app.pretrained import Start
from fedrec_app.private_run import PrivateRun
from fedrec_app.recorder import OnRound as OnRound
from fedrec_app.recorder import Recorder
from fedrec_app.records import Ask, from_record, to_record
from fedrec_app.report import write_report
from fedrec_app.resumed import Resumed, load_state
from fedrec_app.run_strategy import strategy_of
from fedrec_app.summary import cleaning_of, summarise
from strategies.base import RecStrategy
from strategies.deployed_grid import DeployedGrid
from strategies.evaluation import FederatedEvaluation
from strategies.rollcall import MembersOnly, Roster
from strategies.rounds import Evaluate, Exchange, Progress, run_rounds
from strategies.saver import Saver

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the whole job under `flwr run`."""
    run_server(DeployedGrid(grid), context.run_config, context.run_id)


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder and the object in summary.json."""

    folder: RunFolder
    summary: dict[str, Any]


def run_server(
    grid: Grid, flat: Mapping[str, Any], run_id: int = 0, watchers: Iterable[OnRound] = (), reads_test: bool = True
) -> RunResult:
    """Returns the finished run.

    Args:
        grid: how nodes are reached: Flower's, or a `LocalGrid`.
        flat: settings as Flower carries them.
        run_id: Flower's, for config.toml.
        watchers: called after each round.
        reads_test: False leaves the test part out: no test figures in the summary, and no report.

    Raises:
        FedrecError: a setting or the data is wrong, or too few nodes fit. summary.json says "failed" and why, or
            "stopped" where somebody ended it.
    """
    json_log.install()
    asked = RunConfig.from_flat(flat)
    config = resolved(flat)
    resumed, continued = Resumed.open(config), Continued.open(config)
    folder = resumed.folder if resumed else RunFolder.create(default_output_dir(config.output_dir), datetime.now())
    audit = AuditLog.begin(folder.path, config, resumed and resumed.checkpoint)
    json_log.bind(run=folder.path.name, run_id=run_id, round=None)
    folder.write_config(config, run_id)
    over = resumed.over if resumed else None
    if over is None:
        (folder.path / SUMMARY).unlink(missing_ok=True)  # of a run that failed and is resumed
    log(INFO, "run folder: %s", folder.path)
    log(INFO, "settings that differ from the defaults: %s", asked.changed() or "none")
    run: _Run | None = None
    tracker, ending = Untracked(), {}
    try:
        tracker = tracker_of(config, folder.path)
        catalog = node_data.catalog(config.data)
        cleaning = cleaning_of(config.data) if config.privacy.unit == "none" else None
        for line in cleaning.lines() if cleaning else []:
            log(INFO, "%s", line)
        model, start = pretrained.start(config, catalog)
        for line in start.lines() if start else []:
            log(INFO, "%s", line)
        if config.data.protocol == "leaky-pfedrec":
            log(WARNING, "LEAKY PROTOCOL: held-out items are never negatives; these figures say nothing about quality")
        if isinstance(model, Adapted):
            grid = WithBase(grid, model.base)
        run = _Run(config, model, start, catalog, grid, folder, audit, tracker, resumed, continued)
        summary = ending = run.execute(watchers, reads_test)
    except BaseException as error:
        if over is not None and (folder.path / SUMMARY).is_file():
            log(ERROR, "the run stays as it ended before: %s", error)
            audit.ended(over)
            raise
        status = "stopped" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
        why = "its ServerApp was interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        ended = {"status": status, "error": why or type(error).__name__, "seed": config.seed}
        ending = {**ended, **({"privacy": run.private.failed()} if run and run.private else {})}
        folder.write_summary(ending)
        log(ERROR, "the run %s: %s", "was stopped" if status == "stopped" else status, ended["error"])
        if (folder.path / FOLDER).is_dir():
            log(ERROR, 'to go on with it: checkpoint.resume-from="%s"', folder.path)
        audit.ended(ending)
        raise
    finally:
        audit.close()
        tracker.close(ending)
        json_log.bind(run=None, run_id=None, round=None)
    return RunResult(folder, summary)


def _affordable(private: PrivateRun, num_rounds: int, done: int) -> int:
    """Returns how many rounds a run has, those that are done included."""
    allowed = done + private.rounds_allowed(num_rounds - done)
    if allowed < num_rounds:
        log(WARNING, "privacy.target-epsilon is reached after %s of %s rounds", allowed, num_rounds)
    return allowed


@dataclass
class _Run:
    config: RunConfig
    model: Recommender
    start: Start | None
    catalog: Catalog
    grid: Grid
    folder: RunFolder
    audit: AuditLog
    tracker: Tracker
    resumed: Resumed | None
    continued: Continued | None = None
    private: PrivateRun | None = None

    def execute(self, watchers: Iterable[OnRound], reads_test: bool) -> dict[str, Any]:
        """Returns the summary; every step of a run, top to bottom."""
        config, resumed = self.config, self.resumed
        lineage = resumed.lineage if resumed else f"{datetime.now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        facts = {"catalog-hash": self.catalog.hash, "model-hash": model_hash(self.model)}
        roster = Roster(
            facts["catalog-hash"], facts["model-hash"], ["item-counts"], config.strategy.join_timeout, lineage
        )
        roster.wait(self.grid, config.strategy.min_nodes)
        log(INFO, "%s nodes take part, %s are refused", len(roster.members), len(roster.refused))
        if quarantined := sum(member.num_quarantined for member in roster.partitions()):
            text = "%s rows of the nodes' data were set aside: see quarantine-<partition>.csv in their state folders"
            log(WARNING, text, quarantined)
        popularity = roster.sums.get("item-counts")
        num_rounds = 1 if isinstance(self.model, ClosedForm) else config.num_server_rounds
        before = resumed.progress(facts) if resumed else None
        private = self.private = PrivateRun.begin(
            config, roster, self.folder, lineage, num_rounds, resumed and resumed.checkpoint.facts.get("ledger"),
            self.continued.spent if self.continued else (),
        )  # fmt: skip
        if private is not None:
            num_rounds = _affordable(private, num_rounds, before.last_round if before else 0)
        if resumed is not None:
            resumed.require_work(num_rounds)
            (self.folder.path / SUMMARY).unlink(missing_ok=True)  # of a run that was over, and is not any more
        strategy = strategy_of(config, self.model, roster, private and private.user_level())
        evaluation = FederatedEvaluation(popularity)
        judge = self._judge(evaluation, roster)
        saver = self._saver(strategy, lineage, facts, private)
        recorder = Recorder(
            self.folder, num_rounds, config.evaluate.metric, watchers, self.audit, self.tracker, private, saver
        )
        initial = to_record({n: self.model.get_parameter(n).detach().numpy() for n in self.model.shared_names()})
        # Ours know the roster; stock ones draw nodes from the grid.
        ours = isinstance(strategy, RecStrategy)
        grid = self.grid if ours else MembersOnly(self.grid, roster, config.strategy.join_timeout)
        grid = self.audit.watch(grid, roster, strategy, facts, lineage, num_rounds)
        if resumed is not None:
            load_state(strategy, resumed.checkpoint)
        elif saver is not None:
            saver.begin(initial)
        progress = run_rounds(
            strategy, grid, initial,
            num_rounds=num_rounds, timeout=config.strategy.round_timeout,
            train_config=ConfigRecord(self._asked(lineage)),
            evaluate_config=ConfigRecord({**self._asked(lineage), Ask.PART: "validation"}),
            evaluate=judge, choose="best" if private is None else "last",
            evaluate_every=config.evaluate.every if private is None or private.settings.metrics == "exact" else 0,
            metric=config.evaluate.metric,
            early_stopping_rounds=config.evaluate.early_stopping_rounds, hooks=recorder,
            resume=before, timed=private is None,
        )  # fmt: skip
        test = None
        if reads_test and (private is None or private.settings.metrics != "withheld"):
            test = self._test(judge, evaluation, progress, lineage)
        if reads_test and private is not None:
            test = private.test_metrics(test)
        self._write_model(progress, lineage, popularity)
        summary = self._summary(progress, test, roster, lineage)
        remarks = list(getattr(strategy, "remarks", []))
        if missing := (test or {}).get("dropped-evaluations"):
            remarks.append(f"{missing} nodes gave no usable answer about the test part: the others' users are judged")
        if remarks:
            summary["remarks"] = remarks
        if private is not None:
            example = "one user's sequence" if self.model.sampling == "sequence" else "one interaction"
            bound = float(getattr(strategy, "clip_norm", config.privacy.clip_norm))
            uncovered = self.continued.uncovered if self.continued else config.model.init_from
            summary["privacy"] = private.summary(bound, test or {}, example, uncovered)
            private.ledger.close()
        self.audit.ended(summary)
        self.folder.write_summary(summary)
        report = write_report(self.folder) if reads_test else "none, the test part was not read"
        log(INFO, "done: best round %s; report: %s", progress.best_round, report)
        return summary

    def _saver(
        self, strategy: Strategy, lineage: str, facts: Mapping[str, Any], private: PrivateRun | None
    ) -> Saver | None:
        """Returns what writes checkpoints; None where the settings or the strategy have none."""
        # A round of a private run that is taken again is charged again, so none is to be lost.
        every = min(self.config.checkpoint.every, 1) if private else self.config.checkpoint.every
        if every == 0 or not isinstance(strategy, RecStrategy) or isinstance(self.model, ClosedForm):
            return None
        said = {**facts, "lineage": lineage, "settings": self.config.flat()}

        def now() -> dict[str, Any]:
            audited = {**said, "audit": self.audit.known()}
            return audited if private is None else {**audited, "ledger": private.known()}

        return Saver(Checkpoints(self.folder.path / FOLDER), every, strategy, now)

    def _asked(self, lineage: str) -> dict[str, Any]:
        """Returns what every message says: which private state, and which catalog, it is about."""
        of_run = {Ask.LINEAGE: lineage, Ask.CATALOG: self.catalog.hash}
        return {**of_run, **({Ask.PARENT: str(self.continued.parent)} if self.continued else {})}

    def _judge(self, evaluation: FederatedEvaluation, roster: Roster) -> Evaluate:
        def evaluate(
            server_round: int, arrays: ArrayRecord, config: ConfigRecord
        ) -> tuple[MetricRecord | None, int, int]:
            roster.gather(self.grid, self.config.strategy.min_nodes)
            messages = evaluation.configure(server_round, arrays, config, roster.partitions())
            replies = Exchange(self.grid, messages, self.config.strategy.round_timeout)
            metrics = evaluation.aggregate(server_round, replies)
            return metrics, replies.bytes_down, replies.bytes_up

        return evaluate

    def _test(
        self, judge: Evaluate, evaluation: FederatedEvaluation, progress: Progress, lineage: str
    ) -> dict[str, Any]:
        """Reads the test part, once, with the parameters and the private state of the best round."""
        ask = ConfigRecord(
            {
                **self._asked(lineage),
                Ask.PART: "test",
                Ask.PRIVATE_ROUND: progress.best_round,
                Ask.BOOTSTRAP: self.config.evaluate.bootstrap,
            }
        )
        metrics, _, _ = judge(progress.best_round, progress.best_arrays, ask)
        if metrics is None:
            raise FedrecError(f"no node answered the test evaluation: {evaluation.last_problem or 'silence'}")
        return dict(metrics)

    def _write_model(self, progress: Progress, lineage: str, popularity: NDArray | None) -> None:
        made = Made(self.catalog.hash, progress.best_round, lineage, self.config.model.name, plain_hash(self.model))
        shared = plain_arrays(self.model, from_record(progress.best_arrays))
        self.folder.write_model(shared, made, popularity, self.catalog.item_ids)

    def _summary(self, progress: Progress, test: dict[str, Any] | None, roster: Roster, lineage: str) -> dict[str, Any]:
        summary = summarise(self.config, progress, test, roster, lineage)
        if self.continued is not None:
            summary["continued_from"] = self.continued.to_json(self.start)
        elif self.start is not None:
            summary["init_from"] = self.start.to_json()
        if isinstance(self.grid, WithBase):
            summary["adapters"] = {"nodes_sent_base": self.grid.nodes, "bytes_of_base": self.grid.bytes_down}
        return summary
