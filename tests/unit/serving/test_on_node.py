"""Recommendations on a node: by its own rows, data and feedback, and without a network."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fedrec_app import cli
from fedrec_app.artifacts import RunFolder
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.feedback import FILE, Feedback
from fedrec_app.errors import ConfigError, DataError, FedrecError, StateError
from fedrec_app.export.files import export_run
from fedrec_app.recommend import recommend
from fedrec_app.serving.on_node import recommend_on_node
from fedrec_app.simulate import simulate

NUM_ITEMS = 30


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, its catalog with titles, a run of neumf on it with the nodes' state, and a bundle."""
    folder = tmp_path_factory.mktemp("node")
    rng = np.random.default_rng(3)
    rows = [(f"u{u}", f"i{i}", 10 * n) for u in range(20) for n, i in enumerate(rng.permutation(NUM_ITEMS)[:8])]
    (folder / "data").mkdir()
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    table.to_csv(folder / "data" / "interactions.csv", index=False)
    titles = pd.DataFrame({"title": [f"Item {n}" for n in range(NUM_ITEMS)]})
    Catalog(tuple(f"i{n}" for n in range(NUM_ITEMS)), titles).to_file(folder / "data" / "catalog.jsonl")
    flat = {
        "output-dir": str(folder / "runs"), "data.name": "csv", "data.path": str(folder / "data"),
        "data.options": '{"catalog": "catalog.jsonl"}', "num-server-rounds": 3, "evaluate.bootstrap": 0,
        "privacy.min-cohort": 1, "model.name": "neumf", "model.embedding-dim": 4,
    }  # fmt: skip
    run = simulate(flat, 2).folder
    export_run(run, "safetensors", folder / "bundle.safetensors", 5)
    (folder / "run").symlink_to(run.path)
    # A node has its own copy of the data, and columns of other names.
    table.rename(columns={"user_id": "who"}).to_csv(folder / "own.csv", index=False)
    return folder


@pytest.fixture
def node(made: Path, tmp_path: Path) -> Path:
    """The state-dir of a node, free to be written to."""
    return Path(shutil.copytree(made / "runs" / "nodes", tmp_path / "state"))


def own(made: Path) -> dict[str, str]:
    return {"path": str(made / "own.csv"), "columns": "user_id=who"}


def ids(found: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in found["items"]]


def told(state_dir: Path, user: str, *items: str) -> None:
    table = pd.DataFrame(
        {"user_id": [user] * len(items), "item_id": items, "timestamp": range(1000, 1000 + len(items))}
    )
    Feedback(state_dir).append(table)


@pytest.mark.parametrize("model", ["run", "bundle.safetensors"])
def test_a_user_of_the_node_gets_what_the_run_itself_recommends(made: Path, node: Path, model: str) -> None:
    for user in ("u0", "u7", "u19"):
        expected = recommend(RunFolder((made / "run").resolve()), user, [], 10)
        catalog = made / "data" / "catalog.jsonl" if model == "run" else None  # a bundle brings it
        found = recommend_on_node(made / model, node, user, [], 10, own(made), catalog)
        assert found == expected
        assert found["method"] == "private rows"
        assert found["items"][0]["title"] == f"Item {found['items'][0]['item_id'][1:]}"


def test_feedback_counts_as_history(made: Path, node: Path) -> None:
    before = recommend_on_node(made / "bundle.safetensors", node, "u3", [], NUM_ITEMS, own(made))
    assert len(ids(before)) == NUM_ITEMS - 8
    told(node, "u3", *ids(before)[:2], "not in any catalog")
    after = recommend_on_node(made / "bundle.safetensors", node, "u3", [], NUM_ITEMS, own(made))
    assert set(ids(after)) == set(ids(before)[2:])
    scores = {item["item_id"]: item["score"] for item in before["items"]}
    assert any(abs(item["score"] - scores[item["item_id"]]) > 1e-6 for item in after["items"])
    other = recommend_on_node(made / "bundle.safetensors", node, "u4", [], 5, own(made))
    assert other == recommend(RunFolder((made / "run").resolve()), "u4", [], 5)


def test_who_is_in_the_feedback_alone_is_folded_in(made: Path, node: Path) -> None:
    told(node, "newcomer", "i3", "i4")
    found = recommend_on_node(made / "bundle.safetensors", node, "newcomer", [], NUM_ITEMS, own(made))
    assert found["method"] == "fold-in"
    assert "newcomer" not in found
    assert set(ids(found)) == {f"i{n}" for n in range(NUM_ITEMS)} - {"i3", "i4"}


def test_who_is_unknown_gets_what_is_popular_and_is_told_so(made: Path, node: Path) -> None:
    popular = recommend(RunFolder((made / "run").resolve()), "", [], 5)
    found = recommend_on_node(made / "bundle.safetensors", node, "stranger", [], 5, own(made))
    assert found == {
        **popular,
        "warnings": ["this node knows nothing of user 'stranger': the most popular items of all"],
    }
    assert recommend_on_node(made / "bundle.safetensors", node, "", [], 5, {}) == popular
    history = recommend_on_node(made / "bundle.safetensors", node, "", ["i1", "i2"], 5, {})
    assert history["method"] == "fold-in"


def test_a_node_without_private_rows_folds_in_and_says_so(made: Path, tmp_path: Path) -> None:
    found = recommend_on_node(made / "bundle.safetensors", tmp_path, "u3", [], 5, own(made))
    assert found["method"] == "fold-in"
    assert found["warnings"][0].endswith("are folded in anew: this machine has no private state of the run")


def test_a_model_that_is_not_finite_recommends_nothing(made: Path, node: Path, tmp_path: Path) -> None:
    """Of a run's folder, whose catalog lies with the data, so that what is damaged shows when it is used."""
    folder = RunFolder(Path(shutil.copytree((made / "run").resolve(), tmp_path / "run")))
    shared, facts, counts = folder.read_model()
    assert counts is not None
    own_data, catalog = {"path": str(made / "data")}, made / "data" / "catalog.jsonl"
    folder.write_model({**shared, "item_gmf": shared["item_gmf"] * np.nan}, facts, counts)
    for user, history, file in (("u3", [], None), ("u3", [], catalog), ("", ["i1"], None)):
        with pytest.raises(StateError, match="parameter 'item_gmf' has numbers that are not finite"):
            recommend_on_node(folder.path, node, user, history, 5, own_data, file)
    with pytest.raises(StateError, match="parameter 'item_gmf' has numbers that are not finite"):
        recommend(folder, "u3", [], 5)
    with pytest.raises(StateError, match="parameter 'item_gmf' has numbers that are not finite"):
        recommend_on_node(folder.path, node, "", [], 5, own_data, catalog)
    folder.write_model(shared, facts, counts[:-1])
    with pytest.raises(StateError, match=r"its counts of items have shape \(29,\)"):
        recommend(folder, "", [], 5)
    with pytest.raises(StateError, match=r"its counts of items have shape \(29,\)"):
        recommend_on_node(folder.path, node, "", [], 5, own_data)


def test_what_is_missing_or_does_not_fit_is_named(made: Path, node: Path, tmp_path: Path) -> None:
    bundle = made / "bundle.safetensors"
    with pytest.raises(ConfigError, match="give --data-path"):
        recommend_on_node(bundle, node, "u3", [], 5)
    with pytest.raises(StateError, match=r"there is no state-dir .*gone"):
        recommend_on_node(bundle, tmp_path / "gone", "u3", [], 5, own(made))
    with pytest.raises(StateError, match=r"there is no model .*gone"):
        recommend_on_node(tmp_path / "gone", node, "u3", [], 5, own(made))
    with pytest.raises(DataError, match="there is nothing at"):
        recommend_on_node(bundle, node, "u3", [], 5, {"path": str(tmp_path / "gone.csv")})
    Catalog(("i1", "i2")).to_file(tmp_path / "other.jsonl")
    with pytest.raises(StateError, match="this catalog of 2 items is not the one"):
        recommend_on_node(bundle, node, "u3", [], 5, own(made), tmp_path / "other.jsonl")
    (tmp_path / "other").mkdir()
    shutil.copy(made / "own.csv", tmp_path / "other" / "interactions.csv")
    Catalog(tuple(f"i{n}" for n in range(NUM_ITEMS))).to_file(tmp_path / "other" / "catalog.jsonl")
    with pytest.raises(StateError, match="the catalog of this node's data, 30 items, is not the one"):
        recommend_on_node(made / "run", node, "u3", [], 5, {"path": str(tmp_path / "other"), "columns": "user_id=who"})
    with pytest.raises(DataError, match="unknown item 'i99'"):
        recommend_on_node(bundle, node, "", ["i99"], 5)


def invoke(*words: str | Path) -> Any:
    return CliRunner().invoke(cli.commands, [str(word) for word in words])


def answer(*words: str | Path) -> dict[str, Any]:
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_a_node_from_feedback_to_recommendation_by_commands(made: Path, node: Path, tmp_path: Path) -> None:
    serve = ["recommend", "--state-dir", node, "--model", made / "bundle.safetensors", "--user", "u5"]
    serve += ["--data-path", made / "own.csv", "--columns", "user_id=who", "-k", "40"]
    first = ids(answer(*serve))
    assert answer("feedback", "--state-dir", node, "--user", "u5", "--item", first[0], "--rating", "4") == {
        "added": 1, "events": 1, "set_aside": 0,
    }  # fmt: skip
    (tmp_path / "apart").mkdir()
    said = invoke("feedback", "--state-dir", tmp_path / "apart", "--user", "u5", "--item", "i1")
    assert "takes them if this node owns its data (data-path in its --node-config)" in " ".join(said.output.split())
    (tmp_path / "events.tsv").write_text(f"person\titem_id\ttimestamp\nu5\t{first[1]}\t2030-01-01\nu6\t007\t1e9\n")
    many = ["feedback", "--state-dir", node, "--file", tmp_path / "events.tsv", "--columns", "user_id=person"]
    assert answer(*many)["events"] == 3
    assert Feedback(node).rows(3)["item_id"].tolist() == [first[0], first[1], "007"]
    assert Feedback(node).rows(3)["rating"].tolist()[0] == 4.0
    assert set(first) - set(ids(answer(*serve))) == {first[0], first[1]}
    (tmp_path / "events.jsonl").write_text(
        f'{{"user_id": "u5", "item_id": "{first[2]}"}}\n\n{{"user_id": 5, "item_id": 6}}\n'
    )
    assert answer("feedback", "--state-dir", node, "--file", tmp_path / "events.jsonl")["events"] == 5
    assert Feedback(node).rows(5)["user_id"].tolist()[-1] == "5"
    with (node / FILE).open("ab") as stream:
        stream.write(b'{"user_id":"u5"')
    assert answer("feedback", "--state-dir", node, "--user", "u1", "--item", "i1")["set_aside"] == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "user_id,item_id\nu,i\n,j\n", "line 3: user_id .* is missing"),
        ("a.csv", "user,item_id\nu,i\n", "no column 'user_id' for user_id: it has user, item_id"),
        ("a.csv", "user_id,item_id\nu,i,too,many\n", "line 2 has more than 2 fields"),
        ("a.jsonl", '{"user_id": "u", "item_id": "i"}\n{"user_id": "u"\n', "line 2 is not JSON"),
        ("a.jsonl", '{"user_id": ["u"], "item_id": "i"}\n', "line 1 is not an object of texts and numbers"),
        ("a.jsonl", '\n{"user_id": "u", "item_id": "i", "timestamp": "soon"}\n', "line 2: timestamp 'soon'"),
        ("a.jsonl", "", "no column 'user_id'"),
        ("a.txt", "u i", "unknown kind: .csv, .tsv or .jsonl"),
    ],
)
def test_a_file_of_events_with_one_that_is_wrong_adds_nothing(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "s").mkdir()
    result = invoke("feedback", "--state-dir", tmp_path / "s", "--file", tmp_path / name)
    assert isinstance(result.exception, FedrecError)
    with pytest.raises(FedrecError, match=message):
        raise result.exception
    assert Feedback(tmp_path / "s").count() == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["feedback", "--state-dir", "s", "--user", "u"], "give --user and --item, or --file"),
        (["feedback", "--state-dir", "s", "--file", "f", "--user", "u", "--rating", "3"], "leave --user, --rating out"),
        (["recommend", "--user", "u"], "give --run with the folder of a run, or, on a node, --model and --state-dir"),
        (["recommend", "--model", "m", "--user", "u"], "--state-dir and --model go together"),
        (["recommend", "--model", "m", "--state-dir", "s", "--run", "r"], "a node has --model"),
        (["recommend", "--run", "r", "--catalog", "c"], "go with --model: a run has its own"),
    ],
)
def test_commands_that_make_no_sense_say_what_does(words: list[str], message: str) -> None:
    result = invoke(*words)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_export_and_extend_catalog_by_commands(made: Path, tmp_path: Path) -> None:
    found = answer(
        "export", "--run", (made / "run").resolve(), "--format", "int8", "--out", tmp_path / "m", "--users", "7"
    )
    assert found["users"] == 7
    assert [row["format"] for row in found["formats"]] == ["the run's own model.safetensors", "int8"]
    assert found["formats"][1]["bytes"] == (tmp_path / "m").stat().st_size
    shown = invoke("export", "--run", (made / "run").resolve(), "--out", tmp_path / "n")
    assert "top-10 overlap" in shown.stdout
    (tmp_path / "new.csv").write_text("item_id,title\nz,Zed\n")
    catalog = made / "data" / "catalog.jsonl"
    grown = invoke("data", "extend-catalog", catalog, "--items", tmp_path / "new.csv", "--out", tmp_path / "c.jsonl")
    assert grown.exit_code == 0
    assert Catalog.from_file(tmp_path / "c.jsonl").item_ids[-1] == "z"


def test_a_folder_that_is_no_state_dir_gets_no_feedback(tmp_path: Path) -> None:
    nowhere = tmp_path / "no" / "state"
    done = invoke("feedback", "--state-dir", nowhere, "--user", "u", "--item", "i")
    assert "there is no state-dir" in str(done.exception)
    assert not nowhere.exists()
