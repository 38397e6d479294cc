"""What user-level privacy costs: NDCG@10 against epsilon, on ML-100K and on 6,040 synthetic users."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.page import short
from experiments.runs import METRIC, Finished, Runs

SEEDS = 3
EPSILONS = (1.0, 3.0, 8.0, 20.0)
ROUNDS, ROUNDS_WITHOUT = 20, 100
NODES = 4
SYNTHETIC = {
    "data.name": "synthetic",
    "data.options": '{"num_users": 6040, "num_items": 3706, "mean_interactions": 165, "data_seed": 0}',
}
PRIVATE: dict[str, Any] = {"privacy.unit": "user", "privacy.metrics": "exact", "evaluate.every": ROUNDS}
WITHOUT: dict[str, dict[str, Any]] = {
    "`mf` as shipped": {"evaluate.every": 5},
    "`mf`, tuned for the synthetic set": {
        "evaluate.every": 5,
        "model.options": '{"unobserved_weight": 0.6, "regularization": 0.01}',
        "strategy.options": '{"weighting": "users"}',
    },
    "`ease`": {"model.name": "ease"},
}
"""Non-private rows: what ships, the best found for the synthetic set by its validation, and the closed form."""
SILENT = "the private design, next to no noise"
PICTURE = "privacy-utility.png"

NOTES = """\
Design (`private_recipe` of `mf`, so `privacy.unit="user" privacy.target-epsilon=E num-server-rounds=20` is all it
takes): everybody in every round (q = 1), 24 dimensions, a clipping bound of .001 that nearly every delta exceeds, so
that users pull alike, and the server optimiser `subspace`, a noisy power method with momentum. User embeddings are
solved on the node from the whole history, without noise, and never leave it: most of what a user gets is his own data.
Noise, momentum, dimension and rounds were chosen on validation of both sets, outside of any budget: these are public
data, and figures are exact for that reason. The synthetic users follow twenty topics, so a few directions hold nearly
all there is to learn, which suits the method; ML-100K, with a sixth of the users, is the sober figure. "none" is the
best of the rows without privacy, on test, so shares are rather too small than too large; the round of these is the best
on validation, while private runs release the last.
"""


def privacy(runs: Runs, only: str = "", picture: Path | None = None) -> str:
    """Returns the section.

    Args:
        runs: how runs are made, on ML-100K.
        only: data sets whose name holds this text.
        picture: where the curves are drawn; None: nowhere.
    """
    lines = [
        "## What privacy costs",
        "",
        "Made by `python scripts/reproduce.py privacy --data-dir DATA --out docs/privacy.md`.",
        "",
        f"`mf`, every user a client, {NODES} nodes, {SEEDS} seeds, delta = 1 / users^1.1, {ROUNDS} rounds "
        f"({ROUNDS_WITHOUT} at most without privacy); leave-one-out by time, full ranking, test. Means, the range over "
        "seeds in brackets.",
        "",
        "| data | epsilon | noise z | NDCG@10 | of none | HR@10 | NDCG@10, 99 negatives |",
        "|---|---|---|---|---|---|---|",
    ]
    curves = {}
    for name, data in {"ML-100K, 943 users": runs.data, "synthetic, 6,040 users": SYNTHETIC}.items():
        if only in name:
            here = replace(runs, data=data, num_nodes=NODES)
            rows, curves[name] = _of_data(name, here)
            lines += rows
    if picture is not None and curves:
        draw(curves, picture)
        lines += ["", f"![NDCG@10 against epsilon]({picture.name})"]
    return "\n".join([*lines, "", NOTES])


def _of_data(name: str, runs: Runs) -> tuple[list[str], dict[str, Any]]:
    """Returns the rows of a data set, and what is drawn of it."""
    without = {
        label: [replace(runs, num_rounds=ROUNDS_WITHOUT).run({**s, "seed": seed}) for seed in range(SEEDS)]
        for label, s in WITHOUT.items()
    }
    short_runs = replace(runs, num_rounds=ROUNDS)
    without[SILENT] = [short_runs.run({**PRIVATE, "privacy.noise-multiplier": 1e-9, "seed": s}) for s in range(SEEDS)]
    best = max(without, key=lambda label: _mean(without[label]))
    none = _mean(without[best])
    popular = short_runs.run({"model.name": "popularity"})
    rows, points = [], []
    for epsilon in EPSILONS:
        found = [short_runs.run({**PRIVATE, "privacy.target-epsilon": epsilon, "seed": seed}) for seed in range(SEEDS)]
        rows.append(_row(name, f"{epsilon:g}", found, none))
        points.append((epsilon, _mean(found)))
    for label, found in without.items():
        rows.append(_row(name, f"none: {label}" + (" (none)" if label == best else ""), found, none))
    rows.append(_row(name, "popularity, not private", [popular], none))
    for row in rows:
        print(row, flush=True)
    return rows, {"points": points, "none": none, "popularity": _mean([popular])}


def _mean(found: Sequence[Finished]) -> float:
    return statistics.mean(run.summary["test"][METRIC] for run in found)


def _row(name: str, epsilon: str, found: Sequence[Finished], none: float) -> str:
    values = [run.summary["test"][METRIC] for run in found]
    noise = found[0].summary.get("privacy", {}).get("noise_multiplier")
    spread = f" ({short(min(values))}-{short(max(values))})" if len(values) > 1 else ""
    hits, sampled = (
        statistics.mean(run.summary[part][metric] for run in found)
        for part, metric in (("test", "hr@10"), ("sampled", METRIC))
    )
    cells = [
        name, epsilon, "" if noise is None or noise < 1e-6 else f"{noise:.3g}", short(_mean(found)) + spread,
        f"{_mean(found) / none:.1%}", short(hits), short(sampled),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def draw(curves: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws NDCG@10 against epsilon, with what no privacy and popularity reach.

    Args:
        curves: by data set: "points" (epsilon, NDCG@10), "none" and "popularity".
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axes, (name, curve) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        axes.plot(*zip(*curve["points"], strict=True), marker="o", label="user-level privacy")
        axes.axhline(curve["none"], color="tab:green", linestyle="--", label="none")
        axes.axhline(0.8 * curve["none"], color="grey", linestyle=":", label="80 % of none")
        axes.axhline(curve["popularity"], color="tab:red", linestyle="-.", label="popularity")
        axes.set(title=name, xscale="log", xlabel="epsilon", ylabel="NDCG@10, full ranking, test")
        axes.set_xticks(EPSILONS, labels=[f"{epsilon:g}" for epsilon in EPSILONS])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
