"""SASRec: a Transformer over what a user did, whose last state scores every item.

Self-Attentive Sequential Recommendation, Kang & McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781 (section III),
with the loss over all items (full softmax) or over the target and a sample as in Klenitskiy & Vasilev, Turning Dross
Into Gold Loss, RecSys 2023, https://arxiv.org/abs/2309.07602; layer norms before attention and perceptron (Xiong et
al., ICML 2020), GELU. Positions are counted from the end of the sequence. There is nothing private but the history.

The sample is drawn uniformly from the whole catalog, once for a user and epoch. Where it holds the target itself that
logit is left out; other items of the user are negatives like any, as in the full softmax. The correction by the
logarithm of how likely each is to be drawn (Bengio & Senecal, IEEE TNN 2008) is the same for all, so there is none.
Scores rank as those of the full softmax would, but their probabilities are too sure of themselves (Petrov &
Macdonald, gSASRec, RecSys 2023, https://arxiv.org/abs/2308.07192).

Masked, it is BERT4Rec (Sun et al., CIKM 2019, https://arxiv.org/abs/1904.06690) with the same blocks and tied
embeddings: attention looks both ways, hidden items are predicted, and a mask after the history stands for the next.

Nothing depends on values, so `torch.func.vmap` trains a user a row, and gives gradients of single users (Opacus through
functorch; its hooks see no layer of a model that owns parameters of its own).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fedrec_app.config import Scalar
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.errors import ConfigError
from fedrec_app.models.base import Batch, ModelOptions, Recommender, UserState
from fedrec_app.models.dropout import dropout
from fedrec_app.models.sequence_rules import SequenceRules

_FAR = -1e9
"""Added to what a softmax leaves out: finite, so that a padded row has a softmax too."""


class SasRec(Recommender):
    """Prediction of next or of hidden items with self-attention; everything is shared."""

    name = "sasrec"
    summary_line = "Transformer over the user's sequence, causal or masked (Kang & McAuley, ICDM 2018)"
    sampling = "sequence"
    recipe: ClassVar[Mapping[str, Scalar]] = {
        "model.embedding-dim": 64,
        "train.unit": "node",
        "train.local-epochs": 2,
        "train.batch-size": 32,
        "train.optimizer": "adamw",
        "train.learning-rate": 2e-3,
        "train.private-learning-rate": 1.0,
        "train.private-epochs": 0,
        "train.num-negatives": 0,
        "train.weight-decay": 0.01,
        "train.schedule": "cosine",
        "evaluate.fold-in-epochs": 0,
        "strategy.name": "fedavg",
        "strategy.options": '{"weighting": "users"}',
    }

    class Options(ModelOptions):
        """Options of the Transformer; its width is `model.embedding-dim`."""

        layers: int = Field(default=2, ge=1, le=64, description="blocks of attention and perceptron")
        heads: int = Field(default=2, ge=1, description="attention heads; they divide model.embedding-dim")
        max_length: int = Field(default=50, ge=1, le=4096, description="L, last items of a history that are read")
        dropout: float = Field(default=0.2, ge=0, lt=1, description="share of activations left out in training")
        crop: float = Field(
            default=0.7, ge=0, le=1, description="share of epochs in which a longer history is cut at a random place"
        )
        mask: float = Field(
            default=0.0, ge=0, le=1, description="share of epochs in which items are hidden from the input"
        )
        reorder: float = Field(
            default=0.0, ge=0, le=1, description="share of epochs in which a part of the history is shuffled"
        )
        negatives: int = Field(
            default=0,
            ge=0,
            description="items drawn a user and epoch for a sampled softmax; 0: all items, full softmax",
        )
        objective: Literal["next", "masked"] = Field(
            default="next",
            description="next: each item predicts the next; masked: hidden items are predicted (BERT4Rec)",
        )
        mask_share: float = Field(
            default=0.2, gt=0, lt=1, description="share of items that are hidden, by objective=masked or by mask"
        )
        mask_last: float = Field(
            default=0.2, ge=0, le=1, description="share of epochs in which objective=masked hides the last item alone"
        )

    def __init__(self, embedding_dim: int, options: Options) -> None:
        super().__init__(embedding_dim, options)
        if embedding_dim % options.heads:
            raise ConfigError(f"heads is {options.heads}: it must divide model.embedding-dim = {embedding_dim}")
        self.max_length, self.crop = options.max_length, options.crop
        self.masked = options.objective == "masked"
        self.whole_catalog = options.negatives == 0
        self.sequence_rules = SequenceRules(
            self.masked, options.mask_share, options.mask_last, options.mask, options.reorder, options.negatives
        )

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        """Makes (num_items, d) item and (L, d) position embeddings, masked one more and the (d,) mask, and blocks."""
        d = self.embedding_dim
        self.item_embedding = nn.Parameter(torch.randn(len(catalog), d) * 0.02)
        self.position_embedding = nn.Parameter(torch.randn(self.max_length + self.masked, d) * 0.02)
        if self.masked:
            self.mask_embedding = nn.Parameter(torch.randn(d) * 0.02)
        self.blocks = nn.ModuleList(Block(d, self.options.heads) for _ in range(self.options.layers))
        self.norm = nn.LayerNorm(d)

    def row_names(self) -> list[str]:
        """Returns the item embeddings."""
        return ["item_embedding"]

    def loss(self, batch: Batch) -> Tensor:
        """Returns (B,) the mean cross-entropy of what each user's cells are to predict."""
        weights = batch["weights"]
        states = self._states(batch["items"], batch["present"], batch.get("hidden"), batch.get("noise"))
        if self.options.negatives:
            each = self._sampled_softmax(states, batch["targets"], batch["negatives"])
        else:
            logits = states @ self.item_embedding.T
            each = nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none")
        return (each.view(weights.shape) * weights).sum(-1) / weights.sum(-1).clamp(min=1.0)

    def _sampled_softmax(self, states: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        """Returns (B, T) cross-entropies over the target of each cell and its user's sample.

        Args:
            states: (B, T, d).
            targets: (B, T).
            negatives: (B, n); they count for no cell of which one is the target.
        """
        rows, others = (nn.functional.embedding(items, self.item_embedding) for items in (targets, negatives))
        logit = (states * rows).sum(-1, keepdim=True)
        logits = (states @ others.transpose(1, 2)).masked_fill(negatives[:, None] == targets[..., None], _FAR)
        return (torch.cat([logit, logits], dim=-1).logsumexp(-1, keepdim=True) - logit).squeeze(-1)

    def encode(self, histories: Histories, users: Tensor) -> UserState:
        """Returns the state after the last item of each history, or of a mask after it, (num_users, d); zeros without
        any."""
        lengths = np.minimum(histories.lengths, self.max_length)
        width = max(int(lengths.max(initial=0)), 1)
        back = np.arange(width)[::-1]
        present = back < lengths[:, None]
        at = np.where(present, histories.indptr[1:, None] - 1 - back, -1)
        device = self.item_embedding.device
        items = torch.from_numpy(np.append(histories.items, 0)[at]).to(device)
        real = torch.from_numpy(present.astype(np.float32)).to(device)
        some, hidden = real[:, -1:], None
        if self.masked:
            pad = nn.functional.pad
            items, real, hidden = pad(items, (0, 1)), pad(real, (0, 1), value=1.0), pad(0 * real, (0, 1), value=1.0)
        states = self._states(items, real, hidden, None)[:, -1]
        return {"state": states * some}

    def score(self, state: UserState, items: Tensor) -> Tensor:
        """Returns (num_users, num_items) logits."""
        return state["state"] @ self.item_embedding[items].T

    def _states(self, items: Tensor, present: Tensor, hidden: Tensor | None, noise: Tensor | None) -> Tensor:
        """Returns (B, T, d) the states of each item.

        Args:
            items: (B, T) right-aligned, anything where there is none.
            present: (B, T) 1 where there is an item, else 0.
            hidden: (B, T) 1 where the mask, or where there is none nothing but the position, stands for the item.
            noise: (B,) int64 what dropout is drawn from; None: no dropout.
        """
        width = items.shape[1]
        rate = self.options.dropout
        shown = present if hidden is None else present * (1 - hidden)
        x = nn.functional.embedding(items, self.item_embedding) * math.sqrt(self.embedding_dim) * shown[..., None]
        if self.masked and hidden is not None:
            x = x + self.mask_embedding * math.sqrt(self.embedding_dim) * hidden[..., None]
        x = dropout(x + self.position_embedding[-width:], rate, noise, 0)
        sees = torch.ones(width, width, device=x.device)
        if not self.masked:
            sees = sees.tril()
        far = (1 - sees * present[:, None, :])[:, None] * _FAR
        for n, block in enumerate(self.blocks):
            x = block(x, far, rate, noise, 2 * n + 1)
        return self.norm(x)


class Block(nn.Module):
    """Attention and a perceptron, each on the normalised state and added to it.

    Args:
        dim: d, width of the states.
        heads: of the attention.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.value, self.output = (nn.Linear(dim, dim) for _ in range(3))
        # A bias of keys moves all attention of a row alike: it would only gather rounding, which Adam scales up.
        self.key = nn.Linear(dim, dim, bias=False)
        self.expand, self.contract = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, far: Tensor, rate: float, noise: Tensor | None, site: int) -> Tensor:
        """Returns (B, T, d) the next states.

        Args:
            x: (B, T, d).
            far: (B, 1, T, T) what is added to attention.
            rate, noise, site: of dropout; the block has this site and the next.
        """
        y = self.attention_norm(x)
        query, key, value = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attention = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + far).softmax(-1)
        mixed = self.output((attention @ value).transpose(1, 2).flatten(-2))
        x = x + dropout(mixed, rate, noise, site)
        wide = nn.functional.gelu(self.expand(self.mlp_norm(x)))
        return x + dropout(self.contract(wide), rate, noise, site + 1)
