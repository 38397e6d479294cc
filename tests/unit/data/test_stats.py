import builtins
import json

import numpy as np
import pandas as pd
import pytest

from fedrec_app.data.schema import Catalog, Dataset
from fedrec_app.data.stats import gini, plot, stats
from fedrec_app.errors import DataError


def dataset(**extra: list) -> Dataset:
    raw = pd.DataFrame({"user_id": list("aaabb"), "item_id": list("xyzxy"), **extra})
    return Dataset.assemble(raw, catalog=Catalog(tuple("vwxyz")))


def test_gini_of_known_distributions() -> None:
    assert gini(np.array([3, 3, 3, 3])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(3 / 4)
    assert gini(np.array([1, 3])) == pytest.approx(1 / 4)


def test_numbers_of_a_small_data_set() -> None:
    found = stats(dataset(), np.array([2, 0]), 3)
    assert found == {
        "users": 2,
        "items": 5,
        "interactions": 5,
        "timestamps": False,
        "density": 0.5,
        "gini": pytest.approx(12 / 25),
        "share_of_top_1%": 0.4,
        "share_of_top_10%": 0.4,
        "share_of_top_20%": 0.4,
        "interactions_per_user": pytest.approx(
            {"p0": 2, "p25": 2.25, "p50": 2.5, "p75": 2.75, "p90": 2.9, "p99": 2.99, "p100": 3}
        ),
        "cold_items": 2,
        "popularity": [[1, 2], [2, 2], [3, 1], [4, 0], [5, 0]],
        "users_per_node": [1, 0, 1],
        "interactions_per_node": [2, 0, 3],
        "empty_nodes": 1,
    }
    json.dumps(found)


def test_impressions_count_clicks() -> None:
    assert stats(dataset(label=[1, 0, 0, 1, 1]))["clicks"] == 3


def test_plot_is_a_png(tmp_path) -> None:
    plot(stats(dataset()), tmp_path / "one.png")
    plot(stats(dataset(), np.array([0, 1]), 2), tmp_path / "two.png")
    for name in ("one.png", "two.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"pip install 'fedrec\[report\]'"):
        plot({}, tmp_path / "x.png")
