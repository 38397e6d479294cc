"""The noise of one release: Opacus adds it to a sum of clipped deltas, once.

Learning Differentially Private Recurrent Language Models, McMahan et al., ICLR 2018, https://arxiv.org/abs/1710.06963
(Algorithm 1, with the fixed denominator of its equation for f~_f), and for the adaptive bound Differentially Private
Learning with Adaptive Clipping, Andrew et al., NeurIPS 2021, https://arxiv.org/abs/1905.03871 (Algorithm 1, Theorem 1).

The noise comes from the operating system's entropy (`secret_generator.py`): it does not follow from any seed of the
run, is not kept, and is never drawn twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec_app.errors import ConfigError
from fedrec_app.privacy.opacus_import import import_opacus
from fedrec_app.privacy.secret_generator import NUMBERS, secret_generator

Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class AdaptiveClipping:
    """How the clipping bound follows a quantile of the users' norms.

    Attributes:
        target_quantile: gamma, share of users whose delta is to be no longer than the bound.
        learning_rate: eta_C, of the geometric update of the bound.
        count_std: sigma_b, standard deviation of the noise on the number of users within the bound.
        smallest, largest: bounds of the bound.
    """

    target_quantile: float
    learning_rate: float
    count_std: float
    smallest: float
    largest: float


def add_noise(sums: Arrays, noise_multiplier: float, clip_norm: float) -> Arrays:
    """Returns sums of deltas with Gaussian noise of standard deviation noise_multiplier * clip_norm on every number.

    Args:
        sums: by parameter name; not changed.
        noise_multiplier: z.
        clip_norm: C, the largest L2 norm of one user's share of all these arrays together.
    """
    import_opacus()
    from opacus.optimizers import DPOptimizer

    optimizer = _secret(DPOptimizer)(
        _holder(sums), noise_multiplier=noise_multiplier, max_grad_norm=clip_norm, expected_batch_size=None,
        loss_reduction="sum",
    )  # fmt: skip
    return _noised(optimizer, sums)


def add_noise_and_adapt(
    sums: Arrays, centred_unclipped: float, expected: float, noise_multiplier: float, clip_norm: float,
    how: AdaptiveClipping,
) -> tuple[Arrays, float]:  # fmt: skip
    """Returns noised sums, as `add_noise` does, and the next clipping bound; both together cost what one release with
    this noise multiplier costs.

    Opacus' formula takes the count to be changed by no more than 1/2 by any one user. That holds for counts of (1
    within the bound, else 0) - 1/2, and not for the plain counts that its own clipping makes, so the former are handed
    in and the target is moved by 1/2 too.

    Args:
        sums: by parameter name; not changed.
        centred_unclipped: sum over participants of (1 if his delta was within the bound, else 0) - 1/2.
        expected: q N, expected number of participants.
        noise_multiplier: z, below 2 * `how.count_std`; the sums get a little more noise, to pay for the count.
        clip_norm: C in this round.
        how: see `AdaptiveClipping`.

    Raises:
        ConfigError: the noise multiplier is too large for this noise on the count.
    """
    import_opacus()
    import torch
    from opacus.optimizers import AdaClipDPOptimizer

    if noise_multiplier >= 2 * how.count_std:
        raise ConfigError(
            f"the count's noise {how.count_std:g} leaves nothing for the sums at noise multiplier "
            f"{noise_multiplier:g}: it must be above {noise_multiplier / 2:g}"
        )
    optimizer = _secret(AdaClipDPOptimizer)(
        _holder(sums), noise_multiplier=noise_multiplier, max_grad_norm=clip_norm, expected_batch_size=None,
        loss_reduction="sum", target_unclipped_quantile=how.target_quantile - 0.5,
        clipbound_learning_rate=how.learning_rate, max_clipbound=how.largest, min_clipbound=how.smallest,
        unclipped_num_std=how.count_std,
    )  # fmt: skip
    optimizer.sample_size = expected  # type: ignore[assignment]
    optimizer.unclipped_num = torch.tensor(centred_unclipped)  # type: ignore[assignment]
    noised = _noised(optimizer, sums)
    optimizer.update_max_grad_norm()
    return noised, float(optimizer.max_grad_norm)


def noised_means(sums: NDArray, num_users: int, noise_multiplier: float) -> NDArray[np.float64]:
    """Returns (K,) means over users of numbers from [0, 1], by noised sums and a noised number of users, brought back
    into [0, 1].

    Args:
        sums: (K,) over users.
        num_users: over how many.
        noise_multiplier: of the K + 1 sums; one user moves them by sqrt(K + 1) at most, in L2 norm.
    """
    everything = np.append(np.asarray(sums, dtype=np.float64), num_users)
    noised = add_noise({"sums": everything}, noise_multiplier, math.sqrt(len(everything)))["sums"]
    return np.clip(noised[:-1] / max(noised[-1], 1.0), 0.0, 1.0)


def _noised(optimizer, sums: Arrays) -> Arrays:
    import torch

    flat = np.concatenate([np.ravel(np.asarray(array, dtype=np.float64)) for array in sums.values()])
    for parameter, part in zip(optimizer.params, torch.from_numpy(flat).split(NUMBERS), strict=True):
        parameter.summed_grad = part
    optimizer.add_noise()
    noised = torch.cat([parameter.grad for parameter in optimizer.params]).numpy()
    ends = np.cumsum([np.size(array) for array in sums.values()])[:-1]
    parts = np.split(noised, ends)
    return {name: part.reshape(np.shape(sums[name])) for name, part in zip(sums, parts, strict=True)}


def _holder(sums: Arrays):
    import torch

    size = sum(np.size(array) for array in sums.values())
    parts = torch.empty(size, dtype=torch.float64).split(NUMBERS)
    return torch.optim.SGD([torch.nn.Parameter(part) for part in parts], lr=1.0)


def _secret(kind):
    """Returns a class of Opacus' optimisers that draws the noise of each of its parameters from a secret of its own."""

    class Secret(kind):
        generator = property(lambda self: secret_generator(), lambda self, value: None)

    return Secret
