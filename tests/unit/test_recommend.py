"""Recommendations from the folder of a run: to whom, by which rows, and what is never recommended."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedrec_app import node_data
from fedrec_app.artifacts import RunFolder
from fedrec_app.client import RecommenderClient
from fedrec_app.config import RunConfig
from fedrec_app.data.cohort import Cohort
from fedrec_app.errors import FedrecError
from fedrec_app.node_settings import NodeSettings
from fedrec_app.recommend import recommend, recommend_by
from fedrec_app.records import Ask
from tests.small import run_folder

NUM_ITEMS = 60


def simulated(output_dir: Path, num_nodes: int = 3, **settings: Any) -> RunFolder:
    return run_folder(output_dir, num_nodes, **{"num_server_rounds": 3, "evaluate__bootstrap": 0, **settings})


@pytest.fixture(scope="module")
def mf(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return simulated(tmp_path_factory.mktemp("mf"))


@pytest.fixture(scope="module")
def neumf(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Without fold-in the evaluated rows are the stored ones, so that they can be compared exactly."""
    return simulated(
        tmp_path_factory.mktemp("neumf"), model__name="neumf", model__embedding_dim=4, evaluate__fold_in_epochs=0,
        train__private_learning_rate=20.0,
    )  # fmt: skip


def config_of(folder: RunFolder) -> RunConfig:
    return RunConfig.from_flat(folder.read_config())


def everyone(folder: RunFolder) -> Cohort:
    return node_data.cohort(config_of(folder).data, None, 1)


def seen_by(cohort: Cohort, place: int) -> NDArray[np.int64]:
    return np.concatenate([cohort.train[place], cohort.validation[place], cohort.test[place]])


def ids(found: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in found["items"]]


def best_first(folder: RunFolder, scores: NDArray[np.float64], seen: NDArray[np.int64]) -> list[str]:
    names = node_data.catalog(config_of(folder).data).item_ids
    return [names[i] for i in np.argsort(-scores, kind="stable") if i not in set(seen.tolist())]


def test_a_known_user_gets_what_he_has_not_seen_held_out_items_included(mf: RunFolder) -> None:
    cohort, names = everyone(mf), node_data.catalog(config_of(mf).data).item_ids
    for place in (0, 7, 39):
        assert len(cohort.validation[place]) == len(cohort.test[place]) == 1
        found = recommend(mf, cohort.user_ids[place], [], 1000)
        seen = {names[i] for i in seen_by(cohort, place)}
        assert found["method"] == "private rows"
        assert len(ids(found)) == len(set(ids(found))) == NUM_ITEMS - len(seen)
        assert set(ids(found)) == set(names) - seen
        scores = [item["score"] for item in found["items"]]
        assert scores == sorted(scores, reverse=True)
        assert np.isfinite(scores).all()


def test_titles_come_along_and_k_cuts_the_list(mf: RunFolder) -> None:
    catalog, user = node_data.catalog(config_of(mf).data), everyone(mf).user_ids[3]
    every = recommend(mf, user, [], 1000)["items"]
    three = recommend(mf, user, [], 3)["items"]
    assert three == every[:3]
    for item in three:
        assert item["title"] == catalog.features["title"].iloc[catalog.position(item["item_id"])]
        assert type(item["score"]) is float


def ridge(folder: RunFolder, seen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scores by iALS' closed form, worked out here: recency weights 1 / (1 + steps back), oldest item first."""
    table = folder.read_model()[0]["item_embedding"].astype(np.float64)
    weights = 1.0 / np.arange(len(seen), 0, -1)
    mine, a, l2 = table[seen], 0.1, 0.02
    gram = (mine * weights[:, None]).T @ mine + a * table.T @ table
    gram += l2 * (weights.sum() + a * len(table)) * np.eye(table.shape[1])
    return table @ np.linalg.solve(gram, (mine * weights[:, None]).sum(0))


def test_scores_of_the_default_model_are_its_closed_form_on_all_a_user_did(mf: RunFolder) -> None:
    cohort = everyone(mf)
    for place in (0, 11, 25):
        seen = seen_by(cohort, place)
        expected = ridge(mf, seen)
        found = recommend(mf, cohort.user_ids[place], [], 1000)
        assert ids(found) == best_first(mf, expected, seen)
        scores = [item["score"] for item in found["items"]]
        np.testing.assert_allclose(scores, -np.sort(-np.delete(expected, seen)), atol=1e-5)


def evaluated_scores(folder: RunFolder) -> dict[str, NDArray[np.float64]]:
    """User -> scores of every item by the client that judged the test part, after it did."""
    config = config_of(folder)
    arrays, made, _ = folder.read_model()
    scores = {}
    for partition in range(3):
        client = RecommenderClient(config, NodeSettings(partition, 3, folder.path.parent.parent / "nodes"))
        client.evaluate(
            [arrays[name] for name in client.model.shared_names()],
            {
                Ask.ROUND: made.round, Ask.PRIVATE_ROUND: made.round,
                Ask.LINEAGE: made.lineage, Ask.PART: "test",
            },
        )  # fmt: skip
        users = torch.arange(len(client.cohort))
        with torch.no_grad():
            state = client.model.encode(client.cohort.known("test"), users)
            block = client.model.score(state, torch.arange(NUM_ITEMS)).double().numpy()
        scores.update(dict(zip(client.cohort.user_ids, block, strict=True)))
    return scores


def test_a_known_user_gets_the_ranking_of_the_evaluated_model(neumf: RunFolder) -> None:
    cohort, judged = everyone(neumf), evaluated_scores(neumf)
    assert len(judged) == 40
    lists = set()
    for place in range(0, 40, 5):
        user = cohort.user_ids[place]
        found = recommend(neumf, user, [], 1000)
        assert found["method"] == "private rows"
        assert ids(found) == best_first(neumf, judged[user], seen_by(cohort, place))
        lists.add(tuple(ids(found)[:10]))
    assert len(lists) > 1, "the private rows matter"


def test_the_folder_may_be_named_from_inside(neumf: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    user = everyone(neumf).user_ids[5]
    expected = recommend(neumf, user, [], 5)
    monkeypatch.chdir(neumf.path)
    assert recommend(RunFolder(Path(".")), user, [], 5) == expected


def test_rows_that_are_not_on_this_machine_are_fitted_anew_and_it_says_so(neumf: RunFolder, tmp_path: Path) -> None:
    copy = tmp_path / "date" / "time"
    copy.mkdir(parents=True)
    for name in ("config.toml", "model.safetensors"):
        os.link(neumf.path / name, copy / name)
    found = recommend(RunFolder(copy), everyone(neumf).user_ids[5], [], 5)
    assert found["method"] == "fold-in"
    assert len(found["items"]) == 5
    assert found["warnings"] == [
        f"{copy}: the user's rows are folded in anew: this machine has no private state of the run"
    ]


def copied(folder: RunFolder, tmp_path: Path) -> RunFolder:
    """The same run elsewhere, its private states copied, so that they can be damaged."""
    copy = tmp_path / "date" / "time"
    shutil.copytree(folder.path, copy)
    lineage = folder.read_model()[1].lineage
    shutil.copytree(folder.path.parent.parent / "nodes" / lineage, tmp_path / "nodes" / lineage)
    return RunFolder(copy)


def users_of_node(folder: RunFolder, node: int) -> list[str]:
    return list(node_data.cohort(config_of(folder).data, node, 3).user_ids)


def damage(folder: RunFolder, node: int) -> None:
    state = folder.path.parent.parent / "nodes" / folder.read_model()[1].lineage / str(node)
    for path in state.glob("*.safetensors"):
        path.write_bytes(b"half")


def test_one_damaged_node_costs_its_own_users_their_rows_and_nobody_else(neumf: RunFolder, tmp_path: Path) -> None:
    copy = copied(neumf, tmp_path)
    damage(copy, 0)
    for node in (1, 2):
        user = users_of_node(neumf, node)[0]
        expected, found = recommend(neumf, user, [], 5), recommend(copy, user, [], 5)
        assert found["items"] == expected["items"]
        assert found["method"] == "private rows"
        (line,) = found["warnings"]
        assert "no readable private state up to round" in line
        assert line.endswith("/0")
    found = recommend(copy, users_of_node(neumf, 0)[0], [], 5)
    assert found["method"] == "fold-in"
    assert len(found["items"]) == 5
    damaged, reason = found["warnings"]
    assert damaged.endswith("/0")
    assert reason.endswith("the user's rows are folded in anew: they are in none of the private states of its 3 nodes")


def test_a_history_is_folded_in_and_left_out(mf: RunFolder) -> None:
    names = node_data.catalog(config_of(mf).data).item_ids
    history = np.array([8, 3, 20])
    found = recommend(mf, "", [names[i] for i in history], 1000)
    assert found["method"] == "fold-in"
    assert ids(found) == best_first(mf, ridge(mf, history), history)
    assert recommend(mf, "", [names[i] for i in (8, 3, 20, 8)], 1000) == found
    assert ids(recommend(mf, "", [names[i] for i in (20, 3, 8)], 1000)) != ids(found), "what came last counts most"


def test_the_history_of_a_known_user_gives_his_recommendations(mf: RunFolder) -> None:
    cohort, names = everyone(mf), node_data.catalog(config_of(mf).data).item_ids
    by_history = recommend(mf, "", [names[i] for i in seen_by(cohort, 4)], 20)
    assert ids(by_history) == ids(recommend(mf, cohort.user_ids[4], [], 20))


def test_a_history_of_a_model_trained_by_gradient_is_folded_in(neumf: RunFolder) -> None:
    names = node_data.catalog(config_of(neumf).data).item_ids
    found = recommend(neumf, "", [names[i] for i in (8, 3)], 1000)
    assert found["method"] == "fold-in"
    assert set(ids(found)) == set(names) - {names[8], names[3]}
    assert recommend(neumf, "", [names[i] for i in (8, 3)], 1000) == found


def test_a_newcomer_gets_what_is_popular(mf: RunFolder) -> None:
    cohort = everyone(mf)
    counts = np.bincount(cohort.train.items, minlength=NUM_ITEMS)
    found = recommend(mf, "", [], 1000)
    assert found["method"] == "popularity"
    assert ids(found) == best_first(mf, counts.astype(np.float64), np.zeros(0, dtype=np.int64))
    assert [item["score"] for item in found["items"]] == sorted(counts.tolist(), reverse=True)


def test_without_popularity_a_newcomer_is_told_why(tmp_path: Path) -> None:
    folder = simulated(tmp_path, 4, num_server_rounds=1, privacy__min_cohort=20)
    with pytest.raises(FedrecError, match=r"no popularity: .* \(privacy\.min-cohort\)"):
        recommend(folder, "", [], 5)


@pytest.mark.parametrize(
    ("user", "history", "k", "expected"),
    [
        ("u399", [], 5, "unknown user 'u399': the data has 40, such as u00, u01, u02, u03, u04 (did you mean 'u39'?)"),
        ("nobody at all", [], 5, "unknown user 'nobody at all': the data has 40, such as u00, u01, u02, u03, u04"),
        ("", ["i03", "i599"], 5,
         "unknown item 'i599': the data has 60, such as i00, i01, i02, i03, i04 (did you mean 'i59'?)"),
        ("u01", ["i03"], 5, "give a user of the data or a history, not both"),
        ("u01", [], 0, "k is 0: at least 1 is expected"),
    ],
)  # fmt: skip
def test_what_is_unknown_is_named_with_the_nearest_match(
    mf: RunFolder, user: str, history: list[str], k: int, expected: str
) -> None:
    with pytest.raises(FedrecError) as caught:
        recommend(mf, user, history, k)
    assert str(caught.value) == expected


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FedrecError, match=f"no model.safetensors in {path}: is it the folder of a run"):
            recommend(RunFolder(path), "", [], 5)


def test_a_catalog_that_changed_since_is_refused(tmp_path: Path) -> None:
    lines = ["user_id,item_id,timestamp", *(f"u{u},i{(u * 3 + i) % 12},{i}" for u in range(8) for i in range(6))]
    file = tmp_path / "shop.csv"
    file.write_text("\n".join(lines))
    folder = simulated(tmp_path, 2, data__name="csv", data__path=str(file), data__options="{}", num_server_rounds=1)
    assert len(recommend(folder, "u3", [], 20)["items"]) == 12 - 6
    file.write_text("\n".join([*lines, "u1,i99,9"]))
    node_data.catalog.cache_clear()
    with pytest.raises(FedrecError, match="the catalog has changed since this run"):
        recommend(folder, "u3", [], 20)


def test_several_runs_recommend_by_weighted_reciprocal_ranks(mf: RunFolder, neumf: RunFolder) -> None:
    user = everyone(mf).user_ids[5]
    lists = [ids(recommend(folder, user, [], 1000)) for folder in (mf, neumf)]
    expected = {
        item: 0.75 / (60 + lists[0].index(item) + 1) + 0.25 / (60 + lists[1].index(item) + 1) for item in lists[0]
    }
    found = recommend_by([mf, neumf], user, [], 1000, "rank", [3, 1])
    assert found["method"] == "rank fusion"
    assert {item["item_id"]: item["score"] for item in found["items"]} == pytest.approx(expected, abs=1e-12)
    assert [item["score"] for item in found["items"]] == pytest.approx(sorted(expected.values(), reverse=True))
    assert [(run["weight"], run["method"]) for run in found["runs"]] == [(0.75, "private rows"), (0.25, "private rows")]


def test_several_runs_weigh_by_their_validation_scores_when_nothing_is_said(mf: RunFolder, neumf: RunFolder) -> None:
    scores = [folder.read_summary()["validation"]["ndcg@10"] for folder in (mf, neumf)]
    assert scores[0] > 0
    found = recommend_by([mf, neumf], everyone(mf).user_ids[5], [], 5, "score")
    assert [run["weight"] for run in found["runs"]] == pytest.approx([score / sum(scores) for score in scores])
    history = recommend_by([mf, neumf], "", ["i03", "i08"], 5, "score")
    assert [run["method"] for run in history["runs"]] == ["fold-in", "fold-in"]
    assert not {"i03", "i08"} & set(ids(history))


def test_a_run_of_weight_one_alone_decides(mf: RunFolder, neumf: RunFolder) -> None:
    user = everyone(mf).user_ids[5]
    for fusion in ("rank", "score"):
        assert ids(recommend_by([mf, neumf], user, [], 30, fusion, [0, 1])) == ids(recommend(neumf, user, [], 30))


def test_runs_of_other_splits_are_not_fused(mf: RunFolder, tmp_path: Path) -> None:
    other = simulated(tmp_path, 2, data__seed=1, num_server_rounds=1)
    with pytest.raises(FedrecError, match=r"differ in data\.seed \(0 and 1\), catalog .*held-out items"):
        recommend_by([mf, other], "u01", [], 5)
