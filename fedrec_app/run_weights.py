"""Weights of several finished runs: given, by validation score, or chosen on validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedrec_app.errors import ConfigError

Judge = Callable[[NDArray[np.float64]], float]
"""From weights (num_runs,) that add up to 1 to the validation score of what they make."""


@dataclass(frozen=True)
class Choice:
    """A way to weight the runs, and how it did.

    Attributes:
        name: "by score", "uniform", "greedy" or "given".
        weights: (num_runs,), add up to 1.
        validation: the score.
    """

    name: str
    weights: NDArray[np.float64]
    validation: float

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {"weighting": self.name, "weights": self.weights.tolist(), "validation": self.validation}


def normalised(weights: ArrayLike, num_runs: int) -> NDArray[np.float64]:
    """Returns (num_runs,) weights that add up to 1.

    Raises:
        ConfigError: there is not one weight a run, one is negative or no number, or all are 0.
    """
    array = np.asarray(weights, dtype=np.float64)
    shown = ",".join(f"{weight:g}" for weight in array)
    if len(array) != num_runs:
        raise ConfigError(f"weights are {shown}: there are {num_runs} runs, one weight for each is expected")
    if not np.isfinite(array).all() or (array < 0).any() or array.sum() <= 0:
        raise ConfigError(f"weights are {shown}: numbers of at least 0, not all 0, are expected")
    return array / array.sum()


def by_score(scores: Sequence[float], temperature: float | None = None) -> NDArray[np.float64]:
    """Returns (num_runs,) weights proportional to validation scores, or softmax(score / temperature).

    Proportional weights of runs that are about equally good are about equal; a low temperature, of the order of the
    differences between scores, prefers the best run. All scores 0 gives equal weights.

    Args:
        scores: of each run, at least 0, higher is better.
        temperature: in units of the score; proportional weights when absent.

    Raises:
        ConfigError: the temperature is not above 0.
    """
    array = np.asarray(scores, dtype=np.float64)
    if temperature is None:
        return normalised(array if array.any() else np.ones(len(array)), len(array))
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}: a number above 0 is expected")
    return normalised(np.exp((array - array.max()) / temperature), len(array))


def choices(scores: Sequence[float], judge: Judge, temperature: float | None = None) -> list[Choice]:
    """Returns three ways to weight the runs, judged on validation: by score, all alike, and greedily.

    Greedily: the best run first; each next one, in the order of scores, is let in if equal weights with it do no worse
    ("greedy soup", recipe 1 of Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves
    accuracy without increasing inference time", ICML 2022, https://arxiv.org/abs/2203.05482). It may be the best run
    alone.

    Args:
        scores: validation score of each run, by which they are ordered and weighted.
        judge: asked once for each distinct weighting.
        temperature: see `by_score`.
    """
    known: dict[tuple[float, ...], float] = {}

    def judged(name: str, weights: NDArray[np.float64]) -> Choice:
        key = tuple(weights.tolist())
        if key not in known:
            known[key] = judge(weights)
        return Choice(name, weights, known[key])

    order = np.argsort(-np.asarray(scores), kind="stable")
    members = np.zeros(len(scores), dtype=bool)
    members[order[0]] = True
    greedy = judged("greedy", members / members.sum())
    for run in order[1:]:
        members[run] = True
        wider = judged("greedy", members / members.sum())
        if wider.validation >= greedy.validation:
            greedy = wider
        else:
            members[run] = False
    uniform = judged("uniform", np.full(len(scores), 1 / len(scores)))
    return [judged("by score", by_score(scores, temperature)), uniform, greedy]
