"""What a few malicious nodes achieve, and that a norm bound with a row cap takes it from them at no cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.federation.poisoning import case, settings

CAPPED = "norm bound and row cap"


def test_a_row_cap_stops_a_promotion_that_plain_averaging_lets_through(tmp_path: Path) -> None:
    users = {"num_users": 200, "num_items": 400, "mean_interactions": 40}
    flat = {
        "data.name": "synthetic", "data.options": json.dumps(users), "output-dir": str(tmp_path),
        "num-server-rounds": 20,
    }  # fmt: skip
    clean = case("none", "none", flat, 40)
    attacked = case("boosted", "none", flat, 40)
    defended = case("boosted", CAPPED, flat, 40)
    adaptive = case("bounded", CAPPED, flat, 40)
    assert clean.num_malicious == 2
    assert clean.exposure < 0.1
    assert attacked.exposure > 0.5
    for outcome in (defended, adaptive):
        assert outcome.exposure < 0.1
        assert outcome.hit_rate >= 0.9 * clean.hit_rate


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_row_cap_stops_5_percent_of_200_nodes_on_ml_100k(tmp_path: Path, ml_100k: Path, seed: int) -> None:
    flat = settings(ml_100k, tmp_path, seed)
    clean = case("none", "none", flat, 200)
    attacked = case("boosted", "none", flat, 200)
    defended = case("boosted", CAPPED, flat, 200)
    adaptive = case("bounded", CAPPED, flat, 200)
    assert clean.num_malicious == 10
    assert clean.exposure < 0.1
    assert attacked.exposure > 0.5
    for outcome in (defended, adaptive):
        assert outcome.exposure < 0.1
        assert outcome.hit_rate >= 0.9 * clean.hit_rate
