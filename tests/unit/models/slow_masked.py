"""The slow SASRec where items are hidden or a few are scored: one history, cell by cell, as in slow_sasrec.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedrec_app.models.base import Batch
from fedrec_app.models.sasrec import SasRec
from tests.unit.models.slow_sasrec import _attention, _dropped, _linear, _normal


def states(model: SasRec, shown: list[int | None], noise: int | None) -> Tensor:
    """Returns (n, d) what the model knows at each of n cells; None is an item that it may not see."""
    p, d, n = dict(model.named_parameters()), model.embedding_dim, len(shown)
    nothing = p.get("mask_embedding", torch.zeros(d, dtype=model.item_embedding.dtype))
    rows = [nothing if item is None else p["item_embedding"][item] for item in shown]
    x = math.sqrt(d) * torch.stack(rows) + p["position_embedding"][-n:]
    x = _dropped(model, x, noise, 0)
    for b in range(model.options.layers):
        own = {name.removeprefix(f"blocks.{b}."): value for name, value in p.items() if f"blocks.{b}." in name}
        y = _normal(x, own, "attention_norm.")
        seen = _attention(own, y, model.options.heads)
        if model.options.objective == "masked":  # of a causal model the last cell sees all: each is put last once
            seen = torch.stack([_last(own, y, cell, model.options.heads) for cell in range(n)])
        x = x + _dropped(model, seen, noise, 2 * b + 1)
        wide = _linear(_normal(x, own, "mlp_norm."), own, "expand")
        gelu = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
        x = x + _dropped(model, _linear(gelu, own, "contract"), noise, 2 * b + 2)
    return _normal(x, p, "norm.")


def loss(model: SasRec, batch: Batch) -> Tensor:
    """Returns the mean of -log P(target) over the cells of the one user in the batch that weigh."""
    there = [cell for cell, real in enumerate(batch["present"][0].tolist()) if real]
    asked = [place for place, cell in enumerate(there) if batch["weights"][0, cell]]
    if not asked:
        return 0.0 * torch.stack([parameter.sum() for parameter in model.parameters()]).sum()
    items, targets = batch["items"][0].tolist(), batch["targets"][0].tolist()
    hidden = batch["hidden"][0].tolist() if "hidden" in batch else [0.0] * len(items)
    shown = [None if hidden[cell] else items[cell] for cell in there]
    found, parts = states(model, shown, int(batch["noise"][0])), []
    for place in asked:
        target = targets[there[place]]
        others = [item for item in range(len(model.item_embedding)) if item != target]
        if "negatives" in batch:
            others = [item for item in batch["negatives"][0].tolist() if item != target]
        logits = model.item_embedding[[target, *others]] @ found[place]
        parts.append(logits.logsumexp(0) - logits[0])
    return torch.stack(parts).mean()


def _last(own: dict[str, Tensor], y: Tensor, cell: int, heads: int) -> Tensor:
    others = [other for other in range(len(y)) if other != cell]
    return _attention(own, y[[*others, cell]], heads)[-1]
