"""A small synthetic data set, and runs on it that take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedrec_app import node_data
from fedrec_app.artifacts import RunFolder
from fedrec_app.config import RunConfig
from fedrec_app.simulate import simulate

SMALL = '{"num_users": 40, "num_items": 60, "mean_interactions": 15, "min_interactions": 5}'


def run_folder(output_dir: Path, num_nodes: int = 3, **settings: Any) -> RunFolder:
    """Returns the folder of a finished run; "a__b_c" is the setting a.b-c."""
    flat = {key.replace("__", ".").replace("_", "-"): value for key, value in settings.items()}
    own = {"output-dir": str(output_dir), "data.options": SMALL, "privacy.min-cohort": 1}
    return simulate({**own, **flat}, num_nodes).folder


def somebody(options: str) -> tuple[str, list[str]]:
    """Returns a user of a synthetic data set, and the items that he met, oldest first."""
    data = RunConfig.from_flat({"data.options": options}).data
    everybody, names = node_data.cohort(data, None, 1), node_data.catalog(data).item_ids
    blocks = (everybody.train, everybody.validation, everybody.test)
    return everybody.user_ids[3], [names[item] for block in blocks for item in block[3]]
