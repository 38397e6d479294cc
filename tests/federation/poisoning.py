"""A poisoning campaign: a few nodes promote one item that nobody asked for.

They know the parameters that they are sent, which items are popular, and each other. Explicit promotion moves the
target's embedding along the mean embedding of popular items, which most users score high: PipAttack, Zhang et al.,
WSDM 2022, https://arxiv.org/abs/2110.10926; FedRecAttack, Rong et al., ICDE 2022, https://arxiv.org/abs/2204.01499.

    boosted    one round is to do all: the wanted move times the number of nodes for each attacker
    bounded    knows the defence: what it sends is in every bound already, and none of it is wasted

Everything else is the real thing: ServerApp, ClientApp, messages, the validation of replies. Figures of a campaign:

    python -m tests.federation.poisoning --data-dir DATA
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from flwr.app import Context, Message, MessageType, RecordDict
from numpy.typing import NDArray

from fedrec_app import client_app, node_data
from fedrec_app.config import RunConfig
from fedrec_app.data.cohort import Cohort
from fedrec_app.evaluation.evaluate import evaluate_cohort
from fedrec_app.evaluation.metrics import finalise
from fedrec_app.finished import FinishedRun
from fedrec_app.local_grid import LocalGrid
from fedrec_app.records import ARRAYS, DELTA, METRICS, ROWS, Arrays, Said, from_record, to_record
from fedrec_app.seeding import rng
from fedrec_app.server_app import run_server

TABLE = "item_embedding"
Kind = Literal["none", "boosted", "bounded"]
Defence = Literal["none", "norm bound", "norm bound and row cap"]
CAP = 50
OPTIONS: dict[Defence, dict[str, Any]] = {
    "none": {},
    "norm bound": {"aggregator": {"name": "norm-bound", "rows": 0}},
    "norm bound and row cap": {"aggregator": {"name": "norm-bound", "rows": CAP}},
}
CASES: tuple[tuple[Kind, Defence], ...] = (
    ("none", "none"),
    ("boosted", "none"),
    ("boosted", "norm bound"),
    ("boosted", "norm bound and row cap"),
    ("bounded", "norm bound and row cap"),
    ("bounded", "norm bound"),
)


@dataclass(frozen=True)
class Campaign:
    """Who attacks what.

    Attributes:
        kind: of attack; "none": the nodes behave.
        share: of the nodes that are malicious.
        num_popular: most popular items whose mean is the direction.
        reach: length of the wanted row, in lengths of the longest popular one.
        rows: how many rows the row cap lets be at full length, as "bounded" knows; 0: only the update is bounded.
    """

    kind: Kind = "none"
    share: float = 0.05
    num_popular: int = 20
    reach: float = 2.0
    rows: int = CAP


@dataclass(frozen=True)
class Outcome:
    """What came of it for honest users, in the last round, on full ranking.

    Attributes:
        hit_rate: HR@10 of the test items.
        exposure: ER@10: share of those without the target in their history who get it among their best 10.
        target: position of the promoted item.
        num_malicious: nodes.
    """

    hit_rate: float
    exposure: float
    target: int
    num_malicious: int


class Attackers:
    """The ClientApp of a federation in which some nodes are malicious.

    Args:
        campaign: what they do.
        partitions: which nodes.
        target: position of the item.
        popular: positions of popular items, most popular first.
        num_nodes: of the federation.
    """

    def __init__(
        self, campaign: Campaign, partitions: NDArray[np.int64], target: int, popular: NDArray[np.int64], num_nodes: int
    ) -> None:
        self.campaign, self.target, self.num_nodes = campaign, target, num_nodes
        self.partitions = set(partitions.tolist())
        self.popular = popular[popular != target]
        self._honest: dict[int, NDArray] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        """Returns the honest reply, or, of a malicious node that was asked to train, the attack."""
        reply = client_app.app(message, context)
        partition = int(context.node_config["partition-id"])
        attacks = self.campaign.kind != "none" and partition in self.partitions
        if not attacks or message.metadata.message_type != MessageType.TRAIN:
            return reply
        table = from_record(message.content.array_records[ARRAYS])[TABLE]
        honest, metrics = from_record(reply.content.array_records[ARRAYS]), reply.content.metric_records[METRICS]
        weight = float(np.asarray(metrics[Said.WEIGHT]))
        mean = np.zeros(table.shape)
        mean[honest.get(ROWS + TABLE, slice(None))] = honest[DELTA + TABLE] / max(weight, 1e-12)
        self._honest[partition] = mean
        arrays = getattr(self, "_" + self.campaign.kind)(table)
        arrays[DELTA + TABLE] = (arrays[DELTA + TABLE] * weight).astype(np.float32)
        return Message(RecordDict({METRICS: metrics, ARRAYS: to_record(arrays)}), reply_to=message)

    def _boosted(self, table: NDArray) -> Arrays:
        """Returns the mean delta that puts the target where it is wanted if it is averaged with zeros."""
        delta = np.zeros(table.shape)
        delta[self.target] = self.num_nodes / len(self.partitions) * self._missing(table)
        return {DELTA + TABLE: delta}

    def _bounded(self, table: NDArray) -> Arrays:
        """Returns what honest nodes send on average, with the target moved as far as the defence lets pass."""
        honest = np.stack(list(self._honest.values()))
        norm = float(np.median(np.linalg.norm(honest, axis=(1, 2))))
        mean = honest.mean(axis=0)
        rest = mean.copy()
        rest[self.target] = 0
        if self.campaign.rows:
            length = norm / np.sqrt(self.campaign.rows)
        else:
            length = np.sqrt(max(norm**2 - float(np.square(rest).sum()), 0.0))
        missing = self._missing(table)
        rest[self.target] = 0.999 * length * missing / max(float(np.linalg.norm(missing)), 1e-12)
        return {DELTA + TABLE: rest}

    def _direction(self, table: NDArray) -> NDArray:
        """Returns the unit vector along the mean embedding of popular items."""
        mean = table[self.popular[: self.campaign.num_popular]].mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    def _missing(self, table: NDArray) -> NDArray:
        """Returns what the target's row lacks to be where it is wanted."""
        longest = float(np.linalg.norm(table[self.popular[: self.campaign.num_popular]], axis=1).max())
        return self.campaign.reach * longest * self._direction(table) - table[self.target]


def run(flat: dict[str, Any], num_nodes: int, campaign: Campaign) -> Outcome:
    """Returns what a campaign achieves; the target and the malicious nodes are drawn from the seed of the run.

    Args:
        flat: settings of the run; its last round is the one that is looked at.
        num_nodes: how many nodes the users are dealt to.
        campaign: who attacks what.
    """
    flat = {**flat, "evaluate.every": flat["num-server-rounds"], "evaluate.bootstrap": 0}
    config = RunConfig.from_flat(flat)
    everyone = node_data.cohort(config.data, None, num_nodes)
    counts = np.bincount(everyone.train.items, minlength=everyone.num_items)
    target = int(rng(config.seed, "target").choice(np.flatnonzero((counts >= 1) & (counts <= 5))))
    num_malicious = round(campaign.share * num_nodes)
    partitions = rng(config.seed, "malicious").choice(num_nodes, num_malicious, replace=False)
    attackers = Attackers(campaign, partitions, target, np.argsort(-counts, kind="stable"), num_nodes)
    result = run_server(LocalGrid(attackers, flat, num_nodes), flat)  # type: ignore[arg-type]
    theirs = {user for node in partitions for user in node_data.cohort(config.data, int(node), num_nodes).user_ids}
    honest = np.flatnonzero([user not in theirs for user in everyone.user_ids])
    hit_rate, exposure = _judge(FinishedRun.read(result.folder), everyone.select(honest), target)
    return Outcome(hit_rate, exposure, target, num_malicious)


def _judge(run: FinishedRun, cohort: Cohort, target: int) -> tuple[float, float]:
    """Returns (HR@10, ER@10) of the users of a cohort."""
    scores = run.serve(run.catalog(), cohort.before("test"), "fold-in-test").scores
    sums = evaluate_cohort(scores, cohort, "test", (10,), run.config.data.seed)
    active = cohort.test.lengths > 0
    known = cohort.known("test")
    has = np.zeros(len(cohort), dtype=bool)
    has[known.rows()[known.items == target]] = True
    return float(finalise(sums)["hr@10"]), float(sums.item_counts[target]) / int((active & ~has).sum())


def case(kind: Kind, defence: Defence, flat: dict[str, Any], num_nodes: int) -> Outcome:
    """Returns what an attack achieves against a defence, which "bounded" knows.

    Args:
        kind: of attack.
        defence: one of OPTIONS.
        flat: settings of the run, in which all users count the same.
        num_nodes: how many nodes the users are dealt to.
    """
    options = {"weighting": "users", **OPTIONS[defence]}
    campaign = Campaign(kind, rows=0 if defence == "norm bound" else CAP)
    return run({**flat, "strategy.options": json.dumps(options)}, num_nodes, campaign)


def settings(data: Path, output: Path, seed: int, rounds: int = 40) -> dict[str, Any]:
    """Returns the settings of a run on MovieLens-100K.

    Args:
        data: the folder ml-100k.
        output: where run folders go.
        seed: of the run, the target and the malicious nodes.
        rounds: how many.
    """
    return {
        "data.name": "ml-100k", "data.path": str(data), "output-dir": str(output), "seed": seed,
        "num-server-rounds": rounds,
    }  # fmt: skip


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _lines(data: Path, seeds: int, num_nodes: int) -> Iterator[str]:
    """Yields the lines of two tables: a row for each run, when it is done, and then the seeds together."""
    outcomes: dict[tuple[Kind, Defence], list[Outcome]] = {pair: [] for pair in CASES}
    yield "| seed | attack | defence | HR@10 | ER@10 |\n|---|---|---|---|---|"
    for seed in range(seeds):
        for kind, defence in CASES:
            with TemporaryDirectory() as folder:
                outcome = case(kind, defence, settings(data, Path(folder), seed), num_nodes)
            outcomes[kind, defence].append(outcome)
            yield f"| {seed} | {kind} | {defence} | {outcome.hit_rate:.3f} | {outcome.exposure:.3f} |"
    yield "\n| attack | defence | HR@10, mean (range) | ER@10, mean (range) |\n|---|---|---|---|"
    for (kind, defence), found in outcomes.items():
        hits, exposures = _spread([o.hit_rate for o in found]), _spread([o.exposure for o in found])
        yield f"| {kind} | {defence} | {hits} | {exposures} |"


def main() -> None:
    """Prints the figures of every attack against every defence, on MovieLens-100K."""
    parser = argparse.ArgumentParser(description="attacks that promote an item, and what defences leave of them")
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder that holds ml-100k")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-nodes", type=int, default=200)
    args = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    for line in _lines(args.data_dir / "ml-100k", args.seeds, args.num_nodes):
        print(line, flush=True)


if __name__ == "__main__":
    main()
