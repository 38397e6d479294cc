"""What summary.json says of a run that completed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from fedrec_app import node_data
from fedrec_app.config import DataConfig, RunConfig
from fedrec_app.data.cleaning import CleaningReport
from fedrec_app.errors import DataError
from strategies.rollcall import Roster
from strategies.rounds import Progress


def summarise(
    config: RunConfig, progress: Progress, test: Mapping[str, Any] | None, roster: Roster, lineage: str
) -> dict[str, Any]:
    """Returns what every run says of itself.

    Args:
        config: resolved.
        progress: of the run.
        test: metrics of the test part; None where it was not read.
        roster: the nodes of the run.
        lineage: of the private state.
    """
    rounds = progress.rounds
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
        "rounds": len(rounds),
        "best_round": progress.best_round,
        "stopped_early": progress.stopped_early,
        **({} if test is None else dict(zip(("test", "sampled"), split_metrics(test), strict=True))),
        "validation": split_metrics(best)[0],
        "validation_sampled": split_metrics(best)[1],
        "bytes_down": sum(r.bytes_down for r in rounds),
        "bytes_up": sum(r.bytes_up for r in rounds),
        "dropped_updates": dropped,
        "lineage": lineage,
        "seed": config.seed,
    }
    if (counts := roster.sums.get("item-counts")) is not None:
        summary["cold_items"] = int((counts == 0).sum())
    if config.privacy.unit == "none":
        summary["quarantined_rows"] = sum(member.num_quarantined for member in roster.partitions())
        summary["seconds_per_round"] = statistics.median(r.seconds for r in rounds)
        if cleaning := cleaning_of(config.data):
            summary["cleaning"] = cleaning.as_dict()
    if config.data.protocol == "leaky-pfedrec":
        summary["warning"] = "leaky protocol: held-out items are never training negatives; not comparable"
    return summary


def cleaning_of(data: DataConfig) -> CleaningReport | None:
    """Returns what cleaning removed, where a rule is on that is off by default: to know it takes all of the data, which
    a server whose nodes have their own does not hold."""
    if not (data.max_interactions or data.session_gap or data.k_core):
        return None
    try:
        report = node_data.prepared(data).dataset.report
    except DataError:
        return None
    return report if isinstance(report, CleaningReport) else None


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
