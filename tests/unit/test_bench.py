"""The benchmarks run, print what programs read, and compare ways that do the same work."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer

from fedrec_app.training import sampling
from tests.conftest import REPO

Bench = Callable[..., dict[str, Any]]
SCRIPT = REPO / "scripts" / "bench.py"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of the benchmarks."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import bench
    from benchmarks import baseline_train, cohorts, scale, train

    return SimpleNamespace(bench=bench, baseline=baseline_train, cohorts=cohorts, scale=scale, train=train)


@pytest.fixture
def bench(
    parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Bench]:
    """A command in this process: arguments -> the object that it prints last."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    level, threads = logging.getLogger("flwr").level, torch.get_num_threads()

    def call(*arguments: str) -> dict[str, Any]:
        parts.bench.commands([*arguments, "--quick", "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    yield call
    logging.getLogger("flwr").setLevel(level)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("command", "ratios", "told_beside"),
    [
        pytest.param("train", {"mf", "neumf", "vmap", "threads"}, set(), marks=pytest.mark.slow),
        pytest.param("aggregate", {"aggregate"}, {"aggregate-fifth-of-rows"}, marks=pytest.mark.slow),
        (
            "evaluate",
            {"evaluate"},
            {"evaluate-scores-given", "evaluate-against-argsort", "evaluate-everything"},
        ),
    ],
)
def test_a_command_prints_its_ratios_and_what_they_are_made_of(
    bench: Bench, command: str, ratios: set[str], told_beside: set[str]
) -> None:
    found = bench(command)
    assert set(found["ratios"]) == ratios
    assert set(found["results"]) == ratios | told_beside
    for key, result in found["results"].items():
        assert_positive(result["ratio"])
        assert result["repeats"] == 1
        seconds = result["ratio_of"].replace(" ", "_")
        for side in ("baseline", "ours"):
            for kind in ("cpu_seconds", "wall_seconds"):
                assert_positive(result[side][kind]["median"])
            assert result[side]["peak_mb"] is None or result[side]["peak_mb"] >= 0
        medians = [result[side][seconds]["median"] for side in ("baseline", "ours")]
        assert result["ratio"] == pytest.approx(medians[0] / medians[1])
        if key in ratios:
            assert result["ratio"] == found["ratios"][key]
            assert len(result["target"]) == 2
    assert found["meaningful"] is False
    assert {"cpu", "cores", "threads", "torch", "numpy", "numba"} <= set(found["environment"])


def test_privacy_tells_what_clipping_costs_and_that_it_clips(bench: Bench) -> None:
    found = bench("privacy")
    assert set(found["ratios"]) == {"clip-mf", "clip-mf-bce", "clip-transformer"}
    for key, result in found["results"].items():
        assert_positive(result["ratio"])
        assert result["ratio"] == found["ratios"][key]
        assert result["limit"] == (2.0 if key == "clip-transformer" else 1.3)
        assert result["checks"]["difference where nobody reaches the bound"] < 1e-5
        assert 0 < result["checks"]["share that was clipped"] <= 1


def test_scale_measures_each_size_and_computes_the_rest(
    bench: Bench, parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = parts.scale._in_own_process

    def one_alone(num_users: int, *more: Any) -> dict[str, float]:
        """The first size in a process of its own, as all are, and the others here, without its start."""
        return (alone if num_users == 50 else parts.scale.one_size)(num_users, *more)

    monkeypatch.setattr(parts.scale, "_in_own_process", one_alone)
    found = bench("scale")
    assert found["ratios"] == {}
    scale = found["scale"]
    assert [size["num_users"] for size in scale["by_users"]] == [50, 200]
    assert [size["num_items"] for size in scale["by_items"]] == [200, 400]
    for size in scale["by_users"] + scale["by_items"]:
        assert_positive(size["users_per_cpu_second"])
        assert size["peak_mb"] > size["data_mb"] > 0
    assert scale["rate_largest_over_smallest"] >= 1
    assert_positive(scale["memory_without_data_over_first"])
    # 400 rows of 32 float32, which a user sends whole where his 500 are not fewer; sums are float64.
    assert scale["computed"][1]["table_down_mb"] == pytest.approx(400 * 128 / 1e6)
    assert scale["computed"][1]["update_of_a_user_up_mb"] == pytest.approx(400 * 128 / 1e6)
    assert scale["computed"][1]["sums_of_a_node_mb"] == pytest.approx(400 * 256 / 1e6)
    assert scale["computed"][1]["sums_of_the_server_mb"] == pytest.approx(400 * 1024 / 1e6)


def test_overhead_tells_milliseconds_a_round_by_kind(bench: Bench) -> None:
    found = bench("overhead")
    assert found["ratios"] == {}
    lines = found["overhead"]
    assert [(line["num_nodes"], line["model"]) for line in lines] == [(2, "mf"), (2, "mf bce"), (2, "neumf")]
    for line in lines:
        spent = line["ms_a_round"]
        assert set(spent) == {"overhead", "Flower's messages", "training", "evaluation", "private state", "all"}
        assert all(math.isfinite(ms) and ms >= 0 for ms in spent.values())
        assert_positive(spent["training"])


@pytest.mark.parametrize(("name", "engine"), [("mf", None), ("neumf", None), ("neumf", "several-steps")])
def test_from_the_same_samples_the_baseline_of_training_gives_what_fedrec_gives(
    parts: SimpleNamespace, name: str, engine: str | None
) -> None:
    lengths = np.array([3, 40, 16, 17, 1])
    task = getattr(parts.cohorts, f"{name}_task")(parts.cohorts.zipf_cohort(lengths, 90), embedding_dim=8)
    plan = replace(parts.train.PLAN, batch_size=16, learning_rate=0.5, private_learning_rate=0.3)
    train = task.cohort.train
    base = sampling.sampling_base(plan.seed, plan.server_round, "fit")
    samples, _ = sampling.draw_epoch(
        base, 0, task.cohort.keys, train, task.cohort.never_negative, 90, plan.num_negatives
    )

    naive_rows, rows = task.fresh_rows(), task.fresh_rows()
    naive, naive_loss = parts.baseline.one_model_a_user(
        task, naive_rows, plan, lambda user: samples[train.indptr[user] : train.indptr[user + 1]]
    )
    sums = parts.train.fit_users(task.model, task.cohort, task.shared, rows, plan, engine)
    assert sums.loss == pytest.approx(naive_loss, rel=1e-5)
    assert set(sums.delta) == set(naive)
    for key, delta in naive.items():
        np.testing.assert_allclose(sums.delta[key], delta, rtol=1e-3, atol=1e-4, err_msg=key)
    for key, array in naive_rows.items():
        np.testing.assert_allclose(rows[key], array, rtol=1e-4, atol=1e-6, err_msg=key)
        assert not np.array_equal(array, task.rows[key])


def test_ways_that_do_not_do_the_same_work_are_not_compared(parts: SimpleNamespace) -> None:
    one = {"table": np.ones((3, 2))}
    assert parts.train._alike((one, 2.0), (one, 2.0)) == {"loss": 1.0, "table": 1.0}
    with pytest.raises(RuntimeError, match="table"):
        parts.train._alike((one, 2.0), ({"table": np.ones((3, 2)) / 2}, 2.0))


def test_synthetic_users_have_as_many_items_as_asked_and_none_twice(parts: SimpleNamespace) -> None:
    lengths = np.array([5, 0, 30, 12])
    train = parts.cohorts.zipf_cohort(lengths, 40).train
    assert train.lengths.tolist() == lengths.tolist()
    assert all(len(set(train[user].tolist())) == lengths[user] for user in range(4))
    assert train.items.min() >= 0
    assert train.items.max() < 40


def test_an_unknown_key_is_refused(bench: Bench) -> None:
    with pytest.raises(typer.BadParameter, match="mf, neumf, vmap, threads"):
        bench("train", "--only", "mv")


def assert_positive(number: float) -> None:
    assert math.isfinite(number)
    assert number > 0
