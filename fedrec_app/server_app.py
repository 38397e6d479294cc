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

from fedrec_app import node_data
from fedrec_app.artifacts import Made, RunFolder
from fedrec_app.config import RunConfig, TrainConfig, parse_options
from fedrec_app.errors import ConfigError, FedrecError
from fedrec_app.models.base import Recommender, initialise, model_hash
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.models.registry import model_class
from fedrec_app.paths import default_output_dir
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


def run_server(grid: Grid, flat: Mapping[str, Any], run_id: int = 0, watchers: Iterable[OnRound] = ()) -> RunResult:
    """Returns the finished run.

    Args:
        grid: how nodes are reached: Flower's, or a `LocalGrid`.
        flat: settings as Flower carries them.
        run_id: Flower's, for config.toml.
        watchers: called after each round.

    Raises:
        FedrecError: a setting or the data is wrong, or too few nodes fit. summary.json says "failed" and why.
    """
    asked = RunConfig.from_flat(flat)
    config = asked.resolve(model_class(asked.model.name).recipe)
    folder = RunFolder.create(default_output_dir(config.output_dir), datetime.now())
    folder.write_config(config, run_id)
    log(INFO, "run folder: %s", folder.path)
    log(INFO, "settings that differ from the defaults: %s", asked.changed() or "none")
    try:
        catalog = node_data.catalog(config.data)
        model = initialise(node_data.unbound_model(config), catalog, None, config.seed)
        if config.data.protocol == "leaky-pfedrec":
            log(WARNING, "LEAKY PROTOCOL: held-out items are never negatives; these figures say nothing about quality")
        summary = _Run(config, model, catalog.hash, grid, folder).execute(watchers)
    except BaseException as error:
        folder.write_summary({"status": "failed", "error": str(error) or type(error).__name__, "seed": config.seed})
        log(ERROR, "the run failed: %s", error)
        raise
    return RunResult(folder, summary)


@dataclass
class _Run:
    config: RunConfig
    model: Recommender
    catalog_hash: str
    grid: Grid
    folder: RunFolder

    def execute(self, watchers: Iterable[OnRound]) -> dict[str, Any]:
        """Returns the summary; every step of a run, top to bottom."""
        config = self.config
        lineage = f"{datetime.now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        roster = Roster(self.catalog_hash, model_hash(self.model), ["item-counts"], config.strategy.join_timeout)
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
        test = self._test(judge, evaluation, progress, lineage)
        self._write_model(progress, lineage, popularity)
        summary = self._summary(progress, test, roster, lineage)
        if remarks := getattr(strategy, "remarks", []):
            summary["remarks"] = remarks
        self.folder.write_summary(summary)
        report = write_report(self.folder)
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
        made = Made(self.catalog_hash, progress.best_round, lineage, self.config.model.name, model_hash(self.model))
        self.folder.write_model(from_record(progress.best_arrays), made, popularity)

    def _summary(self, progress: Progress, test: dict[str, Any], roster: Roster, lineage: str) -> dict[str, Any]:
        config, rounds = self.config, progress.rounds
        best = next((r.validation for r in reversed(rounds) if r.round == progress.best_round), None) or {}
        dropped: dict[str, int] = {}
        for record in rounds:
            for key, count in record.train.items():
                if key.startswith("dropped/"):
                    dropped[key.removeprefix("dropped/")] = dropped.get(key.removeprefix("dropped/"), 0) + int(count)
        full, sampled = split_metrics(test)
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
            "test": full,
            "sampled": sampled,
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
        if config.data.protocol == "leaky-pfedrec":
            summary["warning"] = "leaky protocol: held-out items are never training negatives; not comparable"
        return summary


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
