"""Runs of an experiment: in this process, and kept in a folder so that an interrupted experiment goes on."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedrec_app.replicates import Draws
from fedrec_app.simulate import simulate
from strategies.rounds import Progress, RoundRecord

METRIC = "ndcg@10"


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        summary: what summary.json holds.
        validation: (round, NDCG@10 of full ranking on validation) of each round that was evaluated.
        replicates: NDCG@10 of full ranking on test in each bootstrap draw of users. Runs on the same data draw the
            same users, so differences between two runs are paired.
    """

    summary: dict[str, Any]
    validation: list[tuple[int, float]]
    replicates: list[float]

    @property
    def best(self) -> float:
        """The best NDCG@10 on validation."""
        return max(value for _, value in self.validation)

    def first_round(self, value: float) -> int | None:
        """Returns the first round that reached a value on validation, or None."""
        return next((at for at, found in self.validation if found >= value), None)


@dataclass(frozen=True)
class Runs:
    """How an experiment makes its runs.

    Attributes:
        data: settings of the data.
        num_rounds: of each run.
        num_nodes: that the users are dealt to.
        keep: folder where finished runs stay, one file each: a run that is there is not made again. Empty it after a
            change of code. None: nothing is kept.
    """

    data: dict[str, Any]
    num_rounds: int = 100
    num_nodes: int = 8
    keep: Path | None = None

    def run(self, settings: Mapping[str, Any]) -> Finished:
        """Returns the finished run with these settings.

        Raises:
            FedrecError: see `simulate`.
        """
        flat = {**self.data, **settings, "num-server-rounds": self.num_rounds}
        kept = self._kept(flat)
        if kept is not None and kept.is_file():
            found = json.loads(kept.read_text(encoding="utf-8"))
            return Finished(found["summary"], [(at, v) for at, v in found["validation"]], found["replicates"])
        finished = self._run(flat)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps({"settings": flat, **asdict(finished)}), encoding="utf-8")
        return finished

    def _run(self, flat: Mapping[str, Any]) -> Finished:
        validation: list[tuple[int, float]] = []
        draws = Draws()

        def watch(record: RoundRecord, progress: Progress, num_rounds: int) -> None:
            if record.validation is not None:
                validation.append((record.round, float(record.validation[METRIC])))

        with tempfile.TemporaryDirectory() as folder:
            result = simulate({**flat, "output-dir": folder}, self.num_nodes, [watch], taps=[draws])
        replicates = draws.replicates()
        return Finished(result.summary, validation, [] if replicates is None else replicates.draws(METRIC).tolist())

    def _kept(self, flat: Mapping[str, Any]) -> Path | None:
        if self.keep is None:
            return None
        text = json.dumps([self.num_nodes, sorted(flat.items())])
        return self.keep / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
