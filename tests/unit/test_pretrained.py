"""`model.init-from`: what a file may hold, how rows find their items, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from safetensors.torch import save_file

from fedrec_app.artifacts import ITEM_IDS, Made, RunFolder, packed_ids
from fedrec_app.data.catalog import Catalog
from fedrec_app.errors import StateError
from fedrec_app.models.base import Recommender, initialise
from fedrec_app.models.neumf import NeuMF
from fedrec_app.pretrained import take
from fedrec_app.records import Arrays

DIM = 3
ITEMS = ("a", "b", "c", "d", "e")


def model(items: Sequence[str] = ITEMS) -> Recommender:
    return initialise(NeuMF(DIM, NeuMF.Options(layers=(2,))), Catalog.of_ids(items), None, seed=1)


def shared_of(one: Recommender) -> Arrays:
    return {name: one.get_parameter(name).detach().numpy().copy() for name in one.shared_names()}


def trained(items: Sequence[str] = ITEMS) -> Arrays:
    """Returns parameters that no seed gives, with a row of each item that says which item it is of."""
    result = {}
    for name, array in shared_of(model(items)).items():
        own = np.full_like(array, 7.0)
        if name.startswith("item_"):
            own += np.array([ord(item) for item in items], dtype=np.float32).reshape(-1, *([1] * (array.ndim - 1)))
        result[name] = own
    return result


def written(path: Path, arrays: Mapping[str, NDArray], **metadata: str) -> str:
    file = path / "start.safetensors"
    file.write_bytes(save(dict(arrays), metadata=metadata or None))
    return str(file)


def a_run(path: Path, items: Sequence[str], arrays: Arrays) -> RunFolder:
    folder = RunFolder(path)
    made = Made(Catalog.of_ids(items).hash, 3, "line", "neumf")
    folder.write_model(arrays, made, np.ones(len(items), dtype=np.int64), items)
    return folder


def taken(location: str, items: Sequence[str] = ITEMS) -> Arrays:
    one = model(items)
    take(one, Catalog.of_ids(items), location)
    return shared_of(one)


def test_a_run_starts_from_the_folder_of_an_earlier_one(tmp_path: Path) -> None:
    folder, one = a_run(tmp_path, ITEMS, trained()), model()
    start = take(one, Catalog.of_ids(ITEMS), str(tmp_path))
    for name, array in trained().items():
        np.testing.assert_array_equal(shared_of(one)[name], array, err_msg=name)
    assert (start.missing, start.new_items, start.items_left_out) == ((), (), 0)
    assert start.lines() == [f"7 parameters start from {tmp_path / 'model.safetensors'}"]
    assert folder.read_model()[0].keys() == trained().keys()


def test_a_plain_file_needs_no_metadata_and_what_it_lacks_starts_as_the_seed_says(tmp_path: Path) -> None:
    arrays = {name: array for name, array in trained().items() if name != "item_gmf" and not name.startswith("mlp")}
    one = model()
    start = take(one, Catalog.of_ids(ITEMS), written(tmp_path, arrays))
    found, seeded = shared_of(one), shared_of(model())
    for name in found:
        np.testing.assert_array_equal(found[name], arrays.get(name, seeded[name]), err_msg=name)
    assert start.missing == ("item_gmf", "mlp.0.weight", "mlp.0.bias")
    assert "start as the seed says: item_gmf, mlp.0.weight, mlp.0.bias" in start.lines()[1]
    assert start.to_json()["missing"] == list(start.missing)


def test_rows_of_another_catalog_are_matched_by_item(tmp_path: Path) -> None:
    a_run(tmp_path, ("b", "c", "e", "x", "z"), trained(("b", "c", "e", "x", "z")))
    items = ("a", "b", "d", "e", "f", "g", "h", "x", "y")
    one = model(items)
    start = take(one, Catalog.of_ids(items), str(tmp_path))
    seeded = shared_of(model(items))
    for name in ("item_gmf", "item_bias"):
        for row, item in enumerate(items):
            known = item in "bex"
            expected = np.full_like(seeded[name][row], 7.0 + ord(item)) if known else seeded[name][row]
            np.testing.assert_array_equal(shared_of(one)[name][row], expected, err_msg=f"{name} of {item}")
    assert start.new_items == ("a", "d", "f", "g", "h", "y")
    assert start.items_left_out == 2
    assert start.lines()[1:] == [
        "6 items are not in the file and start as the seed says: a, d, f, g, h, ...",
        "2 items of the file are not in the catalog and are left out",
    ]
    assert start.to_json()["new_item_ids"] == ["a", "d", "f", "g", "h"]


def test_files_of_earlier_versions_start_runs_on_the_same_catalog_only(tmp_path: Path) -> None:
    file = written(
        tmp_path, trained(), **{"format": "fedrec-model/1", **Made(Catalog.of_ids(ITEMS).hash, 1, "l").written()}
    )
    np.testing.assert_array_equal(taken(file)["item_gmf"], trained()["item_gmf"])
    with pytest.raises(StateError, match="of another catalog and does not say which items its rows are of"):
        taken(file, ("a", "b", "c", "d", "f"))
    layers = {name: array for name, array in trained().items() if not name.startswith("item_")}
    file = written(tmp_path, layers, **{"catalog-hash": "another"})
    np.testing.assert_array_equal(taken(file)["output.bias"], trained()["output.bias"])


def changed(**changes: Any) -> Arrays:
    return {**trained(), **{name.replace("__", "."): array for name, array in changes.items()}}


REFUSED: dict[str, tuple[Mapping[str, NDArray], str]] = {
    "another shape": (
        changed(output__weight=np.zeros((1, 4), dtype=np.float32)),
        r"'output.weight' has shape \(1, 4\) of F32, \(1, 5\) of F32 is expected$",
    ),
    "another type": (changed(item_bias=np.zeros(5)), r"'item_bias' has shape \(5,\) of F64, \(5,\) of F32 is exp"),
    "other rows and no ids": (
        changed(item_bias=np.zeros(6, dtype=np.float32)),
        r"'item_bias' has shape \(6,\) of F32.*; the file does not say which items its rows are of",
    ),
    "rows that are not those of its ids": (
        changed(**{ITEM_IDS: packed_ids(("a", "b", "c", "d", "e", "f"))}),
        r"'item_gmf' has shape \(5, 3\) of F32, \(6, 3\) of F32 is expected$",
    ),
    "an unknown name": (
        changed(item_gfm=np.zeros((5, 3), dtype=np.float32)),
        r"unknown parameter of model 'neumf' 'item_gfm': one of item_bias, .* \(did you mean 'item_gmf'\?\)",
    ),
    "private rows": (
        changed(user_gmf=np.zeros((4, 3), dtype=np.float32)), "'user_gmf' of model 'neumf' is private: it stays"
    ),
    "not a number": (changed(item_bias=np.full(5, np.nan, dtype=np.float32)), "'item_bias' has numbers that are not f"),
    "nothing": ({"statistics/item-counts": np.zeros(5, dtype=np.int64)}, "no parameters: model 'neumf' has item_gmf"),
    "items of another world": (changed(**{ITEM_IDS: packed_ids(("v", "w", "x", "y", "z"))}), "none of its 5 items is"),
    "an item twice": (changed(**{ITEM_IDS: packed_ids(("a", "b", "c", "d", "a"))}), "is damaged.*an id is there twice"),
    "ids that are numbers": (
        changed(**{ITEM_IDS: np.frombuffer(b"[1, 2, 3, 4, 5]", dtype=np.uint8)}), "is damaged.*a list of ids"
    ),
    "ids that are no JSON": (changed(**{ITEM_IDS: np.frombuffer(b'["a', dtype=np.uint8)}), "is damaged"),
    "ids that are no text": (changed(**{ITEM_IDS: np.full(9, 255, dtype=np.uint8)}), "is damaged"),
    "ids that are no bytes": (changed(**{ITEM_IDS: np.full(9, 1e9)}), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path: Path, case: str) -> None:
    arrays, message = REFUSED[case]
    one = model()
    with pytest.raises(StateError, match=f"(?s){message}"):
        take(one, Catalog.of_ids(ITEMS), written(tmp_path, arrays))
    for name, array in shared_of(model()).items():
        np.testing.assert_array_equal(shared_of(one)[name], array, err_msg=name)


def test_files_that_are_no_safetensors_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "start.safetensors"
    with pytest.raises(
        StateError, match=r"init-from: there is no file .*start.safetensors; a safetensors file or a run.s folder"
    ):
        taken(str(file))
    with pytest.raises(StateError, match=r"init-from: there is no file .*model.safetensors"):
        taken(str(tmp_path))
    with pytest.raises(StateError, match=r"init-from: there is no file a{300}"):
        taken("a" * 300)
    whole = save(trained())
    header = int.from_bytes(whole[:8], "little")
    liar = (2**62).to_bytes(8, "little") + whole[8:]
    for damaged in (b"", whole[:-1], whole[: header // 2], liar, pickle.dumps(trained()), b"PK\x03\x04" + whole):
        file.write_bytes(damaged)
        with pytest.raises(StateError, match="is damaged, or is no safetensors file"):
            taken(str(file))
    save_file({"item_bias": torch.zeros(5, dtype=torch.bfloat16)}, file)
    with pytest.raises(StateError, match=r"'item_bias' has shape \(5,\) of BF16, \(5,\) of F32 is expected"):
        taken(str(file))
