"""Faults: what is hurt, how, and when."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from campaign.place import CLIENT_APP, SERVER_APP, Place
from fedrec_app import hash_chain
from fedrec_app.checkpoint import FOLDER
from fedrec_app.operation.audit_log import AUDIT
from fedrec_app.privacy.ledger import LEDGER
from fedrec_app.privacy.ledger_lines import read_lines
from fedrec_app.private_state import PrivateState

KINDS: Mapping[str, tuple[str, ...]] = {
    "kill": ("ServerApp", "SuperLink", "SuperNode", "ClientApp"),
    "pause": ("ServerApp", "SuperLink", "SuperNode", "ClientApp"),
    "cut": ("one link dropped", "one link stalled", "all links dropped"),
    "corrupt": ("checkpoint", "private state", "ledger", "audit log"),
}
_OF_ONE_NODE = ("SuperNode", "ClientApp", "one link dropped", "one link stalled", "private state")
_PATIENCE = 30.0


@dataclass(frozen=True)
class Fault:
    """One fault, drawn.

    Attributes:
        kind, target: see `KINDS`.
        node: which SuperNode, where the target is one of several.
        round: the round that it strikes in.
        moment: seconds after that round began.
        seconds: that a pause or a cut lasts.
        private: whether the run has user-level privacy.
        min_nodes: quorum of the run.
        damage: "truncate" or "flip", where something is corrupted.
    """

    kind: str
    target: str
    node: int
    round: int
    moment: float
    seconds: float
    private: bool
    min_nodes: int
    damage: str

    @property
    def lasts(self) -> bool:
        """Whether it ends by itself."""
        return self.kind in ("pause", "cut")

    @property
    def alters_log(self) -> bool:
        """Whether it changes a whole line of the audit log, which no crash does."""
        return self.target == "audit log" and self.damage == "flip"

    def when(self) -> str:
        """Returns when it strikes, in words."""
        text = f"round {self.round} + {self.moment:.1f} s"
        return f"{text}, for {self.seconds:.0f} s" if self.lasts else text

    def what(self) -> str:
        """Returns what it hurts, in words."""
        one_of_several = self.target in (
            "SuperNode",
            "ClientApp",
            "one link dropped",
            "one link stalled",
            "private state",
        )
        return f"{self.target} {self.node}" if one_of_several else self.target


def draw(number: int, seed: int, num_nodes: int, rounds: int, only: Sequence[str] = ()) -> list[Fault]:
    """Returns faults drawn from a seed: every kind and target comes once before any comes again.

    Args:
        number: how many.
        seed: of the draws.
        num_nodes: SuperNodes that there are.
        rounds: of each run.
        only: kinds; empty: all.
    """
    generator = random.Random(seed)
    pairs = [(kind, target) for kind, targets in KINDS.items() if not only or kind in only for target in targets]
    drawn: list[Fault] = []
    while len(drawn) < number:
        # All of a batch at once, whatever the number: a short campaign is the beginning of a long one.
        batch = [pair for _ in range(2) for pair in generator.sample(pairs, len(pairs))]
        drawn += [_drawn(kind, target, generator, num_nodes, rounds) for kind, target in batch]
    return drawn[:number]


def _drawn(kind: str, target: str, generator: random.Random, num_nodes: int, rounds: int) -> Fault:
    last = rounds
    # What is corrupted must be there: a round of its own, and one before.
    first = 3 if kind == "corrupt" else 1
    quorum = generator.choice([num_nodes - 1, num_nodes - 1, num_nodes]) if num_nodes > 1 else 1
    return Fault(
        kind,
        target,
        generator.randrange(num_nodes),
        generator.randint(min(first, last), last),
        generator.uniform(0.0, 6.0),
        generator.uniform(5.0, 25.0),
        target == "ledger" or generator.random() < 0.4,
        quorum,
        generator.choice(["truncate", "flip"]),
    )


def strike(fault: Fault, place: Place) -> str:
    """Returns what was done: kills, pauses or cuts now, and waits until a pause or cut is over."""
    loopback = place.loopback
    node = loopback.supernodes[fault.node]
    if fault.kind == "cut":
        return _cut(fault, place)
    if fault.kind == "corrupt" or fault.target == "ServerApp":
        find: Callable[[], psutil.Process | None] = lambda: place.process(loopback.superlink, SERVER_APP)  # noqa: E731
    elif fault.target == "ClientApp":
        find = lambda: place.process(node, CLIENT_APP)  # noqa: E731
    else:
        part = loopback.superlink if fault.target == "SuperLink" else node
        find = lambda: psutil.Process(part.pid) if part.alive else None  # noqa: E731
    process = _awaited(find)
    if process is None:
        return f"no {fault.target} within {_PATIENCE:.0f} s"
    with contextlib.suppress(psutil.NoSuchProcess):
        if fault.kind == "pause":
            process.suspend()
            time.sleep(fault.seconds)
            process.resume()
            return f"process {process.pid} stood still for {fault.seconds:.1f} s"
        process.kill()
        return f"process {process.pid} killed"
    return f"process {process.pid} had just ended"


def corrupt(fault: Fault, place: Place, folder: Path, lineage: str, newest: int) -> str:
    """Returns what was damaged of a run that is down.

    Args:
        fault: of kind "corrupt".
        place: the deployment.
        folder: of the run.
        lineage: of its private state.
        newest: round of its newest checkpoint.
    """
    if fault.target == "checkpoint":
        return _damage(folder / FOLDER / f"{newest}.safetensors", fault.damage)
    if fault.target == "private state":
        state = PrivateState(place.state_dir(fault.node), lineage, fault.node)
        version = max(number for number in state.rounds() if number <= newest)
        return _damage(state.folder / f"{version}.safetensors", fault.damage)
    path = folder / (LEDGER if fault.target == "ledger" else AUDIT)
    if fault.alters_log:
        lines = path.read_bytes().splitlines(keepends=True)
        lines[1] = lines[1].replace(b'"what"', b'"whit"', 1)
        path.write_bytes(b"".join(lines))
        return f"{path.name}: line 2 altered"
    torn = _next_audit_line(path) if fault.target == "audit log" else _next_charge(path, fault.damage)
    with path.open("ab") as stream:
        stream.write(torn)
    return f"{path.name}: {len(torn)} bytes of a further line"


def _next_audit_line(path: Path) -> bytes:
    """Returns the beginning of the line that would come next."""
    lines = hash_chain.read(path.read_bytes())
    return f'{{"seq":{len(lines.records)},"previous":"{lines.digest}","wh'.encode()


def _next_charge(path: Path, damage: str) -> bytes:
    """Returns the beginning of the charge that would come next, cut before or after its event."""
    chain = read_lines(path, path.read_bytes())
    line = chain.next(chain.charges[-1].event, {"for": "round", "round": 0})
    return line[: line.index(b'"what"') + 3] if damage == "flip" else line[:60]


def _damage(path: Path, damage: str) -> str:
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        del content[len(content) // 2 :]
    else:
        place = len(content) - 9
        content[place] ^= 0x40
    path.write_bytes(content)
    return f"{path.name}: {'half of it lost' if damage == 'truncate' else 'a bit of its data flipped'}"


def _cut(fault: Fault, place: Place) -> str:
    links = place.links if fault.target == "all links dropped" else [place.links[fault.node]]
    for link in links:
        (link.stall if fault.target == "one link stalled" else link.drop)()
    time.sleep(fault.seconds)
    for link in links:
        link.heal()
    return f"{len(links)} links for {fault.seconds:.1f} s"


def _awaited(find: Callable[[], psutil.Process | None]) -> psutil.Process | None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if (process := find()) is not None:
            return process
        time.sleep(0.1)
    return None
