"""What every engine of user-level training is given, and the rules that they share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec_app.client_part import Units
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch, Recommender
from fedrec_app.threads import even_parts
from fedrec_app.training import batches, sampling, sequences
from fedrec_app.training.plan import Arrays, FitPlan, FitSums
from fedrec_app.training.private_rows import moves_private


@dataclass(frozen=True)
class Job:
    """One local fit of users, each from the same shared parameters.

    Attributes:
        model: bound to the catalog, on the plan's device.
        cohort: the users of this node.
        shared: parameters received, on the plan's device; not changed.
        rows: private rows and optimiser states of the cohort; changed in place.
        plan: what to do.
        sums: what the engine adds to.
        dropped: users whose deltas were not finite and add nothing, where deltas are clipped; engines append to it.
    """

    model: Recommender
    cohort: Cohort
    shared: dict[str, Tensor]
    rows: Arrays
    plan: FitPlan
    sums: FitSums
    dropped: list[NDArray[np.int64]] = field(default_factory=list)

    @property
    def base(self) -> np.uint64:
        """What the samples of this fit are drawn from, with the epoch and the user."""
        return sampling.sampling_base(self.plan.seed, self.plan.server_round, "fit")

    @property
    def moves_private(self) -> bool:
        """Whether private rows take the steps that shared parameters take."""
        return moves_private(self.model, self.plan)

    @property
    def cuts_tables(self) -> bool:
        """Whether item tables are cut to the rows met: a model of sequences reads all of them unless it has
        negatives."""
        model = self.model
        return not model.whole_catalog and (model.sampling != "sequence" or model.sequence_rules.negatives > 0)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers the shared parameters hold outside of item tables, and in these for each item."""
        tables = set(self.model.row_names())
        fixed = sum(tensor.numel() for name, tensor in self.shared.items() if name not in tables)
        return fixed, sum(tensor[0].numel() for name, tensor in self.shared.items() if name in tables)

    def samples(self, users: NDArray[np.int64]) -> tuple[Histories, NDArray[np.int64], NDArray[np.bool_]]:
        """Returns what these users did, (epochs * num_rows, 1 + k) their samples of one epoch after the other, and who
        has no negatives; see `draw_epoch`."""
        cohort = self.cohort
        train, never, keys = cohort.train.select(users), cohort.never_negative.select(users), cohort.keys[users]
        epochs = [
            sampling.draw_epoch(self.base, epoch, keys, train, never, cohort.num_items, self.plan.num_negatives)
            for epoch in range(self.plan.local_epochs)
        ]
        return train, np.concatenate([samples for samples, _ in epochs]), epochs[0][1]

    def sequences(self, users: NDArray[np.int64], epoch: int) -> Batch:
        """Returns the batch of these users' sequences in an epoch."""
        return sequences.make(self.base, epoch, self.cohort.keys[users], self.cohort.train.select(users), self.model)

    def whole(self, users: NDArray[np.int64]) -> tuple[Batch, NDArray[np.int64]]:
        """Returns the batch of an only epoch whose units are these users, each with all that he has, and the items that
        it numbers: those that they met together, or all of them."""
        met = np.arange(self.cohort.num_items)
        if self.model.sampling == "sequence":
            batch = self.sequences(users, 0)
            if not self.cuts_tables:
                return batch, met
            (batch,), lists = sequences.renumber([batch], self.cohort.num_items, together=True)
            return batch, lists.items
        train, samples, no_negatives = self.samples(users)
        if self.cuts_tables:
            _, met = sampling.rename(samples, np.array([0, len(samples)]), 1, self.cohort.num_items)
        return batches.whole_users(samples, train, no_negatives), met

    def weights_met(self, batch: Batch, weights: NDArray[np.float64], met: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns (len(met),) the sum of the weights of the users who met each of these items.

        Args:
            batch, met: from `whole`.
            weights: (num_users,) of the batch's users.
        """
        if not self.cuts_tables:
            return np.full(len(met), weights.sum())
        if self.model.sampling == "sequence":
            items = sequences.met(batch)
            there = np.ones(items.shape, dtype=np.bool_)
        else:
            items, there = batch["items"].numpy(), batch["weights"].numpy() > 0
        unit, cell = np.nonzero(there)
        pairs = np.unique(unit * len(met) + items[unit, cell])
        return np.asarray(np.bincount(pairs % len(met), weights[pairs // len(met)], len(met)), dtype=np.float64)

    def weights(self, users: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns (num_users,) the weight of each user's delta: examples, or 1 by any rule that counts users once."""
        if self.plan.weighting == "examples":
            return self.cohort.train.lengths[users].astype(np.float64)
        return np.ones(len(users))

    def factors(
        self,
        users: NDArray[np.int64],
        losses: NDArray[np.float64] | None = None,
        squared_norms: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Returns (num_users,) what each user's delta is multiplied with: his weight, or what the strategy's client
        part makes of it. Called once for each user.

        Args:
            users: positions.
            losses, squared_norms: see `Units`.
        """
        weights, plan = self.weights(users), self.plan
        examples = self.cohort.train.lengths[users]
        units = Units(weights, examples, self.steps(users), plan.learning_rate, losses, squared_norms)
        return self.sums.weigh(plan.part, units)

    def steps(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns (num_users,) how many steps each user takes."""
        lengths = self.cohort.train.lengths[users]
        size = 0 if self.model.sampling == "sequence" else self.plan.batch_size  # a sequence is never cut into batches
        return self.plan.local_epochs * (-(-lengths // size) if size else np.minimum(lengths, 1))

    def parts(self, users: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Returns ranges of users of even work, one a thread, but no more than are worth a table of sums each."""
        lengths = self.cohort.train.lengths[users]
        worth = int(lengths.sum()) // self.cohort.num_items
        return even_parts(lengths, max(1, min(torch.get_num_threads(), worth)))

    def judge(self, users: NDArray[np.int64], finite: NDArray[np.bool_], num_unclipped: int) -> NDArray[np.bool_]:
        """Returns `finite`, having counted users whose deltas are to be clipped and noted those who are dropped.

        Args:
            users: positions.
            finite: (num_users,) whose deltas are finite.
            num_unclipped: how many of these are not clipped.
        """
        self.sums.centred_unclipped += num_unclipped - 0.5 * len(users)
        self.sums.num_not_finite += int((~finite).sum())
        self.dropped.append(users[~finite])
        return finite

    def judge_norms(self, users: NDArray[np.int64], norms: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Returns (num_users,) whose deltas are finite; see `judge`.

        Args:
            users: positions.
            norms: (num_users,) of their deltas before clipping.
        """
        finite = np.isfinite(norms)
        return self.judge(users, finite, int((norms[finite] <= self.plan.clip_norm).sum()))

    def tally(self, users: NDArray[np.int64], losses: NDArray[np.float64]) -> None:
        """Adds users to the sums: their weights, numbers and (num_users,) mean losses."""
        examples = self.cohort.train.lengths[users]
        self.sums.weight += float(self.weights(users).sum())
        self.sums.num_users += len(users)
        self.sums.num_examples += int(examples.sum())
        self.sums.loss += float((losses * examples).sum())
