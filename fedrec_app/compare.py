"""A model beside its twins: federated, centralised, every user alone, and popularity, by the same code on one split.

The rows are judged on the same users, whose bootstrap draws are the same in each, so differences between two rows are
paired (`replicates`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fedrec_app.compare_rows import FEDERATED, POPULARITY, Judged, Row, run_row
from fedrec_app.evaluation.sums import SAMPLED
from fedrec_app.files import write_atomically
from fedrec_app.replicates import Replicates, difference, over_seeds

COMPARISON = "compare.json"
_OF_ONE_SEED = ("seed", "lineage", "run")
_DIFFER = object()


@dataclass
class Comparison:
    """Rows that were judged on the same users, and what they differ by.

    Attributes:
        folder: of compare.json and of the runs.
        about: what was compared: status, model, data, protocol, metric, seeds, draws.
        rows: summary by name of the row; see `summary_over_seeds`.
        differences: of any two rows; see `paired_differences`.
    """

    folder: Path
    about: dict[str, Any]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    differences: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the rows by name, and "differences"."""
        return {**self.rows, "differences": self.differences}

    def write(self) -> None:
        """Writes compare.json: "about", and `to_json`."""
        text = json.dumps({"about": self.about, **self.to_json()}, indent=2) + "\n"
        write_atomically(self.folder / COMPARISON, text.encode())


def compare(
    rows: Sequence[Row],
    folder: Path,
    seeds: int = 1,
    watch: Callable[[str, int, int, int, str], None] = lambda row, seed, done, total, text: None,
) -> Comparison:
    """Returns the comparison; compare.json in the folder holds it too, after every row as far as it has come.

    Args:
        rows: from `plan_rows`, at least one.
        folder: where everything goes, the runs under `runs/<row>`.
        seeds: how many: the settings' own seed and those after it. Split, negatives and bootstrap draws are those of
            `data.seed` in each.
        watch: called with (name of the row, seed, rounds or users done, of how many, a word on how it goes).

    Raises:
        FedrecError: a setting or the data is wrong, or rows were not judged on the same users. compare.json says
            "failed", why, and which rows were done.
    """
    config = rows[0].config
    found = Comparison(folder, {
        "status": "incomplete",
        "model": next((row.config.model.name for row in rows if row.name != POPULARITY), POPULARITY),
        "data": config.data.name, "protocol": config.data.protocol, "metric": config.evaluate.metric,
        "num_nodes": next((row.num_nodes for row in rows if row.name == FEDERATED), None),
        "seeds": [config.seed + offset for offset in range(seeds)], "num_draws": config.evaluate.bootstrap,
    })  # fmt: skip
    judged: dict[str, list[Judged]] = {}
    try:
        for row in rows:
            judged[row.name] = [_run(row, seed, folder, watch) for seed in found.about["seeds"]]
            found.rows[row.name] = {**summary_over_seeds(judged[row.name]), "settings": row.differs}
            found.differences = paired_differences(judged, config.evaluate.metric)
            found.write()
        found.about["status"] = "completed"
    except BaseException as error:
        found.about |= {"status": "failed", "error": str(error) or type(error).__name__}
        raise
    finally:
        found.write()
    return found


def _run(row: Row, seed: int, folder: Path, watch: Callable[[str, int, int, int, str], None]) -> Judged:
    return run_row(row, seed, folder / "runs" / row.name, partial(watch, row.name, seed))


def summary_over_seeds(judged: Sequence[Judged]) -> dict[str, Any]:
    """Returns one summary of the same row with several seeds; of one seed its own, with "seeds" as a list of it.

    What is the same with every seed stays, numbers that differ become their mean, other things that differ are in
    "by_seed" alone, which holds the summary of each seed. Intervals ("ci") are over users, of the mean over seeds;
    "range" has, for "test" and "sampled", the least and the largest value of each metric over the seeds.

    Args:
        judged: a seed each.

    Raises:
        DataError: they were not judged on the same users.
    """
    summaries = [one.summary for one in judged]
    seeds = [summary["seed"] for summary in summaries]
    if len(judged) == 1:
        return {**summaries[0], "seeds": seeds}
    merged = {key: value for key, value in _mean(summaries).items() if key not in _OF_ONE_SEED}
    merged["dropped_updates"] = _dropped(summaries)
    replicates = over_seeds([one.replicates for one in judged])
    ranges: dict[str, dict[str, list[float]]] = {"test": {}, "sampled": {}}
    for part in ranges:
        merged[part]["ci"] = {}
    for name in replicates.names:
        part, bare = ("sampled", name.removeprefix(SAMPLED)) if name.startswith(SAMPLED) else ("test", name)
        merged[part]["ci"][bare] = replicates.interval(name)
        ranges[part][bare] = _ends([one.replicates.value(name) for one in judged])
    return {**merged, "range": ranges, "seeds": seeds, "by_seed": summaries}


def paired_differences(judged: Mapping[str, Sequence[Judged]], metric: str) -> list[dict[str, Any]]:
    """Returns for any two rows, "row" minus "minus", what they differ by in each of "metrics".

    "difference" is over all users, the mean over seeds; "ci" its 95 % interval and "p" its two-sided p-value over
    the draws of users, p being no less than "p_resolution" however large the difference; "seeds" are the differences
    with each seed. Each is for one difference alone: none is corrected for how many there are.

    Args:
        judged: by name of the row, a seed each, the same seeds in the same order.
        metric: that chose the round; HR@10 and NDCG@10, full and sampled, come with it.

    Raises:
        DataError: two rows were not judged on the same users.
    """
    means = {name: over_seeds([one.replicates for one in of_seeds]) for name, of_seeds in judged.items()}
    result = []
    for ours, theirs in itertools.combinations(judged, 2):
        metrics = {}
        for name in compared_metrics(means[ours], metric):
            gap = difference(means[ours], means[theirs], name)
            of_seeds = [
                mine.replicates.value(name) - other.replicates.value(name)
                for mine, other in zip(judged[ours], judged[theirs], strict=True)
            ]
            metrics[name] = {
                "difference": gap.value, "ci": [gap.low, gap.high], "p": gap.p, "p_resolution": gap.resolution,
                "seeds": of_seeds,
            }  # fmt: skip
        result.append({"row": ours, "minus": theirs, "num_draws": means[ours].num_draws, "metrics": metrics})
    return result


def compared_metrics(replicates: Replicates, metric: str) -> list[str]:
    """Returns the metrics that differences are told of: the one that chose the round first."""
    usual = ("hr@10", "ndcg@10", SAMPLED + "hr@10", SAMPLED + "ndcg@10")
    return [name for name in dict.fromkeys((metric, *usual)) if name in replicates.names]


def _mean(values: Sequence[Any]) -> Any:
    """Returns what several values have in common, the mean of numbers; `_DIFFER` where there is no such thing."""
    first = values[0]
    if all(isinstance(value, dict) for value in values):
        keys = [key for key in first if all(key in value for value in values)]
        means = {key: _mean([value[key] for value in values]) for key in keys}
        return {key: value for key, value in means.items() if value is not _DIFFER}
    if all(value == first for value in values):
        return first
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return sum(values) / len(values)
    return _DIFFER


def _dropped(summaries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns how many updates were dropped by reason, the mean over seeds; without one a seed counts 0."""
    found = [summary.get("dropped_updates", {}) for summary in summaries]
    reasons = sorted({reason for dropped in found for reason in dropped})
    return {reason: sum(dropped.get(reason, 0) for dropped in found) / len(found) for reason in reasons}


def _ends(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)]
