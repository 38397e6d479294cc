"""First models: what each model reaches with its own settings, and the canary of evaluation."""

from __future__ import annotations

import statistics
from typing import Any

from experiments.page import short
from experiments.runs import Runs
from fedrec_app import node_data
from fedrec_app.config import RunConfig
from fedrec_app.local_only import local_only
from fedrec_app.models.registry import model_class

ROWS: dict[str, tuple[int, dict[str, Any]]] = {
    "`mf`, shipped defaults": (3, {}),
    "`mf`, equal weights in serving": (1, {"model.options": '{"recency": 0}', "evaluate.every": 5}),
    "`mf`, sampled negatives (`loss = bce`)": (
        1,
        {
            "model.options": '{"loss": "bce", "init_std": 0.03}', "train.num-negatives": 4, "train.batch-size": 50,
            "strategy.options": '{"learning_rate": 0.01, "weighting": "users"}', "evaluate.every": 5,
        },
    ),
    "`neumf`, shipped defaults": (1, {"model.name": "neumf", "evaluate.every": 5}),
}  # fmt: skip
"""Name of a row -> how many seeds it is run with, and its settings."""

NOTES = """\
What `mf` has over the usual matrix factorisation is one thing: user embeddings are fitted, on the device, with weights
(1 + steps back)^-1, so what a user did last counts most ("equal weights" is the same model without it). The idea and
the settings of `mf` were found on this data set in exploration that also looked at test figures, so take its row as
mildly optimistic until it is confirmed elsewhere. Rows with one seed were not tuned beyond a few tries.

`local-only` is the canary: without a server a model that knows nothing of items must score at chance, about .1 among
99 negatives.
"""


def first_models(runs: Runs, only: str = "") -> str:
    """Returns the section: each model's test metrics at the round that validation chose, means over seeds.

    Args:
        runs: how runs are made.
        only: rows whose name holds this text.
    """
    lines = [
        "## First models",
        "",
        "Made by `python scripts/reproduce.py first-models --data-dir DATA --out docs/results.md`.",
        "",
        "ML-100K, 943 users, 1,682 items; leave-one-out by time; every user a federated client (`train.unit = user`), "
        f"8 nodes, {runs.num_rounds} rounds, the round chosen on validation (NDCG@10, full ranking), test read once. "
        "Means over seeds: a seed draws the start and the training samples; users and evaluation negatives stay. The "
        "standard error over users is about .015 (99 negatives) and .013 (full ranking).",
        "",
        "| model | seeds | HR@10 / NDCG@10, 99 negatives | full ranking | coverage@10 | best round |",
        "|---|---|---|---|---|---|",
    ]
    for name, (num_seeds, settings) in ROWS.items():
        if only in name:
            lines.append(_row(name, [runs.run({**settings, "seed": s}).summary for s in range(num_seeds)]))
            print(lines[-1], flush=True)
    if only in "local-only":
        lines.append(_local_only_row(runs.data))
    return "\n".join([*lines, "", NOTES])


def _row(name: str, summaries: list[dict[str, Any]]) -> str:
    def mean(part: str, metric: str) -> str:
        return short(statistics.mean(s[part][metric] for s in summaries))

    sampled = f"{mean('sampled', 'hr@10')} / {mean('sampled', 'ndcg@10')}"
    full = f"{mean('test', 'hr@10')} / {mean('test', 'ndcg@10')}"
    rounds = ", ".join(str(s["best_round"]) for s in summaries)
    coverage = mean("test", "coverage@10")
    return f"| {name} | {len(summaries)} | {sampled} | {full} | {coverage} | {rounds} |"


def _local_only_row(data: dict[str, Any]) -> str:
    config = RunConfig.from_flat({**data, "num-server-rounds": 10}).resolve(model_class("mf").recipe)
    catalog = node_data.prepared(config.data).dataset.catalog
    found = local_only(config, catalog, node_data.cohort(config.data, None, 1), "test")
    sampled = f"{short(found['sampled/hr@10'])} / {short(found['sampled/ndcg@10'])}"
    full = f"{short(found['hr@10'])} / {short(found['ndcg@10'])}"
    name = "`mf`, local-only: each user alone, 10 rounds"
    return f"| {name} | 1 | {sampled} | {full} | {short(found['coverage@10'])} | 10 |"
