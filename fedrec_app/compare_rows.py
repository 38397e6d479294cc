"""The rows of a comparison: with which settings each is made, what makes no sense as one, and how it is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedrec_app import node_data
from fedrec_app.config import RunConfig, Scalar
from fedrec_app.errors import ConfigError, FedrecError, unknown
from fedrec_app.evaluation.metrics import finalise
from fedrec_app.local_only import local_only_sums, local_rounds, local_strategy
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.models.registry import model_class, resolved
from fedrec_app.privacy_rules import require_exact_metrics
from fedrec_app.replicates import Draws, Replicates
from fedrec_app.run_strategy import strategy_of
from fedrec_app.simulate import simulate
from fedrec_app.summary import split_metrics
from strategies.rounds import Progress, RoundRecord

FEDERATED, CENTRALISED, LOCAL_ONLY, POPULARITY = ROWS = ("federated", "centralised", "local-only", "popularity")
DRAWS = 2000
"""Bootstrap draws where the settings do not say: the least p-value that they can show is .001."""
LOCAL_ROUNDS = 10
_TIMEOUTS = ("strategy.round-timeout", "strategy.join-timeout")
_WHOLE = {
    "train.unit": "node",
    "strategy.name": "fedavg",
    # The mean over one node, taken whole, is that node's model. Both are said: a model's recipe may say otherwise.
    "strategy.options": '{"aggregator": "mean", "learning_rate": 1.0}',
}
_OWN = ("num-server-rounds", "model.options", "evaluate.every", "evaluate.early-stopping-rounds",
        "evaluate.fold-in-epochs")  # fmt: skip

Watch = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Row:
    """A row of a comparison.

    Attributes:
        name: one of `ROWS`.
        flat: its settings.
        config: those settings, resolved.
        num_nodes: of the simulation; of local-only, where every user is one, 0.
        differs: setting -> [its value in the federated row, its value here].
    """

    name: str
    flat: dict[str, Scalar]
    config: RunConfig
    num_nodes: int
    differs: dict[str, list[Any]]


@dataclass(frozen=True)
class Judged:
    """A row with one seed: what summary.json says, with the folder as "run", and its draws."""

    summary: dict[str, Any]
    replicates: Replicates


def plan_rows(
    flat: Mapping[str, Scalar],
    num_nodes: int,
    names: Sequence[str] = ROWS,
    centralised: Mapping[str, Scalar] | None = None,
    local_rounds: int | None = None,
) -> list[Row]:
    """Returns the rows in the order of `ROWS`, after every check that needs no data.

    Args:
        flat: settings of the federated row.
        num_nodes: of the federated row.
        names: of the rows, of `ROWS`.
        centralised: settings of the centralised row alone.
        local_rounds: of the local-only row; as many as the federated row has, but not above `LOCAL_ROUNDS`, when
            absent. A solved model takes one, as it does of num-server-rounds.

    Raises:
        ConfigError: a setting is wrong, or a row makes no sense: the message says why.
    """
    wanted = _distinct(names)
    if centralised and CENTRALISED not in wanted:
        raise ConfigError("--centralised has settings of a row that is not asked for: add centralised to --rows")
    if local_rounds is not None and LOCAL_ONLY not in wanted:
        raise ConfigError("--local-rounds is of a row that is not asked for: add local-only to --rows")
    flat = {"evaluate.bootstrap": DRAWS, **{key: value for key, value in flat.items() if key != "output-dir"}}
    base = Row(FEDERATED, flat, resolved(flat), num_nodes, {})
    require_exact_metrics(base.config, "rows are compared user by user")
    if base.config.evaluate.bootstrap == 0:
        raise ConfigError(
            "evaluate.bootstrap is 0: rows are compared by bootstrap draws of users, at least 1 is needed "
            f"({DRAWS} when it is left out)"
        )
    made: dict[str, Callable[[], Row]] = {
        FEDERATED: lambda: _federated(base),
        CENTRALISED: lambda: _centralised(base, centralised or {}),
        LOCAL_ONLY: lambda: _local_only(base, local_rounds),
        POPULARITY: lambda: _popularity(base),
    }
    return [made[name]() for name in ROWS if name in wanted]


def run_row(row: Row, seed: int, output_dir: Path, watch: Watch) -> Judged:
    """Returns the row with a seed.

    Args:
        row: from `plan_rows`.
        seed: of the start and of training samples.
        output_dir: where runs go.
        watch: called with (rounds or users done, of how many, a word on how it goes).

    Raises:
        FedrecError: the run failed, or some node could not judge its users.
    """
    config = row.config.model_copy(update={"seed": seed})
    if row.name == LOCAL_ONLY:
        return _alone(config, watch)
    draws = Draws()

    def on_round(record: RoundRecord, progress: Progress, num_rounds: int) -> None:
        best = progress.best_value if record.validation is not None else None
        watch(record.round, num_rounds, "" if best is None else f"best {config.evaluate.metric} {best:.4f}")

    result = simulate(
        {**row.flat, "seed": seed, "output-dir": str(output_dir)}, row.num_nodes, [on_round], taps=[draws]
    )
    summary = result.folder.read_summary()
    replicates = draws.replicates()
    if (dropped := summary["test"].get("dropped-evaluations", 0)) or replicates is None:
        raise FedrecError(
            f"{row.name}: {dropped} of {summary['num_nodes']} nodes could not judge their users, so the rows would not "
            f"be over the same users; see {result.folder.path}"
        )
    return Judged({**summary, "run": str(result.folder.path)}, replicates)


def _federated(base: Row) -> Row:
    config = base.config
    if (needed := config.strategy.min_nodes) > base.num_nodes:
        raise ConfigError(f"strategy.min-nodes is {needed}: there are {base.num_nodes} nodes (num-nodes)")
    if base.num_nodes == 1 and (_is_solved(config) or config.train.unit == "node"):
        raise ConfigError(
            "num-nodes is 1, and that node pools its users: nothing is federated. Set --num-nodes to at least 2, or "
            "leave federated out of --rows"
        )
    strategy_of(config, node_data.unbound_model(config))
    return base


def _centralised(base: Row, own: Mapping[str, Scalar]) -> Row:
    """Returns the same model on one node that holds everybody, its update taken whole."""
    RunConfig.from_flat(own)  # says what is misspelled before what is not allowed
    for key in own:
        if not _is_own(key):
            allowed = f"train.* but train.unit, {', '.join(_OWN)}"
            raise ConfigError(
                f"--centralised sets {key}: what makes the row centralised, or makes the rows comparable, is fixed; "
                f"of its own it may have {allowed}"
            )
    if own and _is_solved(base.config) and set(own) != {"model.options"}:
        raise ConfigError(
            f"--centralised sets {', '.join(sorted(own))}: model {base.config.model.name!r} is solved, not trained, "
            "and looks at no such setting; model.options may differ"
        )
    shared = {
        key: value for key, value in _not_private(base.flat).items()
        if not key.startswith("strategy.") or key in _TIMEOUTS
    }  # fmt: skip
    flat = {**shared, **({} if _is_solved(base.config) else _WHOLE), **own}
    config = resolved(flat)
    strategy_of(config, node_data.unbound_model(config))
    before, here = base.config.flat(), config.flat()
    differs = {key: [before[key], value] for key, value in here.items() if value != before[key]}
    return Row(CENTRALISED, flat, config, 1, {"num-nodes": [base.num_nodes, 1], **differs})


def _local_only(base: Row, rounds: int | None) -> Row:
    config = base.config
    if _is_solved(config):
        return Row(LOCAL_ONLY, base.flat, config, 0, {"num-nodes": [base.num_nodes, "one a user"]})
    starts = {
        "model.init-from": config.model.init_from, "checkpoint.continue-from": config.checkpoint.continue_from,
        "train.adapter-rank": config.train.adapter_rank,
    }  # fmt: skip
    for key in (key for key, value in starts.items() if value):
        raise ConfigError(
            f"{key} is set: a user alone starts from nothing that others trained, and trains all of the model. Leave "
            "local-only out of --rows"
        )
    rounds = min(LOCAL_ROUNDS, config.num_server_rounds) if rounds is None else rounds
    private = base.config.privacy.unit != "none"  # nobody alone tells anybody anything
    flat: dict[str, Scalar] = {**_not_private(base.flat), "num-server-rounds": rounds, "train.unit": "user"}
    if private:
        flat = {key: value for key, value in flat.items() if key not in ("strategy.name", "strategy.options")}
    here = resolved(flat)
    local_strategy(here)
    before = {key: config.flat()[key] for key in ("num-server-rounds", "train.unit")}
    differs = {key: [value, flat[key]] for key, value in before.items() if value != flat[key]}
    return Row(LOCAL_ONLY, flat, here, 0, {"num-nodes": [base.num_nodes, "one a user"], **differs})


def _popularity(base: Row) -> Row:
    kept = ("data.", "privacy.", "evaluate.")
    bare = _not_private(base.flat)
    flat = {key: value for key, value in bare.items() if key.startswith(kept) or key in ("seed", *_TIMEOUTS)}
    flat.pop("evaluate.fold-in-epochs", None)
    flat |= {"model.name": POPULARITY, "num-server-rounds": 1}
    differs: dict[str, list[Any]] = {
        "num-nodes": [base.num_nodes, 1], "model.name": [base.config.model.name, POPULARITY]
    }  # fmt: skip
    return Row(POPULARITY, flat, resolved(flat), 1, {key: both for key, both in differs.items() if both[0] != both[1]})


def _not_private(flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Returns settings without privacy: what it costs shows beside rows that have none."""
    return {key: v for key, v in flat.items() if not key.startswith("privacy.") or key == "privacy.min-cohort"}


def _alone(config: RunConfig, watch: Watch) -> Judged:
    """Returns every user by himself: as the summary of a run, without what needs a server.

    All rounds are taken, so the best round is the last one: nobody chooses.
    """
    catalog, everybody = node_data.catalog(config.data), node_data.cohort(config.data, None, 1)
    total = int((everybody.held_out("test").lengths > 0).sum())
    started = time.monotonic()
    sums = local_only_sums(
        config, catalog, everybody, "test", config.evaluate.bootstrap, lambda done: watch(done, total, "users")
    )
    found = finalise(sums, np.bincount(everybody.train.items, minlength=everybody.num_items))
    intervals = {f"ci/{name}": interval for name, interval in found.pop("ci", {}).items()}
    test, sampled = split_metrics({**found, **intervals})
    rounds = local_rounds(config)
    summary = {
        "status": "completed", "model": config.model.name, "strategy": config.strategy.name, "data": config.data.name,
        "protocol": config.data.protocol, "unit": "user", "num_nodes": len(everybody), "rounds": rounds,
        "best_round": rounds, "stopped_early": False, "test": test, "sampled": sampled,
        "seconds_per_round": (time.monotonic() - started) / rounds, "bytes_down": 0, "bytes_up": 0,
        "dropped_updates": {}, "seed": config.seed,
    }  # fmt: skip
    return Judged(summary, Replicates.of(sums))


def _distinct(names: Collection[str]) -> set[str]:
    for name in names:
        if name not in ROWS:
            raise ConfigError(unknown("row", name, ROWS))
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"--rows {','.join(names)!r}: each of {', '.join(ROWS)} once, at least one of them")
    return set(names)


def _is_own(key: str) -> bool:
    """Returns whether the centralised row may have a value of its own."""
    return key in _OWN or (key.startswith("train.") and key != "train.unit")


def _is_solved(config: RunConfig) -> bool:
    return issubclass(model_class(config.model.name), ClosedForm)
