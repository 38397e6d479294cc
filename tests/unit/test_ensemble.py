"""Several runs as one: fused ranks and scores worked out by hand, and an evaluation that agrees with each run's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedrec_app import ensemble
from fedrec_app.artifacts import RunFolder
from fedrec_app.data.histories import Histories
from fedrec_app.ensemble import evaluate_ensemble, fused, reciprocal_ranks, standard_scores
from fedrec_app.errors import FedrecError
from fedrec_app.finished import FinishedRun
from fedrec_app.run_weights import by_score, choices, normalised
from tests.small import run_folder

NOBODY = Histories.from_lists([[]])


def simulated(output_dir: Path, num_nodes: int = 3, **settings: Any) -> FinishedRun:
    own = {"num_server_rounds": 3, "evaluate__bootstrap": 20}
    return FinishedRun.read(run_folder(output_dir, num_nodes, **{**own, **settings}))


@pytest.fixture(scope="module")
def mf(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return simulated(tmp_path_factory.mktemp("mf"))


@pytest.fixture(scope="module")
def neumf(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return simulated(
        tmp_path_factory.mktemp("neumf"), model__name="neumf", model__embedding_dim=4, evaluate__fold_in_epochs=2,
        train__private_learning_rate=20.0,
    )  # fmt: skip


# Fused numbers -------------------------------------------------------------------------------------------------------


def test_rank_fusion_is_the_weighted_sum_of_reciprocal_ranks() -> None:
    one, other = np.array([[0.9, 0.1, 0.5]]), np.array([[-7.0, 30.0, 2.0]])
    expected = [0.6 / 61 + 0.4 / 63, 0.6 / 63 + 0.4 / 61, 0.6 / 62 + 0.4 / 62]
    found = fused("rank", [one, torch.from_numpy(other)], np.array([0.6, 0.4]), NOBODY)
    np.testing.assert_allclose(found, [expected], rtol=1e-15)


def test_equal_scores_share_a_mean_rank() -> None:
    found = reciprocal_ranks(np.array([[1.0, 2.0, 1.0, 1.0]]), np.ones((1, 4), dtype=bool))
    np.testing.assert_allclose(found, [[1 / 63, 1 / 61, 1 / 63, 1 / 63]], rtol=1e-15)


def test_what_a_user_has_seen_moves_no_rank_and_no_deviation() -> None:
    scores = np.array([[0.3, 9.0, 0.9, 0.5], [0.3, 9.0, 0.9, 0.5]])
    seen = Histories.from_lists([[1, 3], []])
    ranked = fused("rank", [scores], np.ones(1), seen)
    np.testing.assert_allclose(ranked[0, [0, 2]], [1 / 62, 1 / 61])
    np.testing.assert_allclose(ranked[1], [1 / 64, 1 / 61, 1 / 62, 1 / 63])
    standard = fused("score", [scores], np.ones(1), seen)
    np.testing.assert_allclose(standard[0, [0, 2]], [-1.0, 1.0], rtol=1e-12)


def test_a_seen_item_has_the_place_that_it_would_take() -> None:
    """An item that a user has and that is held out as well stays a candidate of the evaluation."""
    scores, seen = np.array([[0.3, 0.9, 0.5]]), Histories.from_lists([[2]])
    np.testing.assert_allclose(fused("rank", [scores], np.ones(1), seen), [[1 / 62, 1 / 61, 1 / 61.5]])
    # mean .6 and deviation .3 of the two others
    np.testing.assert_allclose(fused("score", [scores], np.ones(1), seen), [[-1.0, 1.0, -1 / 3]], rtol=1e-12)


def test_score_fusion_adds_scores_in_units_of_their_deviation() -> None:
    one, other = np.array([[1.0, 2.0, 3.0]]), np.array([[300.0, 100.0, 200.0]])
    z = np.sqrt(1.5)
    expected = [[0.75 * -z + 0.25 * z, 0.25 * -z, 0.75 * z]]
    np.testing.assert_allclose(fused("score", [one, other], np.array([0.75, 0.25]), NOBODY), expected, rtol=1e-12)


def test_a_model_that_scores_all_items_alike_has_no_say() -> None:
    alike, everything = np.array([[0.1, 0.1, 0.1]]), np.ones((1, 3), dtype=bool)
    assert (standard_scores(alike + 1e-17, everything) == 0).all()
    other = np.array([[1.0, 2.0, 3.0]])
    found = fused("score", [alike, other], np.array([0.5, 0.5]), NOBODY)
    np.testing.assert_allclose(found, 0.5 * standard_scores(other, everything))


def test_scores_that_are_not_finite_are_refused_and_not_ranked() -> None:
    blocks = [np.array([[1.0, 2.0]]), np.array([[np.nan, 2.0]])]
    for fusion in ("rank", "score"):
        with pytest.raises(FedrecError, match="scores of run 2 of 2 are not finite"):
            fused(fusion, blocks, np.array([0.5, 0.5]), NOBODY)


def test_a_fusion_that_is_not_there_is_named() -> None:
    with pytest.raises(FedrecError, match="unknown fusion 'ranks': one of rank, score \\(did you mean 'rank'"):
        fused("ranks", [np.ones((1, 2))], np.ones(1), NOBODY)


# Weights -------------------------------------------------------------------------------------------------------------


def test_weights_are_in_proportion_to_scores_or_a_softmax_of_them() -> None:
    np.testing.assert_allclose(by_score([0.1, 0.3]), [0.25, 0.75])
    np.testing.assert_allclose(by_score([0.0, 0.0]), [0.5, 0.5])
    np.testing.assert_allclose(by_score([0.1, 0.1 + 0.02 * np.log(3)], 0.02), [0.25, 0.75])
    np.testing.assert_allclose(by_score([0.1, 0.3], 1e-9), [0.0, 1.0])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.5], "weights are 0.5: there are 2 runs, one weight for each is expected"),
        ([1, -1], "weights are 1,-1: numbers of at least 0, not all 0, are expected"),
        ([0, 0], "weights are 0,0: numbers of at least 0, not all 0, are expected"),
        ([1, float("nan")], "weights are 1,nan: numbers"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights: list[float], expected: str) -> None:
    with pytest.raises(FedrecError) as caught:
        normalised(weights, 2)
    assert str(caught.value).startswith(expected)


def test_a_temperature_is_above_0() -> None:
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(FedrecError, match="a number above 0 is expected"):
            by_score([0.1, 0.2], temperature)


def test_the_greedy_weighting_lets_in_what_does_no_harm_in_the_order_of_scores() -> None:
    asked: list[tuple[float, ...]] = []

    def judge(weights: np.ndarray) -> float:
        asked.append(tuple(weights))
        members = tuple(np.flatnonzero(weights))
        return {(1,): 0.5, (0, 1): 0.4, (1, 2): 0.5, (0, 1, 2): 0.3}[members]

    by, uniform, greedy = choices([0.2, 0.5, 0.3], judge)
    np.testing.assert_allclose(greedy.weights, [0, 0.5, 0.5])
    assert greedy.validation == 0.5
    assert (by.validation, uniform.validation) == (0.3, 0.3)
    np.testing.assert_allclose(by.weights, [0.2, 0.5, 0.3])
    assert asked[:3] == [(0, 1, 0), (0, 0.5, 0.5), (1 / 3, 1 / 3, 1 / 3)]
    assert len(asked) == len(set(asked)), "no weighting is judged twice"


# Evaluation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["rank", "score"])
@pytest.mark.parametrize("alone", [0, 1])
def test_an_ensemble_of_one_has_the_figures_of_that_run(
    mf: FinishedRun, neumf: FinishedRun, fusion: str, alone: int
) -> None:
    """The private rows of all three nodes are found, brought up to date and judged as the nodes themselves do."""
    weights = [1.0 - alone, float(alone)]
    found = evaluate_ensemble([mf, neumf], fusion, weights)
    summary = (mf, neumf)[alone].summary()
    assert found["warnings"] == []
    assert found["validation"] == pytest.approx(summary["validation"]["ndcg@10"], abs=1e-12)
    for part in ("test", "sampled"):
        for name in ("hr@10", "ndcg@10"):
            assert found[part][name] == pytest.approx(summary[part][name], abs=1e-12)
            assert found[part]["ci"][name] == pytest.approx(summary[part]["ci"][name], abs=1e-12)
    assert found["test"]["popularity@10"] == pytest.approx(summary["test"]["popularity@10"], abs=1e-12)
    assert [run["weight"] for run in found["runs"]] == weights


def test_fusion_and_weights_are_chosen_on_validation_and_test_is_read_once(
    mf: FinishedRun, neumf: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []
    evaluate = ensemble.evaluate_cohort

    def spy(score_block: Any, cohort: Any, part: Any, *others: Any, **named: Any) -> Any:
        parts.append(part)
        return evaluate(score_block, cohort, part, *others, **named)

    monkeypatch.setattr(ensemble, "evaluate_cohort", spy)
    found = evaluate_ensemble([mf, neumf])
    assert parts.count("test") == 1
    assert parts[-1] == "test"
    tried = [(each["fusion"], each["weighting"]) for each in found["candidates"]]
    assert tried == [(f, w) for f in ("rank", "score") for w in ("by score", "uniform", "greedy")]
    assert found["validation"] == max(each["validation"] for each in found["candidates"])
    chosen = next(each for each in found["candidates"] if each["validation"] == found["validation"])
    assert (found["fusion"], found["weighting"], found["weights"]) == (
        chosen["fusion"], chosen["weighting"], chosen["weights"],
    )  # fmt: skip
    again = evaluate_ensemble([mf, neumf], found["fusion"], found["weights"])
    assert again["test"] == found["test"]


def test_rows_that_are_not_here_are_folded_in_anew_and_it_says_so(
    mf: FinishedRun, neumf: FinishedRun, tmp_path: Path
) -> None:
    copy = tmp_path / "date" / "time"
    shutil.copytree(neumf.folder.path, copy)
    found = evaluate_ensemble([mf, FinishedRun.read(RunFolder(copy))], "rank", [0.5, 0.5])
    assert found["warnings"] == [
        f"{copy}: the rows of 40 users are folded in anew: this machine has no private state of the run"
    ]


def test_runs_that_do_not_fit_together_are_refused(mf: FinishedRun, tmp_path: Path) -> None:
    with pytest.raises(FedrecError, match="1 run: an ensemble needs at least two"):
        evaluate_ensemble([mf])
    with pytest.raises(FedrecError, match="unknown fusion 'sum'"):
        evaluate_ensemble([mf, mf], "sum")
    with pytest.raises(FedrecError, match="weights are 1: there are 2 runs"):
        evaluate_ensemble([mf, mf], "rank", [1])
    other = simulated(tmp_path, data__protocol="temporal", data__min_interactions=6, num_server_rounds=1)
    expected = (
        r"differ in data.protocol \('leave-one-out' and 'temporal'\), data.min-interactions \(5 and 6\): one run's"
    )
    with pytest.raises(FedrecError, match=expected):
        evaluate_ensemble([mf, other])


def test_a_run_that_failed_is_no_member(mf: FinishedRun, tmp_path: Path) -> None:
    copy = tmp_path / "date" / "time"
    shutil.copytree(mf.folder.path, copy)
    (copy / "summary.json").write_text(json.dumps({"status": "failed"}))
    with pytest.raises(FedrecError, match="is 'failed': a completed one is needed"):
        evaluate_ensemble([mf, FinishedRun.read(RunFolder(copy))])
