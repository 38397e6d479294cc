"""Local optimisers as pure functions of (parameter, gradient, state), so that every user, or block of users, has
its own state."""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]


def empty_state(optimizer: str, param: Tensor, rows: bool) -> State:
    """Returns the state before the first step.

    Args:
        optimizer: "sgd", "adam" or "adamw".
        param: the parameter.
        rows: each row of the parameter counts its own steps (private parameters: one user a row).
    """
    if optimizer == "sgd":
        return {}
    steps = torch.zeros((len(param), *([1] * (param.ndim - 1))) if rows else (), device=param.device)
    return {"m": torch.zeros_like(param), "v": torch.zeros_like(param), "t": steps}


def step(
    optimizer: str, param: Tensor, grad: Tensor, state: State, learning_rate: float, weight_decay: float = 0.0
) -> tuple[Tensor, State]:
    """Returns the parameter after one step, and its state; nothing is changed in place.

    SGD; Adam (Kingma & Ba, ICLR 2015) with L2; AdamW (Loshchilov & Hutter, ICLR 2019). Betas .9 and .999, epsilon
    1e-8, as torch's.
    """
    if optimizer != "adamw" and weight_decay:
        grad = grad + weight_decay * param
    if optimizer == "sgd":
        return torch.sub(param, grad, alpha=learning_rate), state
    t = state["t"] + 1
    m = 0.9 * state["m"] + 0.1 * grad
    v = 0.999 * state["v"] + 0.001 * grad * grad
    if optimizer == "adamw":
        param = param * (1 - learning_rate * weight_decay)
    moved = param - learning_rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return moved, {"m": m, "v": v, "t": t}


def clip(grads: dict[str, Tensor], max_norm: float, each: bool = False) -> dict[str, Tensor]:
    """Returns gradients times min(1, max_norm / (norm + 1e-6)), the norm over all of them together, as
    `torch.nn.utils.clip_grad_norm_`.

    Args:
        grads: by parameter.
        max_norm: bound on the L2 norm.
        each: they are stacked along a first axis, and each place along it has a norm of its own.
    """
    parts = [grad.reshape(len(grad), -1) if each else grad.reshape(1, -1) for grad in grads.values()]
    norms = torch.stack([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts])
    factors = (max_norm / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    return {
        name: (part * factors.to(part.dtype)[:, None]).reshape(grad.shape)
        for (name, grad), part in zip(grads.items(), parts, strict=True)
    }
