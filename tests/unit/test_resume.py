"""A run that was killed and goes on from its checkpoint ends like one that was not."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedrec_app import client_app, node_data
from fedrec_app.checkpoint import Checkpoints
from fedrec_app.config import RunConfig, parse_options
from fedrec_app.errors import FedrecError, StateError
from fedrec_app.local_grid import LocalGrid
from fedrec_app.models.registry import resolved
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.ledger import Ledger
from fedrec_app.records import Arrays, Ask, from_record, to_record
from strategies.base import RecStrategy
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.progress import Progress, RoundRecord
from strategies.registry import make_strategy
from strategies.rollcall import Roster
from strategies.rounds import run_rounds
from strategies.saver import Saver
from strategies.settings import Settings
from tests.small import SMALL
from tests.unit.test_rollcall_rounds import PARAMS, Nodes, failing, roster, table

ROUNDS = 6
MF = {"train.batch-size": 8, "model.options": '{"loss": "bce"}', "train.num-negatives": 2}
NEUMF = {"model.name": "neumf", "model.embedding-dim": 4, "model.options": '{"layers": [4]}'}
ADAM = {"train.optimizer": "adam", "train.learning-rate": 0.01, "train.private-learning-rate": 0.01}
RUNS: dict[str, dict[str, Any]] = {
    "mf fedavgm": {**MF, "strategy.name": "fedavgm"},
    "mf fedadam": {**MF, "strategy.name": "fedadam", "strategy.options": '{"learning_rate": 0.03, "tau": 1e-4}'},
    "neumf fedadam": {**NEUMF, "strategy.name": "fedadam", "strategy.fraction-train": 0.6},
    "neumf fedavgm adam": {**NEUMF, **ADAM, "strategy.name": "fedavgm"},
    "neumf scaffold": {**NEUMF, "strategy.name": "scaffold", "strategy.options": "{}", "train.unit": "node"},
}


class Killed(Exception):
    """Stands for kill -9."""


class Process:
    """Everything that a process which serves a run has in memory, made anew.

    Args:
        output_dir: with the nodes' state, and the checkpoints.
        settings: of the run.
    """

    def __init__(self, output_dir: Path, settings: dict[str, Any]) -> None:
        own = {"output-dir": str(output_dir), "data.options": SMALL, "num-server-rounds": ROUNDS}
        flat = {**own, "privacy.min-cohort": 1, **settings}
        self.config: RunConfig = resolved(flat)
        self.model = node_data.initial_model(self.config, node_data.catalog(self.config.data))
        self.grid = LocalGrid(client_app.app, flat, 5)
        members = Roster("", "")
        members.wait(self.grid, 5)
        c, options = self.config, parse_options(self.config.strategy.options, "strategy.options")
        unit = "node" if c.train.unit == "node" else "user"
        strategy = make_strategy(
            c.strategy.name, options,
            Settings(c.seed, c.strategy.fraction_train, row_names=tuple(self.model.row_names()), unit=unit),
            members,
        )  # fmt: skip
        assert isinstance(strategy, RecStrategy)
        self.strategy = strategy
        self.checkpoints = Checkpoints(output_dir / "checkpoints")

    def run(self, every: int = 1, killed_in: int = 0, resume: Progress | None = None) -> Progress:
        """Returns the run after its last round; or it was killed at the end of one, before its checkpoint."""
        ask = ConfigRecord({Ask.LINEAGE: "a-run"})
        initial = to_record({n: self.model.get_parameter(n).detach().numpy() for n in self.model.shared_names()})
        progress = run_rounds(
            self.strategy, self.grid, initial, num_rounds=ROUNDS, train_config=ask,
            evaluate_config=ConfigRecord({**ask, Ask.PART: "validation"}),
            hooks=Dying(Saver(self.checkpoints, every, self.strategy, dict), killed_in), resume=resume,
        )  # fmt: skip
        assert not [record for record in progress.rounds if any(key.startswith("dropped/") for key in record.train)]
        return progress

    def resumed(self, every: int = 1) -> Progress:
        """Returns the run after its last round, begun with the newest checkpoint."""
        checkpoint = self.checkpoints.read_newest()
        self.strategy.load_state(checkpoint.state)
        return self.run(every, resume=Progress.of(checkpoint, self.checkpoints.needed_rounds()))


class Dying:
    """Writes checkpoints, and dies instead in one round."""

    def __init__(self, saver: Saver, killed_in: int) -> None:
        self.saver = saver
        self.killed_in = killed_in

    def on_round(self, record: RoundRecord, progress: Progress) -> None:
        if record.round == self.killed_in:
            raise Killed
        self.saver.on_round(record, progress)


def records(progress: Progress) -> list[RoundRecord]:
    """Returns what every round did, apart from how long it took and how long messages were."""
    return [replace(record, seconds=0.0, bytes_down=0) for record in progress.rounds]


def assert_same(one: Progress, other: Progress) -> None:
    assert records(one) == records(other)
    assert (one.best_round, one.best_value) == (other.best_round, other.best_value)
    for found, expected in ((one.arrays, other.arrays), (one.best_arrays, other.best_arrays)):
        left, right = from_record(found), from_record(expected)
        assert {n: a.tobytes() for n, a in left.items()} == {n: a.tobytes() for n, a in right.items()}


@pytest.mark.parametrize("which", RUNS)
def test_three_rounds_and_three_more_are_six_bit_for_bit(tmp_path: Path, which: str) -> None:
    whole = Process(tmp_path / "whole", RUNS[which])
    straight = whole.run()
    with pytest.raises(Killed):
        Process(tmp_path / "killed", RUNS[which]).run(killed_in=4)
    again = Process(tmp_path / "killed", RUNS[which])
    assert again.checkpoints.rounds() == [2, 3]
    assert_same(again.resumed(), straight)
    assert {name: array.tobytes() for name, array in again.strategy.state().items()} == {
        name: array.tobytes() for name, array in whole.strategy.state().items()
    }


@pytest.mark.parametrize("which", ["neumf fedavgm adam", "neumf scaffold", "neumf fedadam"])
def test_nodes_still_have_what_goes_with_an_older_checkpoint(tmp_path: Path, which: str) -> None:
    settings = RUNS[which]
    straight = Process(tmp_path / "whole", settings).run()
    with pytest.raises(Killed):
        Process(tmp_path / "killed", settings).run(every=2, killed_in=6)
    again = Process(tmp_path / "killed", settings)
    (again.checkpoints.folder / "4.safetensors").write_bytes(b"damaged")
    assert again.checkpoints.read_newest().round == 2  # rounds 5 and 6 were trained since
    assert_same(again.resumed(every=2), straight)


def served(folder: Path, grid: Nodes, strategy: RecStrategy, every: int = 1, **asked: Any) -> Progress:
    """Returns the run after its last round: begun anew, or with the newest checkpoint where there is one."""
    checkpoints, progress = Checkpoints(folder), None
    if checkpoints.rounds():
        checkpoint = checkpoints.read_newest()
        strategy.load_state(checkpoint.state)
        progress = Progress.of(checkpoint, checkpoints.needed_rounds())
    strategy.roster = roster()
    strategy.roster.wait(grid, 1)
    killed_in = asked.pop("killed_in", 0)
    hooks = Dying(Saver(checkpoints, every, strategy, dict), killed_in)
    return run_rounds(strategy, grid, to_record(PARAMS), hooks=hooks, resume=progress, **asked)


@pytest.mark.parametrize(
    ("found", "killed_in", "best"),
    [([0.1, 0.9, 0.2, 0.3, 0.2, 0.1], 5, 2), ([0.1, 0.2, 0.3, 0.4, 0.1, 0.9], 4, 6), ([0.5, 0.4, 0.3, 0.2, 0.9], 4, 1)],
    ids=["the best round was before", "it comes after", "the run had stopped early"],
)
def test_the_best_round_and_the_early_stop_survive(
    tmp_path: Path, found: list[float], killed_in: int, best: int
) -> None:
    asked: dict[str, Any] = {"num_rounds": len(found), "early_stopping_rounds": 2 if best == 1 else 0}
    straight = served(tmp_path / "whole", Nodes(3, found=found), FedAvg(), **asked)
    if best == 1:
        served(tmp_path / "killed", Nodes(3, found=found), FedAvg(), **asked)
    else:
        with pytest.raises(Killed):
            served(tmp_path / "killed", Nodes(3, found=found), FedAvg(), killed_in=killed_in, **asked)
    resumed = served(tmp_path / "killed", Nodes(3, found=found), FedAvg(), **asked)
    assert_same(resumed, straight)
    assert resumed.best_round == best
    assert resumed.stopped_early is straight.stopped_early is (best == 1)


def test_a_finished_run_does_nothing_and_goes_on_when_more_rounds_are_asked_for(tmp_path: Path) -> None:
    served(tmp_path, Nodes(3), FedAvg(), num_rounds=3)
    grid = Nodes(3)
    assert table(served(tmp_path, grid, FedAvg(), num_rounds=3).arrays) == 6.0
    assert {kind for kind, _ in grid.asked} == {"query"}
    assert table(served(tmp_path, Nodes(3), FedAvg(), num_rounds=5).arrays) == 10.0


def test_a_run_whose_rounds_are_all_skipped_since_its_checkpoint_still_has_a_model(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        served(tmp_path, Nodes(3), FedAvg(), num_rounds=4, killed_in=3)
    resumed = served(tmp_path, Nodes(3, failing({3, 4}, {0, 1, 2})), FedAvg(), num_rounds=4)
    assert table(resumed.arrays) == 4.0
    with pytest.raises(FedrecError, match="none of the 2 rounds took a step"):
        served(tmp_path / "other", Nodes(3, failing({1, 2}, {0, 1, 2})), FedAvg(), num_rounds=2)


class Charging(FedAdam):
    """Charges every step to a ledger before it takes it, and may die in between."""

    def __init__(self, ledger: Ledger, die_in: int = 0) -> None:
        super().__init__({"learning_rate": 0.5})
        self.ledger = ledger
        self.die_in = die_in

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        self.ledger.charge(Gaussian(1.0, 0.5), {"for": "round", "round": server_round})
        if server_round == self.die_in:
            raise KeyboardInterrupt
        return super().server_step(params, delta, server_round)


def test_a_resumed_run_goes_on_with_its_ledger_and_what_was_charged_in_vain_stays_charged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger.create(path, {}) as ledger, pytest.raises(KeyboardInterrupt):
        served(tmp_path, Nodes(3), Charging(ledger, die_in=4), num_rounds=6, choose="last")
    with Ledger.open(path) as ledger:
        progress = served(tmp_path, Nodes(3), Charging(ledger), num_rounds=6, choose="last")
        assert [charge.what["round"] for charge in ledger.charges] == [1, 2, 3, 4, 4, 5, 6]
    assert progress.best_round == 6


def test_no_round_follows_one_that_could_not_be_charged(tmp_path: Path) -> None:
    grid = Nodes(3)
    with Ledger.create(tmp_path / "ledger.jsonl", {}) as ledger:
        ledger.close()
        with pytest.raises(StateError, match="is closed: it takes no more charges"):
            served(tmp_path, grid, Charging(ledger), num_rounds=6)
    assert [kind for kind, _ in grid.asked] == ["query", "train"]


SERVES = """
import sys, time
from pathlib import Path
from fedrec_app.privacy.ledger import Ledger
from fedrec_app.records import from_record
from tests.unit.test_resume import Charging, Nodes, served

class Slow(Charging):
    def server_step(self, *given):
        time.sleep(0.02)
        return super().server_step(*given)

folder = Path(sys.argv[1])
path = folder / "ledger.jsonl"
with Ledger.open(path) if path.exists() else Ledger.create(path, {}) as ledger:
    progress = served(folder, Nodes(3), Slow(ledger), num_rounds=40, every=3)
(folder / "done.bin").write_bytes(b"".join(a.tobytes() for a in from_record(progress.arrays).values()))
"""


@pytest.mark.slow
def test_killed_again_and_again_the_run_completes_and_never_charges_less(tmp_path: Path) -> None:
    killed, straight, draws = tmp_path / "killed", tmp_path / "straight", np.random.default_rng()
    ledger, charged, kills = killed / "ledger.jsonl", 0, 0
    while not (killed / "done.bin").exists():
        process = subprocess.Popen([sys.executable, "-c", SERVES, str(killed)])
        while process.poll() is None and count(ledger) < charged + 5:
            time.sleep(0.005)
        time.sleep(draws.random() * 0.1)
        kills += process.poll() is None
        process.kill()
        process.wait()
        with Ledger.open(ledger) as found:
            assert len(found.charges) >= charged
            charged = len(found.charges)
    assert kills >= 2
    assert charged >= 40
    subprocess.run([sys.executable, "-c", SERVES, str(straight)], check=True)
    assert (killed / "done.bin").read_bytes() == (straight / "done.bin").read_bytes()


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0
