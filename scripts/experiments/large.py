"""A Transformer of ten million parameters: what a round costs, with and without adapters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments.runs import Runs
from fedrec_app import node_data
from fedrec_app.models.base import bind
from fedrec_app.models.registry import resolved

ROUNDS = 2
SETTINGS: dict[str, Any] = {
    "model.name": "sasrec", "model.embedding-dim": 256, "model.options": '{"layers": 12, "heads": 4}',
    "train.local-epochs": 1, "evaluate.every": ROUNDS, "evaluate.bootstrap": 0,
}  # fmt: skip
RANKS = (0, 32, 8)

NOTES = """\
Bytes are payloads as the run counts them, all nodes together; seconds are those of the whole round in one process with
one thread, nodes one after the other, so they compare with each other only. Adapters save traffic and not time: nodes
compute with whole matrices. No model was trained to the end here, so this says nothing of quality.
"""


def large(runs: Runs, only: str = "") -> str:
    """Returns the section.

    Args:
        runs: how runs are made.
        only: rows whose adapters have this rank.
    """
    lines = [
        "## A large Transformer",
        "",
        "Made by `python scripts/reproduce.py large --data-dir DATA --out docs/results.md`.",
        "",
        f"`sasrec` on ML-100K with d = 256 and 12 blocks: {_num_parameters(runs) / 1e6:.2f} million parameters; "
        f"{runs.num_nodes} nodes, one local epoch, {ROUNDS} rounds, no evaluation but after the last.",
        "",
        "| `train.adapter-rank` | seconds a round | MB up a round | MB down a round | share of the plain bytes up |",
        "|---|---|---|---|---|",
    ]
    plain = 0.0
    for rank in RANKS:
        if only in str(rank):
            summary = replace(runs, num_rounds=ROUNDS).run({**SETTINGS, "train.adapter-rank": rank}).summary
            up, down = (summary[key] / summary["rounds"] / 1e6 for key in ("bytes_up", "bytes_down"))
            plain = plain or up
            lines.append(
                f"| {rank or 'none'} | {summary['seconds_per_round']:.0f} | {up:.1f} | {down:.1f} | {up / plain:.1%} |"
            )
            print(lines[-1], flush=True)
    return "\n".join([*lines, "", NOTES])


def _num_parameters(runs: Runs) -> int:
    config = resolved({**runs.data, **SETTINGS})
    model = bind(node_data.unbound_model(config), node_data.catalog(config.data), None, 0)
    return sum(parameter.numel() for parameter in model.parameters())
