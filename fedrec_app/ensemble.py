"""Several finished runs as one model: their scores, or the ranks that they give, fused for each user.

Rank fusion is weighted reciprocal rank fusion: sum of w / (60 + rank) over runs (Cormack, Clarke & Buettcher,
"Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods", SIGIR 2009). Score fusion is the
weighted sum of scores that are first brought to mean 0 and standard deviation 1 over the user's candidates, so that a
logit and a rating weigh alike. Models may differ; the items may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec_app import node_data
from fedrec_app.data.cohort import Part
from fedrec_app.data.histories import Histories
from fedrec_app.errors import ConfigError, FedrecError, unknown
from fedrec_app.evaluation.evaluate import evaluate_cohort
from fedrec_app.evaluation.metrics import finalise
from fedrec_app.evaluation.ranking import Scores
from fedrec_app.finished import FinishedRun, require_same_data
from fedrec_app.run_weights import Choice, choices, normalised
from fedrec_app.summary import split_metrics

FUSIONS = ("rank", "score")
RRF_K = 60
"""What is added to ranks, from the paper: the larger, the less the first places count."""


def reciprocal_ranks(scores: NDArray[np.float64], candidates: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns (num_users, num_items) 1 / (60 + rank among the user's candidates); equal scores share a mean rank.

    An item that is no candidate has the place that it would take, half a rank before the next candidate, and moves
    nobody else.

    >>> reciprocal_ranks(np.array([[0.3, 0.9, 0.5]]), np.array([[True, True, False]])).round(6).tolist()
    [[0.016129, 0.016393, 0.01626]]

    Args:
        scores: (num_users, num_items) higher is better.
        candidates: (num_users, num_items) which items are ranked.
    """
    result = np.empty(scores.shape)
    for user, chosen in enumerate(candidates):
        best_first = np.sort(-scores[user, chosen])
        before, upto = (np.searchsorted(best_first, -scores[user], side) for side in ("left", "right"))
        result[user] = 1.0 / (RRF_K + (before + upto + 1) / 2)
    return result


def standard_scores(scores: NDArray[np.float64], candidates: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns (num_users, num_items) scores with mean 0 and standard deviation 1 over each user's candidates.

    All 0 for a user whose candidates all score alike.

    Args:
        scores: (num_users, num_items).
        candidates: (num_users, num_items) which items the mean and the deviation are of.
    """
    number = np.maximum(candidates.sum(axis=1, keepdims=True), 1)
    counted = np.where(candidates, scores, 0.0)
    mean = counted.sum(axis=1, keepdims=True) / number
    deviation = np.sqrt((np.where(candidates, counted - mean, 0.0) ** 2).sum(axis=1, keepdims=True) / number)
    # Rounding alone must not be blown up to differences.
    flat = deviation <= 1e-9 * np.abs(counted).max(axis=1, keepdims=True, initial=0.0)
    return np.divide(scores - mean, deviation, out=np.zeros_like(scores), where=~flat)


def require_fusion(name: str) -> None:
    """Refuses what is not in FUSIONS.

    Raises:
        ConfigError: there is no such fusion.
    """
    if name not in FUSIONS:
        raise ConfigError(unknown("fusion", name, FUSIONS))


def fused(fusion: str, blocks: Sequence[Scores], weights: NDArray[np.float64], seen: Histories) -> NDArray[np.float64]:
    """Returns (num_users, num_items) fused scores. Ranks and deviations are among what a user has not seen.

    Args:
        fusion: "rank" or "score".
        blocks: (num_users, num_items) scores of each run.
        weights: (num_runs,).
        seen: what each user has.

    Raises:
        ConfigError: there is no such fusion.
        FedrecError: a score is not finite, which ranks would hide.
    """
    require_fusion(fusion)
    rule = reciprocal_ranks if fusion == "rank" else standard_scores
    candidates = ~seen.matrix(blocks[0].shape[1])
    total = np.zeros(candidates.shape)
    for place, (weight, block) in enumerate(zip(weights, blocks, strict=True), start=1):
        scores = _as_float64(block)
        if not np.isfinite(scores).all():
            raise FedrecError(f"scores of run {place} of {len(blocks)} are not finite: its model has diverged")
        total += weight * rule(scores, candidates)
    return total


def _as_float64(scores: Scores) -> NDArray[np.float64]:
    array = scores.detach().cpu().numpy() if isinstance(scores, torch.Tensor) else scores
    return array.astype(np.float64)


def evaluate_ensemble(
    runs: Sequence[FinishedRun], fusion: str | None = None, weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """Returns what the ensemble of runs is worth on their own data and split, beside each run's own figures.

    Fusion and weights that are not given are chosen on validation, by the first run's `evaluate.metric`, among rank and
    score fusion with the weightings of `run_weights.choices`; test is read once, for what was chosen.

    Args:
        runs: two at least, of the same data; models may differ.
        fusion: "rank" or "score"; chosen when absent.
        weights: one a run; chosen when absent.

    Raises:
        FedrecError: the runs do not fit together, or the data is not what it was.
    """
    if len(runs) < 2:
        raise ConfigError(f"{len(runs)} run: an ensemble needs at least two")
    if fusion is not None:
        require_fusion(fusion)
    require_same_data(runs)
    metric = runs[0].config.evaluate.metric
    scores = [run.validation(metric) for run in runs]
    given = None if weights is None else normalised(weights, len(runs))
    trial = _Trial(runs, "validation")
    found: list[tuple[str, Choice]] = []
    for name in FUSIONS if fusion is None else (fusion,):
        judge = partial(trial.validation, name, metric)
        options = choices(scores, judge) if given is None else [Choice("given", given, judge(given))]
        found += [(name, option) for option in options]
    chosen_fusion, chosen = max(found, key=lambda pair: pair[1].validation)
    full, sampled = split_metrics(_Trial(runs, "test").measure(chosen_fusion, chosen.weights))
    leaky = runs[0].summary().get("warning")
    return {
        "metric": metric, "fusion": chosen_fusion, "weighting": chosen.name, "weights": chosen.weights.tolist(),
        "validation": chosen.validation, "test": full, "sampled": sampled,
        "candidates": [{"fusion": name, **option.to_json()} for name, option in found],
        "runs": [described(run, float(weight), metric) for run, weight in zip(runs, chosen.weights, strict=True)],
        "warnings": [*trial.warnings(), *([leaky] if leaky else [])],
    }  # fmt: skip


class _Trial:
    """Every run's scores of all users for one part, and what comes of fusing them.

    Args:
        runs: of the same data; the first one's settings of evaluation are used.
        part: what is predicted.
    """

    def __init__(self, runs: Sequence[FinishedRun], part: Part) -> None:
        self._runs = runs
        self._part: Part = part
        self._cohort = node_data.cohort(runs[0].config.data, None, 1)
        before = self._cohort.before(part)
        self._served = [run.serve(run.catalog(), before, f"fold-in-{part}") for run in runs]

    def warnings(self) -> list[str]:
        """Returns what private rows were missing, a line each."""
        return [
            f"{run.name}: {line}" for run, one in zip(self._runs, self._served, strict=True) for line in one.warnings()
        ]

    def validation(self, fusion: str, metric: str, weights: NDArray[np.float64]) -> float:
        """Returns one metric."""
        return float(self.measure(fusion, weights)[metric])

    def measure(self, fusion: str, weights: NDArray[np.float64]) -> dict[str, Any]:
        """Returns flat metrics; of the test part with intervals as "ci/<name>"."""
        known, config = self._cohort.known(self._part), self._runs[0].config

        used = np.flatnonzero(weights > 0)

        def score_block(users: NDArray[np.int64]) -> NDArray[np.float64]:
            return fused(fusion, [self._served[run].scores(users) for run in used], weights[used], known.select(users))

        bootstrap = config.evaluate.bootstrap
        sums = evaluate_cohort(
            score_block, self._cohort, self._part, config.evaluate.ks, config.data.seed,
            bootstrap if self._part == "test" else 0,
            candidates=node_data.candidates(config.data, None, 1, bootstrap),
        )  # fmt: skip
        metrics = finalise(sums, self._runs[0].popularity)
        intervals = metrics.pop("ci", {})
        return {**metrics, **{f"ci/{name}": interval for name, interval in intervals.items()}}


def described(run: FinishedRun, weight: float, metric: str) -> dict[str, Any]:
    """Returns a run as a line of a comparison: folder, model, seed, weight, and its own figures from summary.json.

    Args:
        run: a completed one.
        weight: in what it is part of.
        metric: the validation metric.
    """
    summary = run.summary()
    return {
        "run": run.name, "model": run.config.model.name, "seed": run.config.seed, "weight": weight,
        "best_round": summary["best_round"], "validation": run.validation(metric),
        "test": summary["test"], "sampled": summary["sampled"],
    }  # fmt: skip
