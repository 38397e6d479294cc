"""The canary audit of example-level privacy: one step of a node's DP-SGD, with one example and without him.

The model has one number an item and no negatives, so that an example's gradient is known: it moves its own item's
number alone. It is three times as long as the bound. What is audited is the node's own step: clipping, noise and
denominator; the bound itself is a matter of scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fedrec_app.audits.canary import CANARY_NORM, Worlds
from fedrec_app.audits.claim import Claim
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.models.base import Batch, ModelOptions, Recommender, pointwise_loss
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.node_accountant import NodeAccountant
from fedrec_app.records import Arrays
from fedrec_app.training import example_level
from fedrec_app.training.plan import FitPlan

_NAME = "item_bias"
_ITEMS = 16
_GRADIENT = 0.5
"""Length of the gradient of the cross-entropy of one positive at a score of 0."""
_CROWD = [1, 1, 2, 3]
"""Items of the other examples."""


class _ItemBias(Recommender):
    """One shared number an item."""

    def __init__(self) -> None:
        super().__init__(1, ModelOptions())
        self.item_bias = nn.Parameter(torch.zeros(_ITEMS))

    def row_names(self) -> list[str]:
        return [_NAME]

    def loss(self, batch: Batch) -> Tensor:
        return pointwise_loss(nn.functional.embedding(batch["items"], self.item_bias[:, None])[..., 0], batch)


class _Nobody:
    """Stands where a node has its accountant: an audit charges nobody."""

    def charge(self, release: Gaussian, server_round: int) -> None:
        """Does nothing."""


def worlds_of_examples(claim: Claim) -> Worlds:
    """Returns a world with one example more than the other, both released by a node's own step.

    Args:
        claim: of the run.
    """
    direction = np.zeros(_ITEMS)
    direction[0] = 1.0
    noise = claim.rounds.noise_multiplier
    bound = _GRADIENT / CANARY_NORM
    return Worlds(
        lambda: _step([*_CROWD, 0], noise, bound), lambda: _step(_CROWD, noise, bound), {_NAME: direction}, 1 / bound
    )


def drawn_examples(number: int, rate: float) -> int:
    """Returns how many of so many examples are in a step.

    Args:
        number: of examples.
        rate: q.
    """
    return int(example_level.poisson(number, rate).sum())


def _step(items: Sequence[int], noise: float, bound: float) -> Arrays:
    """Returns the noised sum of clipped gradients that a step along it was the mean of.

    Args:
        items: of the examples, which all take part.
        noise: z.
        bound: C.
    """
    train, nothing = Histories.from_lists([items]), Histories.from_lists([[]])
    cohort = Cohort(("somebody",), _ITEMS, train, nothing, nothing, train)
    plan = FitPlan(0, 1, unit="node", weighting="uniform", num_negatives=0, learning_rate=1.0)
    sums = example_level.fit_examples(
        _ItemBias(), cohort, {_NAME: np.zeros(_ITEMS, dtype=np.float32)}, {}, plan, Gaussian(noise), bound,
        cast(NodeAccountant, _Nobody()),
    )  # fmt: skip
    return {name: len(items) * delta for name, delta in sums.delta.items()}
