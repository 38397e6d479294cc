"""Clipping of single users' deltas by Opacus, over all shared arrays together ("flat").

Learning Differentially Private Recurrent Language Models, McMahan, Ramage, Talwar & Zhang, ICLR 2018, algorithm 1
(FlatClip); the factor is Opacus', min(1, C / (norm + 1e-6)) (Yousefpour et al., Opacus, 2021). A user is the sample of
Opacus' optimiser, his delta the sample's gradient: clipping knows no sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def clip_and_sum(deltas: Mapping[str, Tensor], clip_norm: float) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the sum over users of their clipped deltas, by array, and (U,) the L2 norms of the deltas before.

    A user whose delta is not finite has a norm that is not finite, and adds nothing: he has to go before clipping, for
    min(1, nan) is 1 there and 0 times infinity is NaN. A delta of zero stays zero.

    Args:
        deltas: (U, ...) stacks by shared array, at least one; a user has a place along the first axis of each.
        clip_norm: C, bound on the L2 norm of a user's delta over all arrays, above 0.
    """
    from opacus.optimizers import DPOptimizer

    norms = _norms(deltas).cpu()
    if not bool(norms.isfinite().all()):
        # In float64 no norm of finite float32 numbers overflows: left out are those that hold NaN or infinity.
        deltas = {name: delta.double() for name, delta in deltas.items()}
        norms = _norms(deltas).cpu()
        finite = norms.isfinite()
        deltas = {name: delta[finite.to(delta.device)] for name, delta in deltas.items()}
    parameters: list[Any] = [nn.Parameter(delta.new_empty(delta.shape[1:])) for delta in deltas.values()]
    optimizer = DPOptimizer(
        torch.optim.SGD(parameters), noise_multiplier=0.0, max_grad_norm=clip_norm, expected_batch_size=None,
        loss_reduction="sum",
    )  # fmt: skip
    for parameter, delta in zip(parameters, deltas.values(), strict=True):
        parameter.grad_sample = delta.detach()  # Opacus marks what it has used
    optimizer.clip_and_accumulate()
    return {name: parameter.summed_grad for name, parameter in zip(deltas, parameters, strict=True)}, norms


def _norms(deltas: Mapping[str, Tensor]) -> Tensor:
    """Returns (U,) norms of users, as Opacus computes them."""
    each = [delta.detach().reshape(len(delta), -1).norm(2, dim=1) for delta in deltas.values()]
    return torch.stack(each, dim=1).norm(2, dim=1)
