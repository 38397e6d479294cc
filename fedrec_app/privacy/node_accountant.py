"""What one node has released under example-level privacy: a ledger of its own, beside its private state.

    <state-dir>/<lineage>.privacy/<partition>.jsonl     the ledger, see `fedrec_app.privacy.ledger`
    <state-dir>/<lineage>.privacy/<partition>.tip       its length and digest after the last charge
    <state-dir>/<lineage>.<partition>.charged           empty: says that there must be a ledger

A node charges a round before it trains it, so a crash can only count too much, and a round that is asked for twice is
charged twice. The ledger is one lineage's: what other runs released about the same data is in theirs.
"""

from __future__ import annotations

import json
from pathlib import Path

from fedrec_app.errors import StateError
from fedrec_app.files import write_atomically
from fedrec_app.privacy.accounting import epsilon
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.ledger import Ledger


def steps_a_round(local_epochs: int, sampling_rate: float) -> int:
    """Returns the number of DP-SGD steps that a node takes in a round, whatever its data: a step sees a share q of its
    examples in expectation, so 1/q of them are an epoch.

    Args:
        local_epochs: `train.local-epochs`.
        sampling_rate: q, `privacy.sampling-rate`.
    """
    return max(1, round(local_epochs / sampling_rate))


def release_of_a_round(noise_multiplier: float, sampling_rate: float, local_epochs: int) -> Gaussian:
    """Returns what a node releases in one round; it follows from settings alone, so the server knows it too.

    Args:
        noise_multiplier: z, noise of a step over the bound of an example's gradient.
        sampling_rate: q, chance of an example to be in a step.
        local_epochs: see `steps_a_round`.
    """
    return Gaussian(noise_multiplier, sampling_rate, steps_a_round(local_epochs, sampling_rate))


class NodeAccountant:
    """The ledger of a node in a lineage; nothing is made before the first charge.

    Args:
        state_dir: where the node keeps state.
        lineage: of the run.
        partition_id: of the node.
        begun: whether the node holds something that it trained in this lineage, so that there must be a ledger.
        most_steps: steps that may be charged in all, whoever asks for more; 0: no bound.

    Raises:
        ValueError: the lineage is not a plain name.
    """

    def __init__(
        self, state_dir: Path, lineage: str, partition_id: int, begun: bool = False, most_steps: int = 0
    ) -> None:
        if not lineage or lineage.startswith(".") or Path(lineage).name != lineage:
            raise ValueError(f"lineage {lineage!r} is not a plain name")
        self.path = state_dir / f"{lineage}.privacy" / f"{partition_id}.jsonl"
        self._header = {"unit": "example", "lineage": lineage, "partition": partition_id}
        self._tip = self.path.with_suffix(".tip")
        self._marker = state_dir / f"{lineage}.{partition_id}.charged"
        self._begun, self._most_steps = begun, most_steps

    def charge(self, release: Gaussian, server_round: int) -> None:
        """Charges a round; when this returns, the charge is on the disk and the round may be trained.

        Args:
            release: what the round releases.
            server_round: the round.

        Raises:
            StateError: the ledger is damaged, lost, shorter than it was, of another node, or cannot be written; or
                what may be charged is used up.
        """
        with self._open() as ledger:
            used = sum(event.count for event in ledger.events)
            if self._most_steps and used + release.count > self._most_steps:
                raise StateError(
                    f"{self.path} is charged with {used} steps: a round of {release.count} more would exceed the "
                    f"{self._most_steps} that this run may take"
                )
            ledger.charge(release, {"for": "round", "round": server_round})
            tip = {"length": len(ledger), "digest": ledger.digest}
        try:
            write_atomically(self._tip, json.dumps(tip).encode())
        except OSError as error:
            raise StateError(f"cannot write {self._tip}: {error}") from None

    def releases(self) -> list[Gaussian]:
        """Returns everything that was charged, oldest first.

        Raises:
            StateError: as `charge`.
        """
        if not self._exists():
            return []
        with self._open() as ledger:
            return ledger.events

    def epsilon(self, delta: float) -> float:
        """Returns the epsilon of everything that was charged, against whoever sees all that this node sends.

        Args:
            delta: above 0, below 1.

        Raises:
            StateError: as `charge`.
        """
        return epsilon(self.releases(), delta)

    def _exists(self) -> bool:
        """Returns whether there is a ledger.

        Raises:
            StateError: there was one.
        """
        there = self.path.is_file()
        if not there and (self._begun or self._tip.exists() or self._marker.exists()):
            raise StateError(
                f"the privacy ledger {self.path} is lost: what this node has released is not known: it trains no more"
            )
        return there

    def _open(self) -> Ledger:
        if not self._exists():
            ledger = Ledger.create(self.path, self._header)
            write_atomically(self._marker, b"")
            return ledger
        ledger = Ledger.open(self.path)
        try:
            if dict(ledger.header) != self._header:
                raise StateError(f"the privacy ledger {self.path} is of {dict(ledger.header)}, not of {self._header}")
            if self._tip.exists():
                ledger.require(*self._length_and_digest())
        except BaseException:
            ledger.close()
            raise
        return ledger

    def _length_and_digest(self) -> tuple[int, str]:
        try:
            tip = json.loads(self._tip.read_bytes())
            return int(tip["length"]), str(tip["digest"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StateError(f"{self._tip} is damaged: {error!r}") from None
