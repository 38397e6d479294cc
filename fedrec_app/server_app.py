"""The ServerApp: configuration -> roll-call -> rounds -> test -> artefacts."""

from __future__ import annotations

import math
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
from fedrec_app.artifacts import Made, RunFolder
from fedrec_app.base_transfer import WithBase
from fedrec_app.config import DataConfig, RunConfig, TrainConfig, parse_options
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cleaning import CleaningReport
from fedrec_app.errors import ConfigError, FedrecError
from fedrec_app.models.adapted import Adapted, plain_arrays, plain_hash
from fedrec_app.models.base import Recommender, model_hash
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.models.registry import resolved
from fedrec_app.paths import default_output_dir
from fedrec_app.pretrained import Start
from fedrec_app.records import Ask, from_record, to_record
from fedrec_app.report import write_report
from fedrec_app.schedules import Schedule
from fedrec_app.training.node import POOLED_BATCH
from strategies import closed_form
from strategies.base import RecStrategy
from strategies.evaluation import FederatedEvaluation
from strategies.registry import make_strategy
from strategies.rollcall import MembersOnly, Roster
from strategies.rounds import Evaluate, Exchange, Progress, RoundRecord, run_rounds
from strategies.settings import Settings

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
    seconds: list[float] = field(default_factory=list)

    def on_round(self, record: RoundRecord, progress: Progress) -> None:
        self.seconds.append(record.seconds)
        self.folder.append_metrics({**asdict(record), "best_round": progress.best_round})
        log(INFO, "%s", progress_line(record, progress, self.num_rounds, self.metric, self.seconds))
        for watch in self.watchers:
            watch(record, progress, self.num_rounds)


def progress_line(record: RoundRecord, progress: Progress, num_rounds: int, metric: str, seconds: list[float]) -> str:
    """Returns a round in one line: metric, best so far, loss, seconds, and what is left at this pace."""
    left = statistics.median(seconds[-10:]) * (num_rounds - record.round)
    value = (record.validation or {}).get(metric)
    parts = [f"round {record.round}/{num_rounds}"]
    if isinstance(value, float):
        parts.append(f"{metric} {value:.4f} (best {progress.best_value:.4f}, round {progress.best_round})")
    if isinstance(loss := record.train.get("loss"), float):
        parts.append(f"loss {loss:.4f}")
    if dropped := sum(int(n) for key, n in record.train.items() if key.startswith("dropped/")):
        parts.append(f"dropped {dropped}")
    return " | ".join([*parts, f"{record.seconds:.2f} s", f"ETA {int(left) // 60}:{int(left) % 60:02d}"])


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
    folder = RunFolder.create(default_output_dir(config.output_dir), datetime.now())
    folder.write_config(config, run_id)
    log(INFO, "run folder: %s", folder.path)
    log(INFO, "settings that differ from the defaults: %s", asked.changed() or "none")
    try:
        catalog = node_data.catalog(config.data)
        cleaning = _cleaning(config.data)
        for line in cleaning.lines() if cleaning else []:
            log(INFO, "%s", line)
        model, start = pretrained.start(config, catalog)
        for line in start.lines() if start else []:
            log(INFO, "%s", line)
        if config.data.protocol == "leaky-pfedrec":
            log(WARNING, "LEAKY PROTOCOL: held-out items are never negatives; these figures say nothing about quality")
        if isinstance(model, Adapted):
            grid = WithBase(grid, model.base)
        summary = _Run(config, model, start, catalog, grid, folder).execute(watchers, reads_test)
    except BaseException as error:
        folder.write_summary({"status": "failed", "error": str(error) or type(error).__name__, "seed": config.seed})
        log(ERROR, "the run failed: %s", str(error) or type(error).__name__)
        raise
    return RunResult(folder, summary)


@dataclass
class _Run:
    config: RunConfig
    model: Recommender
    start: Start | None
    catalog: Catalog
    grid: Grid
    folder: RunFolder

    def execute(self, watchers: Iterable[OnRound], reads_test: bool) -> dict[str, Any]:
        """Returns the summary; every step of a run, top to bottom."""
        config = self.config
        lineage = f"{datetime.now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        roster = Roster(self.catalog.hash, model_hash(self.model), ["item-counts"], config.strategy.join_timeout)
        roster.wait(self.grid, config.strategy.min_nodes)
        log(INFO, "%s nodes take part, %s are refused", len(roster.members), len(roster.refused))
        if quarantined := max((member.num_quarantined for member in roster.partitions()), default=0):
            log(
                WARNING,
                "up to %s rows of a node's data were set aside: see quarantine-<partition>.csv in its state folder",
                quarantined,
            )
        popularity = roster.sums.get("item-counts")
        strategy = strategy_of(config, self.model, roster)
        evaluation = FederatedEvaluation(popularity)
        judge = self._judge(evaluation, roster)
        num_rounds = 1 if isinstance(self.model, ClosedForm) else config.num_server_rounds
        recorder = _Recorder(self.folder, num_rounds, config.evaluate.metric, watchers)
        initial = to_record({n: self.model.get_parameter(n).detach().numpy() for n in self.model.shared_names()})
        # Ours know the roster; stock ones draw nodes from the grid.
        ours = isinstance(strategy, RecStrategy)
        grid = self.grid if ours else MembersOnly(self.grid, roster, config.strategy.join_timeout)
        progress = run_rounds(
            strategy, grid, initial,
            num_rounds=num_rounds, timeout=config.strategy.round_timeout,
            train_config=ConfigRecord({Ask.LINEAGE: lineage}),
            evaluate_config=ConfigRecord({Ask.LINEAGE: lineage, Ask.PART: "validation"}),
            evaluate=judge, evaluate_every=config.evaluate.every, metric=config.evaluate.metric,
            early_stopping_rounds=config.evaluate.early_stopping_rounds, hooks=recorder,
        )  # fmt: skip
        test = self._test(judge, evaluation, progress, lineage) if reads_test else None
        self._write_model(progress, lineage, popularity)
        summary = self._summary(progress, test, roster, lineage)
        if remarks := getattr(strategy, "remarks", []):
            summary["remarks"] = remarks
        self.folder.write_summary(summary)
        report = write_report(self.folder) if reads_test else "none, the test part was not read"
        log(INFO, "done: best round %s; report: %s", progress.best_round, report)
        return summary

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
        config, rounds = self.config, progress.rounds
        best = next((r.validation for r in reversed(rounds) if r.round == progress.best_round), None) or {}
        dropped: dict[str, int] = {}
        for record in rounds:
            for key, count in record.train.items():
                if key.startswith("dropped/"):
                    dropped[key.removeprefix("dropped/")] = dropped.get(key.removeprefix("dropped/"), 0) + int(count)
        summary: dict[str, Any] = {
            "status": "completed",
            "model": config.model.name,
            "strategy": config.strategy.name,
            "data": config.data.name,
            "protocol": config.data.protocol,
            "unit": config.train.unit,
            "num_nodes": len(roster.members),
            "refused_nodes": len(roster.refused),
            "quarantined_rows": max((member.num_quarantined for member in roster.partitions()), default=0),
            "rounds": len(rounds),
            "best_round": progress.best_round,
            "stopped_early": progress.stopped_early,
            **({} if test is None else dict(zip(("test", "sampled"), split_metrics(test), strict=True))),
            "validation": split_metrics(best)[0],
            "validation_sampled": split_metrics(best)[1],
            "seconds_per_round": statistics.median(r.seconds for r in rounds),
            "bytes_down": sum(r.bytes_down for r in rounds),
            "bytes_up": sum(r.bytes_up for r in rounds),
            "dropped_updates": dropped,
            "lineage": lineage,
            "seed": config.seed,
        }
        if (counts := roster.sums.get("item-counts")) is not None:
            summary["cold_items"] = int((counts == 0).sum())
        if self.start is not None:
            summary["init_from"] = self.start.to_json()
        if isinstance(self.grid, WithBase):
            summary["adapters"] = {"nodes_sent_base": self.grid.nodes, "bytes_of_base": self.grid.bytes_down}
        if cleaning := _cleaning(config.data):
            summary["cleaning"] = cleaning.as_dict()
        if config.data.protocol == "leaky-pfedrec":
            summary["warning"] = "leaky protocol: held-out items are never training negatives; not comparable"
        return summary


def _cleaning(data: DataConfig) -> CleaningReport | None:
    """Returns what cleaning removed, where a rule is on that is off by default: to know it takes all of the data."""
    if not (data.max_interactions or data.session_gap or data.k_core):
        return None
    report = node_data.prepared(data).dataset.report
    return report if isinstance(report, CleaningReport) else None


def strategy_of(config: RunConfig, model: Recommender, roster: Roster | None = None) -> Strategy:
    """Returns the strategy of a run.

    Args:
        config: resolved.
        model: of the run; bound, if the strategy is to start.
        roster: the nodes of the run; None before anybody knows them.

    Raises:
        ConfigError: there is no such strategy, an option does not fit, or it makes no sense in this run.
    """
    c, train = config, config.train
    settings = Settings(
        seed=c.seed, fraction_train=c.strategy.fraction_train, min_nodes=c.strategy.min_nodes,
        row_names=tuple(model.row_names()), unit="node" if train.unit == "node" else "user",
        num_rounds=c.num_server_rounds, schedule=Schedule.parse(c.strategy.schedule, "strategy.schedule"),
        local_optimizer=train.optimizer, one_step=_takes_one_step(train, roster),
        user_fraction=float(train.user_fraction),
    )  # fmt: skip
    if isinstance(model, ClosedForm) != (c.strategy.name == closed_form.NAME):
        kinds = ("is trained by gradients", "is solved in closed form")
        raise ConfigError(
            f"model {c.model.name!r} {kinds[isinstance(model, ClosedForm)]}, and strategy {c.strategy.name!r} is not "
            'for such models: leave strategy.name at "auto"'
        )
    if isinstance(model, ClosedForm):
        strategy = closed_form.ClosedForm(model.sums, settings, roster)
        if problem := strategy.problem(None):
            raise ConfigError(f"model {c.model.name!r} cannot be solved so: {problem}")
        return strategy
    return make_strategy(c.strategy.name, parse_options(c.strategy.options, "strategy.options"), settings, roster)


def _takes_one_step(train: TrainConfig, roster: Roster | None) -> bool:
    """Returns whether it is certain that every unit takes one local step."""
    size = float(train.batch_size) or (math.inf if train.unit == "user" else POOLED_BATCH)
    most = [member.num_examples for member in roster.partitions()] if roster is not None else []
    return train.local_epochs == 1 and max(most, default=math.inf) <= size


def split_metrics(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns metrics of full ranking and of sampled negatives apart, each with its intervals under "ci"."""
    full: dict[str, Any] = {}
    sampled: dict[str, Any] = {}
    for name, value in metrics.items():
        is_interval = name.startswith("ci/")
        bare = name.removeprefix("ci/")
        target = sampled if bare.startswith("sampled/") else full
        bare = bare.removeprefix("sampled/")
        if is_interval:
            target.setdefault("ci", {})[bare] = list(value)
        else:
            target[bare] = value
    return full, sampled
