"""Exported models score as the run does: each model in each format, read back from its file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedrec_app import node_data
from fedrec_app.artifacts import Made, RunFolder, model_content
from fedrec_app.config import RunConfig
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.errors import ConfigError, StateError
from fedrec_app.export import FORMATS
from fedrec_app.export.files import export_run, shared_model
from fedrec_app.export.graphs import graph_of
from fedrec_app.export.onnx_file import onnx_content, run_onnx
from fedrec_app.export.parity import compare
from fedrec_app.files import write_atomically
from fedrec_app.finished import FinishedRun
from fedrec_app.models.base import initialise
from fedrec_app.models.item_item import ItemItem
from fedrec_app.models.registry import make_model, resolved
from fedrec_app.serving.bundle import CATALOG, bundle, quantised, read, restored
from tests.small import SMALL

ITEMS, USERS = 60, 12
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mf": ("mf", {}),
    "mf-bce": ("mf", {"loss": "bce"}),
    "neumf": ("neumf", {"layers": [8, 4]}),
    "pfedrec": ("pfedrec", {"view_epochs": 2}),
    "pfedrec-hidden": ("pfedrec", {"hidden": 5}),
    "sasrec": ("sasrec", {"max_length": 6}),
    "sasrec-masked": ("sasrec", {"max_length": 6, "objective": "masked"}),
    "ease": ("ease", {"recency": 0.5}),
    "itemknn": ("itemknn", {"neighbors": 7}),
}


def trained(path: Path, name: str, options: dict[str, Any]) -> FinishedRun:
    """Returns a run whose parameters nobody trained, but which are large enough to tell scores apart."""
    config = resolved({
        "data.options": SMALL, "model.name": name, "model.options": json.dumps(options), "model.embedding-dim": 8,
        "seed": 4, "train.num-negatives": 2,
    })  # fmt: skip
    catalog = node_data.catalog(config.data)
    model = initialise(make_model(config.model), catalog, None, 4)
    generator = np.random.default_rng(5)
    shared = {}
    for key in model.shared_names():
        shape = tuple(model.get_parameter(key).shape)
        shared[key] = generator.normal(0, 0.5, shape).astype(np.float32)
        if key == "neighbors":
            shared[key] = np.stack([generator.permutation(ITEMS)[: shape[1]] for _ in range(ITEMS)]).astype(np.float32)
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.write_config(config, 1)
    made = Made(catalog.hash, 3, "line", name)
    folder.write_model(shared, made, np.arange(ITEMS), catalog.item_ids)
    return FinishedRun.read(folder)


def cohort() -> Cohort:
    generator = np.random.default_rng(6)
    lists = [generator.permutation(ITEMS)[: n % 9] for n in range(USERS)]  # the first and the tenth did nothing
    history, nothing = Histories.from_lists(lists), Histories.from_lists([[]] * USERS)
    return Cohort(tuple(f"x{n}" for n in range(USERS)), ITEMS, history, nothing, nothing, history)


@contextmanager
def no_network() -> Iterator[None]:
    import socket

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was asked for")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", refused)
        yield


# One that exports fast and takes a history; of rows the mf of the columns below is.
QUICK = "itemknn"


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c != QUICK)) for c in MODELS])
def test_an_onnx_file_scores_as_torch_does(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    run = trained(tmp_path / "run", *MODELS[case])
    users, catalog = cohort(), run.catalog()
    served = run.serve(catalog, users, "test")
    graph = graph_of(shared_model(run, catalog))
    with torch.no_grad():
        inputs = graph.feed(served.model, users.train, np.arange(USERS))
    content = onnx_content(graph, inputs, catalog, run.made)
    write_atomically(tmp_path / "m.onnx", content)
    own = served.scores(np.arange(USERS)).numpy()
    scores = run_onnx(tmp_path / "m.onnx", inputs)
    assert scores.shape == (USERS, ITEMS)
    np.testing.assert_allclose(scores, own, rtol=1e-5, atol=1e-5 * np.abs(own).max())
    one = run_onnx(tmp_path / "m.onnx", {name: array[:1] for name, array in inputs.items()})
    np.testing.assert_allclose(one, own[:1], rtol=1e-5, atol=1e-5 * np.abs(own).max())
    assert str(Path(__file__).parents[3]).encode() not in content  # nor does anything say where it was made
    for name in served.model.private_names():
        rows = served.model.get_parameter(name).detach().numpy()
        assert all(row.tobytes() not in content for row in rows if row.size > 1 and row.any())


def test_the_columns_of_an_onnx_file_are_named(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    run = trained(tmp_path / "run", "mf", {})
    found = export_run(run.folder, "onnx", tmp_path / "m.onnx", users=5)
    proto = onnx.load(tmp_path / "m.onnx")
    said = {entry.key: entry.value for entry in proto.metadata_props}
    assert tuple(json.loads(said["fedrec.item-ids"])) == run.catalog().item_ids
    assert said["fedrec.catalog-hash"] == run.made.catalog_hash
    assert found["users"] == 5
    assert found["formats"][1]["bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert found["formats"][1]["max_difference"] < 1e-5
    assert found["formats"][1]["overlap"] == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "run"]


@pytest.mark.parametrize("case", [*MODELS, "popularity"])
def test_a_bundle_scores_exactly_as_the_run_and_in_8_bits_nearly(case: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *MODELS.get(case, (case, {})))
    whole = export_run(run.folder, "safetensors", tmp_path / "b" / "whole", users=30)["formats"]
    assert (whole[1]["max_difference"], whole[1]["overlap"], whole[1]["ndcg_difference"]) == (0.0, 1.0, 0.0)
    small = export_run(run.folder, "int8", tmp_path / "b" / "small", users=30)["formats"][1]
    matrices = [a for name, a in run.shared.items() if a.ndim > 1 and name != "neighbors"]
    saved = sum(3 * a.size - 4 * len(a) for a in matrices)
    assert whole[1]["bytes"] - small["bytes"] == pytest.approx(saved, abs=150 + 100 * len(matrices))
    # Through a hidden layer of his own, a user's fold-in by other items ends elsewhere.
    apart = case == "pfedrec-hidden"
    assert small["overlap"] >= (0.7 if apart else 0.9)
    assert abs(small["ndcg_difference"]) < (0.1 if apart else 0.05)
    with no_network():
        again = read(tmp_path / "b" / "small")
    assert again.catalog().item_ids == run.catalog().item_ids
    assert again.made == run.made
    np.testing.assert_array_equal(again.popularity, np.arange(ITEMS))


def test_8_bits_are_off_by_half_a_step_of_their_row() -> None:
    generator = np.random.default_rng(1)
    table = (generator.normal(size=(50, 16)) * 10 ** generator.uniform(-6, 6, (50, 1))).astype(np.float32)
    table[3] = 0
    shared = {
        "table": table, "cube": table.reshape(50, 4, 4), "bias": table[:, 0],
        "neighbors": np.float32([[3, 400], [0, 1]]),
    }  # fmt: skip
    arrays, scales = quantised(shared)
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "table": "int8", "cube": "int8", "bias": "float32", "neighbors": "float32",
    }  # fmt: skip
    back = restored(arrays, scales)
    step = np.abs(table).max(1) / 127
    assert (np.abs(back["table"] - table) <= 0.5001 * step[:, None]).all()
    np.testing.assert_array_equal(back["cube"].reshape(50, 16), back["table"])
    np.testing.assert_array_equal(np.abs(arrays["table"]).max(1)[step > 0], 127)
    np.testing.assert_array_equal(back["neighbors"], shared["neighbors"])


def test_differences_of_scores_are_measured() -> None:
    users = Cohort(
        ("a", "b"), 12, Histories.from_lists([[0], [1]]), *[Histories.from_lists([[], []])] * 2,
        Histories.from_lists([[0], [1]]),
    )  # fmt: skip
    own = np.tile(np.arange(12.0, dtype=np.float32), (2, 1))
    other = own.copy()
    other[1, 2], other[1, 11] = 20.0, 0.0  # for one user, one of ten is another, and the best moves back
    found = compare(other, own, users, np.array([11, 11]))
    assert found.max_difference == 18.0
    assert found.overlap == pytest.approx(0.95)
    assert found.ndcg == pytest.approx(0.5)
    assert found.ndcg_difference == pytest.approx(-0.5)


@pytest.mark.parametrize("format", ["onxx", "onnx"])
def test_what_cannot_be_exported_is_refused_by_name(tmp_path: Path, format: str) -> None:
    run = trained(tmp_path / "run", "popularity", {})
    message = {"onxx": "did you mean 'onnx'", "onnx": "has no ONNX graph.*the same for everybody"}[format]
    with pytest.raises(ConfigError, match=message):
        export_run(run.folder, format, tmp_path / "m", 3)
    with pytest.raises(StateError, match="it is a folder"):
        export_run(run.folder, "int8", tmp_path, 3)
    assert not (tmp_path / "m").exists()


def test_a_bundle_that_is_altered_anywhere_is_refused(tmp_path: Path) -> None:
    """Cut at many lengths; one byte of it changed at many places."""
    run = trained(tmp_path / "run", "mf", {})
    content = bundle(run, run.catalog(), int8=True)
    path = tmp_path / "b"
    generator = np.random.default_rng(2)
    for length in [0, 1, 7, 8, 9, *generator.integers(10, len(content), 60).tolist(), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(StateError, match="is damaged"):
            read(path)
    intact = read_back(content, path)
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(0, 8), *generator.integers(8, header, 150), *generator.integers(header, len(content), 60)]
    for place in map(int, places):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        if b'"sha256"' in flipped[:header]:
            with pytest.raises(StateError, match="is damaged"):
                read(path)
            continue
        with suppress(StateError):  # where a flip hides the checksum itself, nothing else has changed
            found = read(path)
            assert found.made == intact.made
            np.testing.assert_array_equal(found.shared["item_embedding"], intact.shared["item_embedding"])


def read_back(content: bytes, path: Path) -> FinishedRun:
    path.write_bytes(content)
    return read(path)


def test_files_from_before_there_were_checksums_are_read(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "mf", {})
    from safetensors.numpy import save

    said = {"format": "fedrec-model/1", **run.made.written()}
    (run.folder.path / "model.safetensors").write_bytes(save(run.shared, metadata=said))
    np.testing.assert_array_equal(read(run.folder.path).shared["item_embedding"], run.shared["item_embedding"])


def test_scales_that_do_not_fit_and_catalogs_of_others_are_refused(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "mf", {})
    arrays, _ = quantised(run.shared)
    settings = {"settings": json.dumps(RunConfig.flat(run.config)), "quantised": "int8"}
    bad = {"statistics/scale/item_embedding": np.ones(3, dtype=np.float32)}
    (tmp_path / "b").write_bytes(model_content(arrays, run.made, None, (), bad, settings))
    with pytest.raises(StateError, match="scales do not fit parameter 'item_embedding'"):
        read(tmp_path / "b")
    Catalog(("a", "b")).to_file(tmp_path / "c.jsonl")
    with pytest.raises(StateError, match="this catalog of 2 items is not the one that the model"):
        read(run.folder.path, catalog=tmp_path / "c.jsonl")
    write_atomically(tmp_path / "alone" / "model.safetensors", (run.folder.path / "model.safetensors").read_bytes())
    with pytest.raises(StateError, match="cannot be served: no configuration file"):
        read(tmp_path / "alone" / "model.safetensors")


def altered(run: FinishedRun, said: dict[str, str] | None = None, **arrays: np.ndarray | None) -> bytes:
    """Returns a bundle of a run with a right checksum, and with other arrays or metadata; those that are None are left
    out."""
    settings = {"settings": json.dumps(run.config.flat()), **(said or {})}
    catalog = np.frombuffer(run.catalog().content(), dtype=np.uint8)
    found = {**run.shared, **{name.replace("__", "/"): array for name, array in arrays.items()}}
    kept = {name: array for name, array in found.items() if array is not None}
    return model_content({CATALOG: catalog, **kept}, run.made, None, (), None, settings)


TABLE = np.ones((ITEMS, 8), dtype=np.float32)
WHOLE, STEPS = TABLE.astype(np.int8), TABLE[:, 0]
INT8 = {"quantised": "int8"}


@pytest.mark.parametrize(
    ("said", "arrays", "message"),
    [
        ({"settings": "[1]"}, {}, "its settings are no JSON object"),
        ({"settings": "[" * 100_000}, {}, "is damaged: .*recursion"),
        ({"lineage": "../x"}, {}, "lineage '../x'"),
        ({"quantised": "int4"}, {}, "quantised as 'int4': 'int8' is expected"),
        (INT8, {"item_embedding": WHOLE}, r"'item_embedding' has shape \(60, 8\) of int8, .* of float32 is expected"),
        ({}, {"item_embedding": WHOLE}, "of int8, .* of float32 is expected"),
        (INT8, {"item_embedding": WHOLE[:, :3], "statistics__scale__item_embedding": STEPS}, r"has shape \(60, 3\)"),
        (
            INT8,
            {"item_embedding": WHOLE, "statistics__scale__item_embedding": STEPS.astype(float)},
            "scales do not fit",
        ),
        (INT8, {"item_embedding": TABLE, "statistics__scale__item_embedding": STEPS}, "scales do not fit"),
        (INT8, {"item_embedding": WHOLE, "statistics__scale__item_embedding": STEPS * np.nan}, "not finite"),
        ({}, {"item_embedding": TABLE.astype(float)}, "of float64, .* of float32 is expected"),
        ({}, {"item_embedding": None}, "parameter 'item_embedding' of model 'mf' is missing"),
        ({}, {"item_embeding": TABLE}, "item_embeding.*did you mean 'item_embedding'"),
        ({}, {"user_embedding": TABLE[:2]}, "unknown parameter of model 'mf' 'user_embedding'"),
        ({}, {"item_embedding": TABLE * np.nan}, "'item_embedding' has numbers that are not finite"),
        ({}, {"statistics__item-counts": np.ones(3)}, r"counts of items have shape \(3,\) of float64"),
        ({}, {"statistics__item-counts": np.full(ITEMS, -1)}, "counts of items are not all finite and 0 or more"),
        ({}, {CATALOG.replace("/", "__"): np.frombuffer(b"[" * 100_000, dtype=np.uint8)}, "is damaged"),
    ],
)
def test_a_bundle_with_a_right_checksum_and_wrong_content_is_refused_by_name(
    tmp_path: Path, said: dict[str, str], arrays: dict[str, Any], message: str
) -> None:
    run = trained(tmp_path / "run", "mf", {})
    assert read_back(altered(run), tmp_path / "b").made == run.made
    with pytest.raises(StateError, match=message):
        read_back(altered(run, said, **arrays), tmp_path / "b")


def test_neighbours_that_are_no_items_are_refused(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "itemknn", {"neighbors": 7})
    for bad in (ITEMS, -1, 0.5):
        neighbors = run.shared["neighbors"].copy()
        neighbors[5, 2] = bad
        with pytest.raises(StateError, match="'neighbors' has numbers that are no items: 0 to 59 are expected"):
            read_back(altered(run, neighbors=neighbors), tmp_path / "b")


def test_a_run_that_is_not_finite_is_not_exported(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "mf", {})
    run.folder.write_model({"item_embedding": TABLE * np.nan}, run.made, None)
    with pytest.raises(StateError, match=r"run is damaged: parameter 'item_embedding' has numbers that are not finite"):
        export_run(run.folder, "int8", tmp_path / "m", 3)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("name", "what"), [("model.safetensors", "model"), ("config.toml", "config"), ("link", "model")]
)
def test_an_export_never_takes_the_place_of_the_run(tmp_path: Path, format: str, name: str, what: str) -> None:
    run = trained(tmp_path / "run", "mf", {})
    model = run.folder.path / "model.safetensors"
    # A folder whose model is a bundle is a run as well.
    model.write_bytes(bundle(run, run.catalog()))
    (tmp_path / "run" / "link").symlink_to(model)
    before = model.read_bytes()
    with pytest.raises(StateError, match=f"cannot write .*{name}: it is the run's own {what}"):
        export_run(run.folder, format, tmp_path / "run" / name, 3)
    assert model.read_bytes() == before


def test_a_machine_without_the_data_compares_on_drawn_histories(tmp_path: Path) -> None:
    """As the server of a deployment: it has the catalog alone."""
    run = trained(tmp_path / "run", "mf", {})
    run.catalog().to_file(tmp_path / "catalog.jsonl")
    elsewhere = {"data.name": "csv", "data.path": str(tmp_path), "data.options": '{"catalog": "catalog.jsonl"}'}
    run.folder.write_config(RunConfig.from_flat({**run.config.flat(), **elsewhere}), 1)
    found = export_run(run.folder, "int8", tmp_path / "m", 40)
    assert (found["users"], found["whose"]) == (40, "with histories that were drawn")
    assert found["formats"][1]["overlap"] > 0.9


def test_of_neighbours_only_those_kept_are_in_the_graph(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "itemknn", {"neighbors": 7})
    model = shared_model(run, run.catalog())
    assert isinstance(model, ItemItem)
    assert sum(buffer.numel() for buffer in graph_of(model).module.buffers()) == 2 * 7 * ITEMS
