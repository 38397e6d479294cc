"""Every strategy on ML-100K, with the options that validation chose: what it reaches, how soon, for how many bytes."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from experiments.page import short
from experiments.runs import Finished, Runs
from fedrec_app.errors import FedrecError

COMMON: dict[str, Any] = {
    "model.options": '{"loss": "bce", "init_std": 0.03}',
    "train.unit": "user",
    "train.num-negatives": 4,
    "train.batch-size": 50,
    "train.local-epochs": 1,
    "train.learning-rate": 1.0,
    "train.private-learning-rate": 5.0,
    "seed": 0,
}
"""What all rows have in common: several local steps for whoever has more than 50 interactions."""
POOLED: dict[str, Any] = {"train.unit": "node", "train.batch-size": 1024}
"""Rows of pooled nodes, whose mini-batches hold interactions of all of their users."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        strategy: its name in the registry.
        options: that the grid chose.
        settings: besides the common ones.
        grid: option, or setting if there is a dot in its name -> values; every combination is tried, the other
            options staying as they are.
    """

    strategy: str
    options: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """Returns the settings of a run of this row."""
        return {
            **COMMON,
            **self.settings,
            "strategy.name": self.strategy,
            "strategy.options": json.dumps(self.options, sort_keys=True),
        }

    def points(self) -> Iterator[tuple[str, Row]]:
        """Yields (what was changed, the row with it) for each point of the grid."""
        for values in itertools.product(*self.grid.values()):
            point = dict(zip(self.grid, values, strict=True))
            settings = {name: value for name, value in point.items() if "." in name}
            options = {name: value for name, value in point.items() if "." not in name}
            changed = replace(self, options={**self.options, **options}, settings={**self.settings, **settings})
            yield json.dumps(point), changed


def _sgd(rate: float) -> dict[str, Any]:
    return {"name": "sgd", "learning_rate": rate}


def _adagrad(rate: float) -> dict[str, Any]:
    return {"name": "adagrad", "learning_rate": rate, "tau": 1e-4}


def _rates(*values: float) -> dict[str, list[Any]]:
    """Returns a grid over plain steps of the server."""
    return {"server_optimizer": [_sgd(value) for value in values]}


USERS = {"weighting": "users"}
RULES: dict[str, list[Any]] = {"server_optimizer": [*map(_sgd, (200, 400, 800)), *map(_adagrad, (0.2, 0.3, 0.4))]}
STRATEGIES: dict[str, Row] = {
    "fedavg": Row(
        "fedavg", {**USERS, "learning_rate": 800}, {"train.learning-rate": 0.5},
        grid={"learning_rate": [100, 200, 400, 800], "train.learning-rate": [0.5, 1.0, 2.0]},
    ),
    "fedavgm": Row(
        "fedavgm", {**USERS, "learning_rate": 200, "momentum": 0.5},
        grid={"learning_rate": [40, 80, 200], "momentum": [0.5, 0.9]},
    ),
    "fedadam": Row(
        "fedadam", {**USERS, "learning_rate": 0.08, "tau": 1e-4},
        grid={"learning_rate": [0.01, 0.02, 0.04, 0.08], "tau": [1e-6, 1e-4]},
    ),
    "fedyogi": Row(
        "fedyogi", {**USERS, "learning_rate": 0.04, "tau": 1e-4},
        grid={"learning_rate": [0.01, 0.02, 0.04, 0.08], "tau": [1e-5, 1e-4]},
    ),
    "fedadagrad": Row(
        "fedadagrad", {**USERS, "learning_rate": 0.2, "tau": 1e-4},
        grid={"learning_rate": [0.1, 0.2, 0.3, 0.4], "tau": [1e-4, 3e-4]},
    ),
    "fedprox": Row(
        "fedprox", {**USERS, "mu": 0.1, "server_optimizer": _sgd(200)},
        grid={"mu": [0.001, 0.01, 0.1]},
    ),
    "fednova": Row("fednova", {**USERS, "server_optimizer": _adagrad(0.3)}, grid=RULES),
    "qfedavg": Row(
        "qfedavg", {**USERS, "q": 0.1, "server_optimizer": _sgd(200)}, grid={"q": [0.1, 1.0], **_rates(200, 800)}
    ),
    "median": Row("median", {**USERS, "server_optimizer": _sgd(200)}, grid=RULES),
    "trimmed-mean": Row("trimmed-mean", {**USERS, "trim": 0.125, "server_optimizer": _sgd(400)}, grid=RULES),
    "krum": Row("krum", {**USERS, "num_malicious": 1, "server_optimizer": _adagrad(0.3)}, grid=RULES),
    "multi-krum": Row("multi-krum", {**USERS, "num_malicious": 1, "server_optimizer": _sgd(400)}, grid=RULES),
    "norm-bound": Row("norm-bound", {**USERS, "server_optimizer": _sgd(400)}, grid=RULES),
    "fedbuff": Row("fedbuff", {**USERS, "buffer_size": 4, "server_optimizer": _sgd(400)}, grid=_rates(200, 400, 800)),
    "fedavg, pooled nodes": Row(
        "fedavg", {"learning_rate": 1.0}, {**POOLED, "train.learning-rate": 80.0},
        {"learning_rate": [1.0, 2.0], "train.learning-rate": [10.0, 20.0, 40.0, 80.0]},
    ),
    "scaffold, pooled nodes": Row(
        "scaffold", {"server_optimizer": _sgd(1.0)}, {**POOLED, "train.learning-rate": 80.0},
        {**_rates(1.0, 2.0), "train.learning-rate": [10.0, 20.0, 40.0, 80.0]},
    ),
}  # fmt: skip
"""Name of a row -> the options that the best validation NDCG@10 of its grid chose, and the grid."""
BASELINE, FASTEST = "fedavg", "fednova"
SEEDS = (0, 1, 2)


HEAD = (
    "strategy",
    "options",
    "validation NDCG@10",
    "test NDCG@10",
    f"test minus `{BASELINE}`",
    "test HR@10",
    "sampled NDCG@10 / HR@10",
    "best round",
    "rounds to 95 % of its best",
    f"rounds to `{BASELINE}`'s best",
    "MB up / down",
)
NOTES = """\
Gaps of .002 on validation mean nothing: the best of a hundred noisy rounds is shown. Server and local rate act mostly
as their product. Robust rules lose nothing here, where nobody attacks and eight nodes of 118 users are much alike; of
`krum` the model follows one node in eight. `fedbuff` steps on half of the nodes, which are equally fast here, so one of
its rounds is half the work. Pooled nodes take mini-batches of 1024, and compare with each other only.

What gets there sooner is Adagrad on the server, most of all behind normalised averaging: under `weighting = users` a
long history still takes more local steps and pulls further, which `fednova` divides out.

"""


def tune(runs: Runs, only: str = "") -> None:
    """Prints the best validation NDCG@10 of each point of the grids; nothing of the test is looked at.

    Args:
        runs: how runs are made.
        only: rows whose name holds this text.
    """
    for name, row in STRATEGIES.items():
        for label, point in row.points() if only in name else ():
            try:
                found = runs.run(point.flat())
            except FedrecError as error:
                print(f"{name} {label}: {error}", flush=True)
                continue
            print(f"{name} {label}: {found.best:.4f} in round {found.first_round(found.best)}", flush=True)


def strategies(runs: Runs, only: str = "", rows: Mapping[str, Row] = STRATEGIES) -> str:
    """Returns the section: each strategy at the round that validation chose.

    Args:
        runs: how runs are made.
        only: rows whose name holds this text; the baseline is always there.
        rows: name -> row.
    """
    chosen = {name: row for name, row in rows.items() if only in name or name == BASELINE}
    finished: dict[str, Finished] = {}
    for name, row in chosen.items():
        finished[name] = runs.run(row.flat())
        print(" | ".join(cells(name, row, finished[name], finished[BASELINE])), flush=True)
    table = [cells(name, row, finished[name], finished[BASELINE]) for name, row in chosen.items()]
    lines = [HEAD, ["---"] * len(HEAD), *table]
    noise = statistics.stdev(finished[BASELINE].replicates)
    return "\n".join(
        [
            "## Strategies",
            "",
            "Made by `python scripts/reproduce.py strategies --data-dir DATA --out docs/results.md`.",
            "",
            _setting(runs, noise),
            "",
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
            NOTES,
            *_over_seeds(runs, rows),
        ]
    )


def _over_seeds(runs: Runs, rows: Mapping[str, Row]) -> list[str]:
    """Returns a table: how soon the fastest row gets where the baseline is best, by seed and in the mean over seeds."""
    if FASTEST not in rows:
        return []
    both = [[runs.run({**rows[name].flat(), "seed": seed}) for seed in SEEDS] for name in (BASELINE, FASTEST)]
    for of_name in both:
        of_name.append(Finished({}, _mean_curve([found.validation for found in of_name]), []))
    lines = [
        f"How soon `{FASTEST}` gets where `{BASELINE}` is best, by seed, and for the mean of the seeds' curves:",
        "",
        f"| seed | best validation NDCG@10 of `{BASELINE}` | in round | `{FASTEST}` reaches it in round |",
        "|---|---|---|---|",
    ]
    for label, base, fast in zip([*map(str, SEEDS), "mean"], *both, strict=True):
        first = fast.first_round(base.best) or "never"
        lines.append(f"| {label} | {_four(base.best)} | {base.first_round(base.best)} | {first} |")
    return [*lines, ""]


def _mean_curve(curves: list[list[tuple[int, float]]]) -> list[tuple[int, float]]:
    return [(points[0][0], statistics.fmean(value for _, value in points)) for points in zip(*curves, strict=True)]


def cells(name: str, row: Row, found: Finished, baseline: Finished) -> list[str]:
    """Returns a row of the table.

    Args:
        name: of the row.
        row: what ran.
        found: its run.
        baseline: the run that others are compared with.
    """
    summary, best = found.summary, found.best
    test, sampled = summary["test"], summary["sampled"]
    differences = [mine - theirs for mine, theirs in zip(found.replicates, baseline.replicates, strict=True)]
    difference = test["ndcg@10"] - baseline.summary["test"]["ndcg@10"]
    return [
        name,
        options_in_short(row),
        _four(best),
        _four(test["ndcg@10"]),
        "" if found is baseline else f"{difference:+.4f} ± {_four(statistics.stdev(differences))}",
        short(test["hr@10"]),
        f"{short(sampled['ndcg@10'])} / {short(sampled['hr@10'])}",
        str(summary["best_round"]),
        str(found.first_round(0.95 * best)),
        str(found.first_round(baseline.best) or "never"),
        f"{summary['bytes_up'] / 1e6:.0f} / {summary['bytes_down'] / 1e6:.0f}",
    ]


def options_in_short(row: Row) -> str:
    """Returns the options in short: those besides the weighting, and settings that are not common to all rows."""
    parts = {**row.options, **{name: v for name, v in row.settings.items() if name not in POOLED}}
    return ", ".join(f"{name.removeprefix('train.')} {_value(v)}" for name, v in parts.items() if name != "weighting")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join([str(value["name"]), *(f"{v:g}" for key, v in value.items() if key != "name")])
    return value if isinstance(value, str) else f"{value:g}"


def _four(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def _setting(runs: Runs, noise: float) -> str:
    return (
        "ML-100K; `mf` with sampled negatives (`loss = bce`), local SGD on mini-batches of 50 interactions; every user "
        f"a federated client that counts once (`weighting = users`), {runs.num_nodes} nodes, {runs.num_rounds} rounds, "
        "seed 0. Options were chosen by the validation NDCG@10 of the grids in scripts/experiments/strategies.py "
        "(`tune-strategies` prints them); test is read once a row. The standard error over users of one row's test "
        f"NDCG@10 is {_four(noise)}; ± is the paired one of a difference."
    )
