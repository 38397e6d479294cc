"""A whole run chooses its round on validation, stops early, and tests that round once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fedrec_app.artifacts import RunFolder
from fedrec_app.records import ARRAYS, CONFIG, Arrays, Ask, from_record
from fedrec_app.simulate import simulate
from tests.small import SMALL

NUM_NODES, NUM_ROUNDS, METRIC = 2, 12, "ndcg@10"
# Rates that are much too high: validation soon gets worse.
WILD = {
    "model.name": "neumf", "model.embedding-dim": 4, "model.options": '{"layers": [4]}', "data.options": SMALL,
    "train.learning-rate": 4.0, "train.private-learning-rate": 4.0, "evaluate.bootstrap": 0,
    "evaluate.metric": METRIC, "num-server-rounds": NUM_ROUNDS,
}  # fmt: skip


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: what it wrote.
        asked: config and arrays of every message that asked for an evaluation.
    """

    folder: RunFolder
    asked: list[tuple[dict[str, Any], Arrays]]

    def validation(self) -> dict[int, float]:
        """Returns the metric by round, of rounds that were validated."""
        lines = self.folder.read_metrics()
        return {line["round"]: line["validation"][METRIC] for line in lines if line["validation"]}

    def part(self, name: str) -> list[tuple[dict[str, Any], Arrays]]:
        return [(config, arrays) for config, arrays in self.asked if config[Ask.PART] == name]


def run(output_dir: Path, **changed: Any) -> Run:
    asked: list[tuple[dict[str, Any], Arrays]] = []

    def tap(message: Message) -> None:
        if not message.metadata.reply_to_message_id and message.metadata.message_type == "evaluate":
            config = dict(message.content.config_records[CONFIG])
            asked.append((config, from_record(message.content.array_records[ARRAYS])))

    flat = {**WILD, "output-dir": str(output_dir), **changed}
    return Run(simulate(flat, NUM_NODES, taps=[tap]).folder, asked)


def first_best(validation: dict[int, float]) -> int:
    return max(validation, key=lambda number: (validation[number], -number))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("stopped"), **{"evaluate.early-stopping-rounds": 3})


def test_the_first_round_with_the_best_validation_is_chosen(whole: Run) -> None:
    validation, summary = whole.validation(), whole.folder.read_summary()
    assert list(validation) == list(range(1, NUM_ROUNDS + 1))
    assert summary["best_round"] == first_best(validation) < NUM_ROUNDS
    assert (summary["rounds"], summary["stopped_early"]) == (NUM_ROUNDS, False)
    assert summary["validation"]["ndcg@10"] == pytest.approx(max(validation.values()), abs=1e-12)


@pytest.mark.parametrize("which", ["whole", "stopped"])
def test_test_is_read_once_with_the_arrays_and_the_private_state_of_the_best_round(
    which: str, request: pytest.FixtureRequest
) -> None:
    found: Run = request.getfixturevalue(which)
    best, tested = found.folder.read_summary()["best_round"], found.part("test")
    assert len(tested) == NUM_NODES
    assert found.asked[-NUM_NODES:] == tested
    validated = {config[Ask.ROUND]: arrays for config, arrays in found.part("validation")}
    shared, made, _ = found.folder.read_model()
    assert made.round == best
    for config, arrays in tested:
        assert (config[Ask.ROUND], config[Ask.PRIVATE_ROUND]) == (best, best)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, validated[best][name], err_msg=name)
            np.testing.assert_array_equal(array, shared[name], err_msg=name)
    last = validated[max(validated)]
    assert any(not np.array_equal(last[name], array) for name, array in tested[0][1].items())


def test_a_run_stops_when_its_best_round_is_as_long_ago_as_the_setting_says(whole: Run, stopped: Run) -> None:
    validation, summary = whole.validation(), stopped.folder.read_summary()
    # The rounds after the stop would have been better: stopping is seen in the choice too.
    assert first_best({number: validation[number] for number in (1, 2, 3, 4)}) == 1 != first_best(validation)
    assert (summary["best_round"], summary["rounds"], summary["stopped_early"]) == (1, 4, True)
    assert stopped.validation() == pytest.approx({number: validation[number] for number in (1, 2, 3, 4)}, abs=1e-12)


def test_a_round_that_is_not_validated_is_not_chosen(whole: Run, tmp_path: Path) -> None:
    found = run(tmp_path, **{"evaluate.every": 5})
    validation, every = found.validation(), whole.validation()
    assert validation == pytest.approx({number: every[number] for number in (5, 10, 12)}, abs=1e-12)
    assert found.folder.read_summary()["best_round"] == first_best(validation) != first_best(every)


def test_another_metric_chooses_by_its_own_values(tmp_path: Path) -> None:
    found = run(tmp_path, **{"evaluate.metric": "hr@5"})
    values = {line["round"]: line["validation"]["hr@5"] for line in found.folder.read_metrics()}
    assert found.folder.read_summary()["best_round"] == first_best(values)
