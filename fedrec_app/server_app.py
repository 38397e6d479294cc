"""The ServerApp: configuration -> roll-call -> rounds -> test -> artefacts."""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
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
from fedrec_app.data.catalog import Catalog
from fedrec_app.errors import FedrecError
from fedrec_app.models.adapted import Adapted, plain_arrays, plain_hash
from fedrec_app.models.base import Recommender, model_hash
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.models.registry import resolved
from fedrec_app.paths import default_output_dir
from fedrec_app.pretrained import Start
from fedrec_app.private_run import PrivateRun
from fedrec_app.records import Ask, from_record, to_record
from fedrec_app.report import write_report
from fedrec_app.resumed import NothingLeft, Resumed, load_state
from fedrec_app.run_strategy import strategy_of
from fedrec_app.summary import cleaning_of, summarise
from strategies.base import RecStrategy
from strategies.evaluation import FederatedEvaluation
from strategies.rollcall import MembersOnly, Roster
from strategies.rounds import Evaluate, Exchange, Progress, RoundRecord, run_rounds
from strategies.saver import Saver

app = ServerApp()

OnRound = Callable[[RoundRecord, Progress, int], None]


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the whole job under `flwr run`."""
    run_server(grid, context.run_config, context.run_id)


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder and the object in summary.json."""

    folder: RunFolder
    summary: dict[str, Any]


@dataclass
class _Recorder:
    """Writes each round to metrics.jsonl, logs a line, and tells whoever watches."""

    folder: RunFolder
    num_rounds: int
    metric: str
    watchers: Iterable[OnRound]
    private: PrivateRun | None = None
    saver: Saver | None = None
    seconds: list[float] = field(default_factory=list)
    charges: int = 0

    def before_round(self, server_round: int) -> None:
        if self.private is not None:
            self.charges = len(self.private.ledger.events)
            self.private.before_round(server_round)

    def on_round(self, record: RoundRecord, progress: Progress) -> None:
        self.seconds.append(record.seconds)
        if self.private is not None:
            if not record.train.get("skipped"):
                self.private.require_charged(self.charges, record.round)
            record.train["epsilon"] = self.private.budget.spent()  # of the ledger, whatever the strategy says
        told = {**asdict(record), "best_round": progress.best_round}
        if self.private is not None:
            del told["seconds"]
        self.folder.append_metrics(told)
        log(INFO, "%s", progress_line(record, progress, self.num_rounds, self.metric, self.seconds))
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
        FedrecError: a setting or the data is wrong, or too few nodes fit. summary.json says "failed" and why.
    """
    asked = RunConfig.from_flat(flat)
    config = resolved(flat)
    resumed = Resumed.open(config)
    folder = resumed.folder if resumed else RunFolder.create(default_output_dir(config.output_dir), datetime.now())
    folder.write_config(config, run_id)
    (folder.path / SUMMARY).unlink(missing_ok=True)  # of a run that failed and is resumed
    log(INFO, "run folder: %s", folder.path)
    log(INFO, "settings that differ from the defaults: %s", asked.changed() or "none")
    run: _Run | None = None
    try:
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
        run = _Run(config, model, start, catalog, grid, folder, resumed)
        summary = run.execute(watchers, reads_test)
    except NothingLeft as error:
        folder.write_summary(error.summary)
        raise
    except BaseException as error:
        failed = {"status": "failed", "error": str(error) or type(error).__name__, "seed": config.seed}
        folder.write_summary({**failed, **({"privacy": run.private.failed()} if run and run.private else {})})
        log(ERROR, "the run failed: %s", str(error) or type(error).__name__)
        if (folder.path / FOLDER).is_dir():
            log(ERROR, 'to go on with it: checkpoint.resume-from="%s"', folder.path)
        raise
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
    resumed: Resumed | None
    private: PrivateRun | None = None

    def execute(self, watchers: Iterable[OnRound], reads_test: bool) -> dict[str, Any]:
        """Returns the summary; every step of a run, top to bottom."""
        config, resumed = self.config, self.resumed
        lineage = resumed.lineage if resumed else f"{datetime.now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        facts = {"catalog-hash": self.catalog.hash, "model-hash": model_hash(self.model)}
        roster = Roster(facts["catalog-hash"], facts["model-hash"], ["item-counts"], config.strategy.join_timeout)
        roster.wait(self.grid, config.strategy.min_nodes)
        log(INFO, "%s nodes take part, %s are refused", len(roster.members), len(roster.refused))
        if quarantined := max((member.num_quarantined for member in roster.partitions()), default=0):
            log(
                WARNING,
                "up to %s rows of a node's data were set aside: see quarantine-<partition>.csv in its state folder",
                quarantined,
            )
        popularity = roster.sums.get("item-counts")
        num_rounds = 1 if isinstance(self.model, ClosedForm) else config.num_server_rounds
        before = resumed.progress(facts) if resumed else None
        private = self.private = PrivateRun.begin(
            config, roster, self.folder, lineage, num_rounds, resumed and resumed.checkpoint.facts.get("ledger")
        )
        if private is not None:
            num_rounds = _affordable(private, num_rounds, before.last_round if before else 0)
        if resumed is not None:
            resumed.require_work(num_rounds)
        strategy = strategy_of(config, self.model, roster, private and private.user_level())
        evaluation = FederatedEvaluation(popularity)
        judge = self._judge(evaluation, roster)
        saver = self._saver(strategy, lineage, facts, private)
        recorder = _Recorder(self.folder, num_rounds, config.evaluate.metric, watchers, private, saver)
        initial = to_record({n: self.model.get_parameter(n).detach().numpy() for n in self.model.shared_names()})
        if resumed is not None:
            load_state(strategy, resumed.checkpoint)
        elif saver is not None:
            saver.begin(initial)
        # Ours know the roster; stock ones draw nodes from the grid.
        ours = isinstance(strategy, RecStrategy)
        grid = self.grid if ours else MembersOnly(self.grid, roster, config.strategy.join_timeout)
        progress = run_rounds(
            strategy, grid, initial,
            num_rounds=num_rounds, timeout=config.strategy.round_timeout,
            train_config=ConfigRecord({Ask.LINEAGE: lineage}),
            evaluate_config=ConfigRecord({Ask.LINEAGE: lineage, Ask.PART: "validation"}),
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
        if remarks := getattr(strategy, "remarks", []):
            summary["remarks"] = remarks
        if private is not None:
            example = "one user's sequence" if self.model.sampling == "sequence" else "one interaction"
            bound = float(getattr(strategy, "clip_norm", config.privacy.clip_norm))
            summary["privacy"] = private.summary(bound, test or {}, example, config.model.init_from)
            private.ledger.close()
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
            return said if private is None else {**said, "ledger": private.known()}

        return Saver(Checkpoints(self.folder.path / FOLDER), every, strategy, now)

    def _judge(self, evaluation: FederatedEvaluation, roster: Roster) -> Evaluate:
        def evaluate(
            server_round: int, arrays: ArrayRecord, config: ConfigRecord
        ) -> tuple[MetricRecord | None, int, int]:
            roster.refresh(self.grid)
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
                Ask.LINEAGE: lineage,
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
        if self.start is not None:
            summary["init_from"] = self.start.to_json()
        if isinstance(self.grid, WithBase):
            summary["adapters"] = {"nodes_sent_base": self.grid.nodes, "bytes_of_base": self.grid.bytes_down}
        return summary
