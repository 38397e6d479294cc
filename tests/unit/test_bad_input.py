"""Wrong settings and odd data, through a whole run: a clear error that names the thing, or the right answer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from fedrec_app.errors import FedrecError
from fedrec_app.simulate import simulate
from tests.small import SMALL


def run(output_dir: Path, num_nodes: int = 2, **settings: Any) -> dict[str, Any]:
    """Returns the summary of a run; settings with `__` for `.` and `_` for `-`."""
    flat: dict[str, Any] = {"num-server-rounds": 1, "data.options": SMALL, "evaluate.bootstrap": 20}
    flat.update({key.replace("__", ".").replace("_", "-"): value for key, value in settings.items()})
    flat["output-dir"] = str(output_dir)
    return simulate(flat, num_nodes).summary


def table(path: Path, text: str) -> dict[str, Any]:
    """Settings of a run on a CSV file with this text."""
    path.write_text(text)
    return {"data__name": "csv", "data__path": str(path), "data__options": "{}"}


def rows(num_users: int, num_items: int, each: int, header: str = "user_id,item_id,timestamp") -> str:
    lines = [f"u{u},i{(u * 2 + i) % num_items},{u * 100 + i}" for u in range(num_users) for i in range(each)]
    return "\n".join([header, *lines]) + "\n"


def refused(output_dir: Path, num_nodes: int = 2, **settings: Any) -> str:
    with pytest.raises(FedrecError) as caught:
        run(output_dir, num_nodes, **settings)
    return str(caught.value)


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"data__name": "ml100k"}, ["unknown dataset 'ml100k': one of ", "did you mean 'ml-100k'?"]),
        ({"data__name": "nowhere.module:Shop"}, ["dataset 'nowhere.module:Shop' cannot be loaded"]),
        ({"data__options": "{num_users: 3}"}, ["options of dataset 'synthetic' are not JSON"]),
        ({"data__options": '{"num_usrs": 3}'}, ["unknown option of dataset 'synthetic' 'num_usrs'", "'num_users'?"]),
        ({"data__options": '{"num_users": 0}'}, ["option of dataset 'synthetic' 'num_users'", "(found 0)"]),
        ({"data__path": "/tmp/x.csv"}, ["dataset 'synthetic' is generated", "'/tmp/x.csv'"]),
        ({"data__columns": "user_id=u"}, ["dataset 'synthetic' has a fixed layout", "'user_id=u'"]),
        ({"data__partition": "by:regoin"}, ["regoin", "region"]),
        ({"data__partition": "usrs"}, ["unknown partition 'usrs'", "'users'?"]),
        ({"data__partition": "dirichlet:0"}, ["alpha must be a positive number"]),
        ({"data__min_interactions": 1000}, ["no user has 1000 interactions: the most is "]),
        (
            {"model__name": "nuemf"},
            ["unknown model 'nuemf': one of ", "mf, neumf, ", "(did you mean 'neumf'?)"],
        ),
        (
            {"model__name": "json:JSONDecoder"},
            ["is the class 'json:JSONDecoder', which does not derive from"],
        ),
        ({"model__options": '{"los": "bce"}'}, ["unknown option of model 'mf' 'los'", "(did you mean 'loss'?)"]),
        ({"model__options": '{"loss": "mse"}'}, ["options of model 'mf': unknown loss 'mse': one of all-items, bce"]),
        ({"model__options": "[]"}, ["model.options is '[]': a JSON object such as"]),
        ({"strategy__name": "fedadm"}, ["unknown strategy 'fedadm': one of ", "(did you mean 'fedadam'?)"]),
        (
            {"strategy__name": "fedrec_app.models.mf:MatrixFactorization"},
            ["does not derive from fedrec_app.api.RecS"],
        ),
        ({"strategy__options": '{"learning_rat": 1}'}, ["unknown option of strategy 'fedadam' 'learning_rat'"]),
        (
            {"strategy__options": '{"beta_1": 1.0}'},
            ["options of strategy 'fedadam': beta_1 is 1.0: must be less than 1"],
        ),
        ({"num_server_rounds": 0}, ["num-server-rounds is 0: must be greater than or equal to 1"]),
        ({"privacy__min_cohort": 0}, ["privacy.min-cohort is 0: must be greater than or equal to 1"]),
        ({"evaluate__ks": "5,20"}, ["unknown evaluate.metric 'ndcg@10'"]),
        ({"train__lr": 0.1}, ["unknown setting 'train.lr'"]),
    ],
    ids=lambda value: next(iter(value)) + "=" + str(next(iter(value.values()))) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_named(tmp_path: Path, settings: dict[str, Any], expected: list[str]) -> None:
    text = refused(tmp_path, **settings)
    assert "\n" not in text
    for part in expected:
        assert part in text


@pytest.mark.parametrize("num_nodes", [0, -1])
def test_no_nodes_are_refused(tmp_path: Path, num_nodes: int) -> None:
    assert refused(tmp_path, num_nodes) == f"num-nodes is {num_nodes}: at least 1 is expected"


def test_more_nodes_asked_for_than_there_are_is_an_error_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    text = refused(tmp_path, 2, strategy__min_nodes=3)
    assert text == "strategy.min-nodes is 3: there are 2 nodes (num-nodes)"
    assert time.monotonic() - began < 5


def test_a_run_that_is_refused_by_its_data_says_so_in_its_folder(tmp_path: Path) -> None:
    text = refused(tmp_path, data__name="csv", data__path="/nowhere/shop.csv", data__options="{}", seed=4)
    (summary,) = tmp_path.glob("*/*/summary.json")
    assert json.loads(summary.read_text()) == {"status": "failed", "error": text, "seed": 4}


# Data ----------------------------------------------------------------------------------------------------------------


def test_a_data_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "/nowhere/shop.csv" in refused(
        tmp_path, data__name="csv", data__path="/nowhere/shop.csv", data__options="{}"
    )
    assert "ml-100k" in refused(tmp_path, data__name="ml-100k", data__path=str(tmp_path), data__options="{}")
    assert "ml-100k" in refused(tmp_path, data__name="ml-100k", data__options="{}")


def test_a_wrong_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    shop = table(tmp_path / "shop.csv", rows(6, 9, 6, "user,film,at"))
    text = refused(tmp_path, **shop, data__columns="user_id=user,item_id=flim")
    assert "shop.csv has no column 'flim' for item_id: it has user, film, at (did you mean 'film'?)" in text
    text = refused(tmp_path, **shop, data__columns="user_id=user")
    assert "shop.csv has no column 'item_id': it has user, film, at" in text
    text = refused(tmp_path, **shop, data__columns="usr_id=user")
    assert "unknown column 'usr_id'" in text
    found = run(tmp_path, **shop, data__columns="user_id=user,item_id=film,timestamp=at")
    assert found["test"]["num_users"] == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "shop.csv"),
        ("user_id,item_id\n", "shop.csv has a header but no rows"),
        (
            "user_id,item_id\nu1,\n,i1\n",
            "no usable interaction in 2 rows: 1 x item_id is missing; 1 x user_id is missing",
        ),
    ],
)
def test_a_file_without_interactions_is_an_error(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refused(tmp_path, **table(tmp_path / "shop.csv", text))


def test_one_user_is_trained_and_judged(tmp_path: Path) -> None:
    found = run(tmp_path, **table(tmp_path / "shop.csv", rows(1, 9, 6)))
    assert found["status"] == "completed"
    assert found["test"]["num_users"] == 1
    assert found["test"]["hr@20"] == 1.0
    assert "ci" not in found["test"]


def test_one_item_leaves_nobody_to_judge_and_no_metric_is_made_up(tmp_path: Path) -> None:
    shop = table(tmp_path / "shop.csv", rows(4, 1, 1))
    assert "no user has 5 interactions: the most is 1" in refused(tmp_path, **shop)
    found = run(tmp_path, **shop, data__min_interactions=1)
    assert found["status"] == "completed"
    assert found["test"] == {"num_users": 0, "num_without_held_out": 4, "num_held_out": 0, "num_short_negatives": 0}
    assert found["sampled"] == {}


def test_lists_longer_than_the_catalogue_find_everything(tmp_path: Path) -> None:
    found = run(tmp_path, evaluate__ks="10,1000")["test"]
    assert found["hr@1000"] == found["recall@1000"] == 1.0
    assert found["precision@1000"] == pytest.approx(0.001, abs=1e-12)
    assert 0 < found["hr@10"] < 1


def test_ratings_that_are_no_numbers_are_set_aside_and_counted(tmp_path: Path) -> None:
    lines = [f"u{u},i{(u * 2 + i) % 9},{4.0 if (u, i) != (0, 5) else 'nan'},{i}" for u in range(6) for i in range(6)]
    lines += ["u1,i8,inf,9", "u2,i8,,9"]
    text = "\n".join(["user_id,item_id,rating,timestamp", *lines])
    found = run(tmp_path, **table(tmp_path / "shop.csv", text))
    assert found["quarantined_rows"] == 3
    assert found["test"]["num_users"] == 6


def test_a_file_whose_ratings_are_all_wrong_says_why(tmp_path: Path) -> None:
    text = "user_id,item_id,rating\n" + "".join(f"u1,i{i},nan\n" for i in range(6))
    assert "no usable interaction in 6 rows: 6 x rating is not a finite number" in refused(
        tmp_path, **table(tmp_path / "shop.csv", text)
    )


def test_a_split_by_time_needs_times(tmp_path: Path) -> None:
    text = "user_id,item_id\n" + "".join(f"u{u},i{i}\n" for u in range(4) for i in range(6))
    shop = table(tmp_path / "shop.csv", text)
    assert "'temporal' needs timestamps" in refused(tmp_path, **shop, data__protocol="temporal")
    assert run(tmp_path, **shop)["test"]["num_users"] == 4


def test_small_cohorts_tell_no_popularity_and_the_run_goes_on(tmp_path: Path) -> None:
    assert "popularity@10" not in run(tmp_path, privacy__min_cohort=21)["test"]
    assert "popularity@10" in run(tmp_path, privacy__min_cohort=20)["test"]


def test_more_nodes_than_users_are_right_too(tmp_path: Path) -> None:
    found = run(tmp_path, 9, **table(tmp_path / "shop.csv", rows(3, 9, 6)))
    assert (found["num_nodes"], found["refused_nodes"], found["test"]["num_users"]) == (9, 0, 3)
