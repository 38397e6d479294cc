"""Learning-rate schedules and bounded gradients: formulas, refusals, and what they do to a run."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch.optim import lr_scheduler

from fedrec_app import cli
from fedrec_app.client import RecommenderClient
from fedrec_app.config import RunConfig, TrainConfig
from fedrec_app.errors import ConfigError
from fedrec_app.models.registry import model_class
from fedrec_app.node_settings import NodeSettings
from fedrec_app.recommend import recommend
from fedrec_app.records import ARRAYS, METRICS, Arrays, Ask, from_record
from fedrec_app.schedules import Schedule
from fedrec_app.simulate import simulate
from fedrec_app.training.plan import FitPlan
from tests.small import SMALL

STEP = '{"name": "step", "every": 3, "factor": 0.5}'
COSINE = '{"name": "cosine", "final_factor": 0.1}'
WARM = '{"name": "cosine", "warmup_rounds": 4, "final_factor": 0.2}'


def factors(text: str, num_rounds: int) -> list[float]:
    schedule = Schedule.parse(text, "train.schedule")
    return [schedule.factor(server_round, num_rounds) for server_round in range(1, num_rounds + 1)]


# Formulas ------------------------------------------------------------------------------------------------------------


def test_factors_by_hand() -> None:
    assert factors("constant", 3) == [1.0, 1.0, 1.0]
    assert factors('{"name": "constant", "warmup_rounds": 3}', 5) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors(STEP, 7) == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25]
    assert factors('{"name": "step", "every": 1, "factor": 0.5, "warmup-rounds": 1}', 4) == [0.5, 1.0, 0.5, 0.25]
    half = math.sqrt(0.5) / 2
    assert factors("cosine", 4) == pytest.approx([1.0, 0.5 + half, 0.5, 0.5 - half], abs=1e-15)
    assert factors('{"name": "cosine", "warmup_rounds": 1, "final_factor": 0.5}', 3) == [0.5, 1.0, 0.75]


@pytest.mark.parametrize(
    ("text", "by_torch"),
    [
        (STEP, lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.5)),
        ("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=13)),
        (COSINE, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=13, eta_min=0.1)),
        (
            WARM,
            lambda o: lr_scheduler.SequentialLR(
                o,
                [
                    lr_scheduler.LinearLR(o, start_factor=1 / 5, total_iters=4),
                    lr_scheduler.CosineAnnealingLR(o, T_max=13 - 4, eta_min=0.2),
                ],
                milestones=[4],
            ),
        ),
    ],
    ids=["step", "cosine", "cosine to a tenth", "cosine after a warm-up"],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
def test_factors_are_those_of_torch(text: str, by_torch: Any) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = by_torch(optimizer), []
    for _ in range(13):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert factors(text, 13) == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("text", ["constant", "cosine", STEP, WARM])
@pytest.mark.parametrize("num_rounds", [1, 2, 4, 5, 30])
def test_a_factor_is_above_0_and_at_most_1_and_stays_after_the_last_round(text: str, num_rounds: int) -> None:
    found = factors(text, num_rounds)
    assert all(0 < factor <= 1 for factor in found)
    schedule = Schedule.parse(text, "train.schedule")
    assert [schedule.factor(num_rounds + more, num_rounds) for more in (1, 2, 50)] == [found[-1]] * 3


def test_a_warm_up_longer_than_the_run_is_never_over() -> None:
    assert factors('{"name": "cosine", "warmup_rounds": 9}', 3) == [0.1, 0.2, 0.3]


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["train.schedule", "strategy.schedule"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cosin", "unknown {key} 'cosin': one of constant, cosine, step (did you mean 'cosine'?)"),
        ("", "unknown {key} '': one of constant, cosine, step"),
        ('{"name": "stepp"}', "unknown {key} 'stepp': one of constant, cosine, step (did you mean 'step'?)"),
        (
            '{"warmup_rounds": 5}',
            """{key} is '{{"warmup_rounds": 5}}': a "name" is expected, one of constant, cosine, step""",
        ),
        ('{"name": 3}', """{key} is '{{"name": 3}}': a "name" is expected, one of constant, cosine, step"""),
        (
            '{"name": "cosine", "warmup_round": 5}',
            "unknown option of {key} 'cosine' 'warmup_round': one of final_factor, warmup_rounds "
            "(did you mean 'warmup_rounds'?)",
        ),
        (
            '{"name": "constant", "every": 5}',
            "unknown option of {key} 'constant' 'every': one of warmup_rounds",
        ),
        ("step", "options of {key} 'step': every has no value: give one; factor has no value: give one"),
        (
            '{"name": "step", "every": 0, "factor": 2}',
            "options of {key} 'step': every is 0: must be greater than or equal to 1; "
            "factor is 2: must be less than or equal to 1",
        ),
        (
            '{"name": "cosine", "final_factor": -1, "warmup_rounds": 2.5}',
            "options of {key} 'cosine': warmup_rounds is 2.5: must be a valid integer; "
            "final_factor is -1: must be greater than or equal to 0",
        ),
        (
            '{"name": "cosine", "final_factor": NaN}',
            "options of {key} 'cosine': final_factor is nan: must be a finite number",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_before_anything_starts(key: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_flat({key: text})
    assert str(caught.value) == said.format(key=key)


def test_a_schedule_that_is_not_json_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.schedule is '\{\"name\": cosine\}': not JSON"):
        RunConfig.from_flat({"strategy.schedule": '{"name": cosine}'})


def test_a_bound_below_0_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^train\.max-grad-norm is -1\.0: must be greater than or equal to 0$"):
        RunConfig.from_flat({"train.max-grad-norm": -1.0})


def train_config(**changed: Any) -> TrainConfig:
    flat = {"model.name": "neumf", "train.learning-rate": 0.5, "train.private-learning-rate": 0.25, **changed}
    config = RunConfig.from_flat(flat)
    return config.resolve(model_class("neumf").recipe).train


def test_a_plan_takes_the_rates_of_its_round_and_serving_the_whole_ones() -> None:
    train = train_config(**{"train.schedule": STEP, "train.max-grad-norm": 0.7})
    for server_round, factor in ((1, 1.0), (4, 0.5), (7, 0.25), (99, 0.25)):
        plan = FitPlan.of(train, 3, server_round, 7)
        assert (plan.learning_rate, plan.private_learning_rate) == (0.5 * factor, 0.25 * factor)
        assert (plan.max_grad_norm, plan.seed, plan.server_round) == (0.7, 3, server_round)
        plan = FitPlan.to_serve(train, 3, server_round)
        assert (plan.learning_rate, plan.private_learning_rate) == (0.5, 0.25)


# Runs ----------------------------------------------------------------------------------------------------------------

TINY_STEPS = {
    "model.name": "mf", "model.options": '{"loss": "bce"}', "data.options": SMALL, "train.unit": "user",
    "train.local-epochs": 1, "train.batch-size": 0, "train.optimizer": "sgd", "train.num-negatives": 2,
    "train.learning-rate": 1e-5, "train.private-learning-rate": 1e-5, "train.private-epochs": 0,
    "strategy.name": "fedavg", "num-server-rounds": 9, "evaluate.every": 9, "evaluate.bootstrap": 0,
}  # fmt: skip
"""Steps so small that every round starts from nearly the same parameters."""


def sent(flat: dict[str, Any]) -> dict[int, list[tuple[Arrays, dict[str, Any]]]]:
    """Returns arrays and metrics of the answers to training by round, in the order of nodes."""
    found: dict[int, list[tuple[int, Arrays, dict[str, Any]]]] = {}

    def tap(message: Message) -> None:
        if message.metadata.reply_to_message_id and message.metadata.message_type == "train":
            said = dict(message.content.metric_records[METRICS])
            answer = (message.metadata.src_node_id, from_record(message.content.array_records[ARRAYS]), said)
            found.setdefault(int(said[Ask.ROUND]), []).append(answer)  # type: ignore[arg-type]

    simulate(flat, 2, taps=[tap])
    return {number: [a[1:] for a in sorted(answers, key=lambda a: a[0])] for number, answers in found.items()}


def length(arrays: Arrays) -> float:
    total = sum(float(np.square(a.astype(np.float64)).sum()) for n, a in arrays.items() if n.startswith("delta/"))
    return math.sqrt(total)


@pytest.mark.parametrize(("unit", "rate", "tolerance"), [("user", 1e-5, 1e-4), ("node", 3e-2, 1e-2)])
def test_the_updates_of_a_run_follow_the_schedule_round_by_round(
    tmp_path: Path, unit: str, rate: float, tolerance: float
) -> None:
    # A pooled node's delta is a difference of float32 parameters, which steps may not be too small for.
    flat = {**TINY_STEPS, "output-dir": str(tmp_path), "train.unit": unit, "train.learning-rate": rate}
    whole, scheduled = sent(flat), sent({**flat, "train.schedule": WARM})
    expected = factors(WARM, 9)
    assert min(expected) < 0.35
    for server_round in range(1, 10):
        for (one, _), (other, _) in zip(whole[server_round], scheduled[server_round], strict=True):
            assert length(other) / length(one) == pytest.approx(expected[server_round - 1], rel=tolerance)


def test_private_rows_follow_the_schedule_too(tmp_path: Path) -> None:
    rows = {}
    for text in ("constant", '{"name": "constant", "warmup_rounds": 3}'):
        flat = {**TINY_STEPS, "output-dir": str(tmp_path), "num-server-rounds": 1, "train.schedule": text}
        config = RunConfig.from_flat(flat).resolve(model_class("mf").recipe)
        client = RecommenderClient(config, NodeSettings(0, 1, tmp_path / f"{len(rows)}"))
        before = client._rows({}, 0)["user_embedding"].copy()
        client.fit(client.get_parameters({}), {Ask.ROUND: 1})
        rows[text] = client._rows({}, 1)["user_embedding"] - before
    whole, first = rows.values()
    assert np.abs(whole).max() > 0
    # The rows themselves are about 1e-1, so that a step of 1e-5 in float32 has an error of a thousandth.
    np.testing.assert_allclose(np.linalg.norm(first), np.linalg.norm(whole) / 4, rtol=5e-3)


def test_max_grad_norm_bounds_the_steps_of_a_run(tmp_path: Path) -> None:
    flat = {
        **TINY_STEPS, "output-dir": str(tmp_path), "num-server-rounds": 1, "train.learning-rate": 0.5,
        "train.private-learning-rate": 0.5,
    }  # fmt: skip
    free, bounded = sent(flat)[1], sent({**flat, "train.max-grad-norm": 0.001})[1]
    for (arrays, said), (held, _) in zip(free, bounded, strict=True):
        most = float(said["weight"]) * 0.5 * 0.001
        assert length(arrays) > most >= length(held) > 0


def test_the_rates_of_fold_in_do_not_follow_the_schedule(tmp_path: Path) -> None:
    found = []
    for changed in ({}, {"train.schedule": WARM}, {"train.private-learning-rate": 0.2 * 9.0}):
        flat = {
            **TINY_STEPS, "train.private-learning-rate": 9.0, "evaluate.fold-in-epochs": 5, **changed,
        }  # fmt: skip
        config = RunConfig.from_flat(flat).resolve(model_class("mf").recipe)
        client = RecommenderClient(config, NodeSettings(0, 1, tmp_path))
        found.append(client.judge(client.get_parameters({}), {Ask.ROUND: 1, Ask.PART: "validation"}).sums)
    whole, scheduled, slower = found
    np.testing.assert_array_equal(scheduled, whole)
    assert not np.array_equal(slower, whole)


def test_recommendations_do_not_follow_the_schedule(tmp_path: Path) -> None:
    flat = {**TINY_STEPS, "output-dir": str(tmp_path), "num-server-rounds": 2, "train.private-learning-rate": 0.5}
    folder = simulate(flat, 2).folder
    path, history = folder.path / "config.toml", ["i03", "i14", "i15"]
    text, whole = path.read_text(), recommend(folder, "", history, 5)
    assert text.count('train.schedule = "constant"') == text.count("train.private-learning-rate = 0.5") == 1
    path.write_text(text.replace('train.schedule = "constant"', f"train.schedule = {json.dumps(WARM)}"))
    assert recommend(folder, "", history, 5) == whole
    path.write_text(text.replace("train.private-learning-rate = 0.5", "train.private-learning-rate = 0.1"))
    assert recommend(folder, "", history, 5) != whole


def test_the_command_takes_a_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    level = logging.getLogger("flwr").level
    monkeypatch.chdir(tmp_path)
    settings = f"""train.schedule="cosine" train.max-grad-norm=0.5 num-server-rounds=2 data.options='{SMALL}'"""
    monkeypatch.setattr(sys, "argv", ["fedrec", "simulate", "--json", "-c", settings])
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main()
    logging.getLogger("flwr").setLevel(level)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "completed"
    (config,) = tmp_path.glob("outputs/*-*-*/*/config.toml")
    assert 'train.schedule = "cosine"\ntrain.max-grad-norm = 0.5\n' in config.read_text()
