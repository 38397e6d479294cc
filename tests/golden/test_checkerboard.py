"""Data with a known right answer: even users take even items, odd users odd ones, and whoever learns must see it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedrec_app.recommend import recommend
from fedrec_app.simulate import simulate

USERS, ITEMS, TAKEN = 40, 60, 22
TOP = 5  # of the 8 items of his own colour that a user has not taken
CHANCE = 10 / (ITEMS - (TAKEN - 1))  # of a hit among ten, where all but the test item is known
MODELS: dict[str, dict[str, Any]] = {
    "mf": {"num-server-rounds": 8},
    "mf bce": {"num-server-rounds": 12, "model.options": '{"loss": "bce"}', "train.num-negatives": 4},
    "neumf": {"num-server-rounds": 24, "model.name": "neumf"},
}


def checkerboard(path: Path) -> dict[str, list[int]]:
    """Writes a shuffled file with names of its own for its columns, and returns what each user took."""
    generator = np.random.default_rng(7)
    taken = {f"user {u}": [int(i) * 2 + u % 2 for i in generator.permutation(ITEMS // 2)[:TAKEN]] for u in range(USERS)}
    rows = [f"{user},item {item},{1000 * at}" for user, items in taken.items() for at, item in enumerate(items)]
    shuffled = [rows[row] for row in generator.permutation(len(rows))]
    path.write_text("\n".join(["who,what,when", *shuffled]) + "\n")
    return taken


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and lose a factor of ten where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("unit", ["user", "node"])
@pytest.mark.parametrize("model", MODELS)
def test_everybody_is_recommended_items_of_his_own_colour(tmp_path: Path, model: str, unit: str) -> None:
    taken = checkerboard(tmp_path / "board.csv")
    flat = {
        "output-dir": str(tmp_path / "out"), "evaluate.every": 4, "train.unit": unit,
        "data.name": "csv", "data.path": str(tmp_path / "board.csv"),
        "data.columns": "user_id=who,item_id=what,timestamp=when", **MODELS[model],
    }  # fmt: skip
    result = simulate(flat, 3)
    assert (result.summary["unit"], result.summary["test"]["num_users"]) == (unit, USERS)
    assert result.summary["test"]["hr@10"] >= 0.95 > 3 * CHANCE
    assert result.summary["test"]["ci"]["hr@10"][0] > 2 * CHANCE
    for user, items in taken.items():
        best = [int(item["item_id"].split()[1]) for item in recommend(result.folder, user, [], TOP)["items"]]
        assert len(best) == TOP
        assert not set(best) & set(items), f"{user} has these already"
        assert {item % 2 for item in best} == {items[0] % 2}, f"{user}: {best}"
