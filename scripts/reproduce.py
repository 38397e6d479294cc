#!/usr/bin/env python3
"""Makes the tables in docs/results.md and docs/privacy.md: every figure there comes from this script.

    python scripts/reproduce.py first-models --data-dir DATA --out docs/results.md
    python scripts/reproduce.py strategies --data-dir DATA --out docs/results.md
    python scripts/reproduce.py models --data-dir DATA --out docs/results.md
    python scripts/reproduce.py sequences --data-dir DATA --out docs/results.md
    python scripts/reproduce.py large --data-dir DATA --out docs/results.md
    python scripts/reproduce.py privacy --data-dir DATA --out docs/privacy.md
    python scripts/reproduce.py attacks --data-dir DATA --out docs/privacy.md
    python scripts/reproduce.py tune-strategies --data-dir DATA        how the options of `strategies` were chosen

`--data-dir` holds a folder `ml-100k` in the official layout (`fedrec data prepare ml-100k --out DIR/ml-100k`), and for
`models` also `amazon-video` and `lastfm-2k`. Each
experiment replaces its own section of the page. With `--keep DIR` finished runs stay there, and are not made again.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from experiments.attacks import attacks
from experiments.first_models import first_models
from experiments.large import large
from experiments.models import models
from experiments.page import write_section
from experiments.privacy import PICTURE, privacy
from experiments.runs import Runs
from experiments.sequences import sequences
from experiments.strategies import strategies, tune

SECTIONS = {
    "first-models": first_models,
    "strategies": strategies,
    "models": models,
    "sequences": sequences,
    "large": large,
    "attacks": attacks,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the experiment named on the command line.

    Args:
        arguments: of the command line; those of this process where None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=[*SECTIONS, "privacy", "tune-strategies"])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", default="", help="run only rows whose name holds this text")
    parser.add_argument("--keep", type=Path, help="keep finished runs here, and use those that are there")
    parser.add_argument("--out", type=Path, help="replace the section of this page")
    given = parser.parse_args(arguments)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    data = {"data.name": "ml-100k", "data.path": str((given.data_dir / "ml-100k").absolute())}
    runs = Runs(data, given.rounds, keep=given.keep)
    if given.experiment == "tune-strategies":
        tune(runs, given.only)
        return
    if given.experiment == "privacy":
        section = privacy(runs, given.only, given.out.with_name(PICTURE) if given.out else None)
    else:
        section = SECTIONS[given.experiment](runs, given.only)
    print(section)
    if given.out:
        write_section(given.out, given.experiment, section)


if __name__ == "__main__":
    main()
