"""Clipping of single users' deltas by Opacus, over all shared arrays together ("flat").

Learning Differentially Private Recurrent Language Models, McMahan, Ramage, Talwar & Zhang, ICLR 2018, algorithm 1
(FlatClip); the factor is Opacus', min(1, C / (norm + 1e-6)) (Yousefpour et al., Opacus, 2021). A user is the sample of
Opacus' optimiser, his delta the sample's gradient: clipping knows no sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedrec_app.privacy.opacus_import import import_opacus


@dataclass(frozen=True)
class Clipped:
    """What came of the deltas of U users.

    Attributes:
        sums: over users, of their clipped deltas, by array.
        finite: (U,) whose deltas are finite, on the processor; the others add nothing.
        num_unclipped: users whose deltas are finite and were not made shorter.
    """

    sums: dict[str, Tensor]
    finite: Tensor
    num_unclipped: int


def clip_and_sum(deltas: Mapping[str, Tensor], clip_norm: float) -> Clipped:
    """Returns the sum over users of their clipped deltas.

    Who has a delta that is not finite has to go before clipping: min(1, nan) is 1 there, and 0 times infinity NaN. A
    delta of zero stays zero, and so becomes one whose norm float32 cannot hold.

    Args:
        deltas: (U, ...) stacks by shared array, at least one; a user has a place along the first axis of each.
        clip_norm: C, bound on the L2 norm of a user's delta over all arrays, above 0.
    """
    sums, num_unclipped = _by_opacus(deltas, clip_norm)
    num_users = len(next(iter(deltas.values())))
    if all(bool(total.sum().cpu().isfinite()) for total in sums.values()):
        return Clipped(sums, torch.ones(num_users, dtype=torch.bool), num_unclipped)
    each = [delta.reshape(num_users, -1).isfinite().all(1) for delta in deltas.values()]
    finite = torch.stack(each).all(0)
    sums, num_unclipped = _by_opacus({name: delta[finite] for name, delta in deltas.items()}, clip_norm)
    return Clipped(sums, finite.cpu(), num_unclipped)


def _by_opacus(deltas: Mapping[str, Tensor], clip_norm: float) -> tuple[dict[str, Tensor], int]:
    """Returns the sums of clipped deltas, and how many were not clipped: Opacus' adaptive optimiser counts while it
    clips, which reads every delta once less. Nothing else of it is used, and no noise added."""
    import_opacus()
    from opacus.optimizers import AdaClipDPOptimizer

    parameters: list[Any] = [nn.Parameter(delta.new_empty(delta.shape[1:])) for delta in deltas.values()]
    if len(next(iter(deltas.values()))) == 0:
        return {name: torch.zeros_like(parameter) for name, parameter in zip(deltas, parameters, strict=True)}, 0
    optimizer = AdaClipDPOptimizer(
        torch.optim.SGD(parameters), noise_multiplier=0.0, max_grad_norm=clip_norm, expected_batch_size=None,
        loss_reduction="sum", target_unclipped_quantile=0.5, clipbound_learning_rate=0.0, max_clipbound=1.0,
        min_clipbound=0.0, unclipped_num_std=1.0,
    )  # fmt: skip
    for parameter, delta in zip(parameters, deltas.values(), strict=True):
        parameter.grad_sample = delta.detach().contiguous()
    optimizer.clip_and_accumulate()
    num_unclipped: Any = optimizer.unclipped_num
    sums = {name: parameter.summed_grad for name, parameter in zip(deltas, parameters, strict=True)}
    return sums, int(num_unclipped.cpu())
