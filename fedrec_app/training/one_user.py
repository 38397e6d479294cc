"""The loss of one user, which `torch.func.vmap` makes one of each of many."""

from __future__ import annotations

from torch import Tensor
from torch.func import functional_call

from fedrec_app.models.base import Batch, Recommender


def loss_of_one(model: Recommender, params: dict[str, Tensor], batch: Batch) -> Tensor:
    """Returns the loss of one user: his own parameters, a private row each, and his batch without the unit axis."""
    private = set(model.private_names())
    mine = {name: tensor[None] if name in private else tensor for name, tensor in params.items()}
    return functional_call(model, mine, ({name: tensor[None] for name, tensor in batch.items()},))[0]
