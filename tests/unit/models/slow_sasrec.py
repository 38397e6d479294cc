"""The slow, obvious SASRec: one history at a time, no padding, a loop for each head and cell, whole numbers of Python's
for dropout."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedrec_app.models.sasrec import SasRec

_WORD = 2**64


def is_kept(noise: int, site: int, place: int, rate: float) -> bool:
    """Returns whether dropout keeps a cell: SplitMix64's finaliser, its upper 24 bits as a share of one.

    Args:
        noise: of the user.
        site: which dropout of the model.
        place: of the cell, the last is 1.
        rate: of dropout.
    """
    z = (noise + place * 0xBF58476D1CE4E5B9 + (site + 1) * 0x9E3779B97F4A7C15) % _WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _WORD
    return (z >> 40) / 2**24 >= rate


def states(model: SasRec, items: list[int], noise: int | None) -> Tensor:
    """Returns (n, d) what the model knows after each of n items, at most `max_length`, in its own precision."""
    p, d, n = dict(model.named_parameters()), model.embedding_dim, len(items)
    positions = p["position_embedding"][model.max_length - n :]
    x = torch.stack([math.sqrt(d) * p["item_embedding"][item] for item in items]) + positions
    x = _dropped(model, x, noise, 0)
    for b in range(model.options.layers):
        own = {name.removeprefix(f"blocks.{b}."): value for name, value in p.items() if f"blocks.{b}." in name}
        x = x + _dropped(
            model, _attention(own, _normal(x, own, "attention_norm."), model.options.heads), noise, 2 * b + 1
        )
        wide = _linear(_normal(x, own, "mlp_norm."), own, "expand")
        gelu = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
        x = x + _dropped(model, _linear(gelu, own, "contract"), noise, 2 * b + 2)
    return _normal(x, p, "norm.")


def loss(model: SasRec, items: list[int], noise: int | None) -> Tensor:
    """Returns the mean of -log P(next item) after each but the last of at most `max_length` + 1 items."""
    if len(items) < 2:
        return 0.0 * torch.stack([parameter.sum() for parameter in model.parameters()]).sum()
    logits = states(model, items[:-1], noise) @ model.item_embedding.T
    each = [row.logsumexp(0) - row[target] for row, target in zip(logits, items[1:], strict=True)]
    return torch.stack(each).mean()


def _dropped(model: SasRec, x: Tensor, noise: int | None, site: int) -> Tensor:
    rate, (n, d) = model.options.dropout, x.shape
    if noise is None:
        return x
    kept = [[is_kept(noise, site, n * d - i * d - j, rate) for j in range(d)] for i in range(n)]
    return x * torch.tensor(kept, dtype=x.dtype) / (1 - rate)


def _attention(own: dict[str, Tensor], y: Tensor, heads: int) -> Tensor:
    size = y.shape[1] // heads
    query, key, value = (_linear(y, own, name) for name in ("query", "key", "value"))
    rows = []
    for i in range(len(y)):
        parts = []
        for h in range(heads):
            at = slice(h * size, (h + 1) * size)
            weights = torch.stack([query[i, at] @ key[j, at] / math.sqrt(size) for j in range(i + 1)]).softmax(0)
            parts.append(sum(weights[j] * value[j, at] for j in range(i + 1)))
        rows.append(torch.cat(parts))
    return _linear(torch.stack(rows), own, "output")


def _linear(x: Tensor, own: dict[str, Tensor], name: str) -> Tensor:
    return x @ own[f"{name}.weight"].T + own.get(f"{name}.bias", 0.0)


def _normal(x: Tensor, own: dict[str, Tensor], prefix: str) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return (
        centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * own[prefix + "weight"] + own[prefix + "bias"]
    )
