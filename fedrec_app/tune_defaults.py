"""What `fedrec tune` searches in a built-in model where nobody says: values around the model's own recipe."""

from __future__ import annotations

from collections.abc import Mapping

SPACES: Mapping[str, Mapping[str, str]] = {
    "mf": {
        "model.embedding-dim": "16|32|64",
        "model.options.unobserved_weight": "log:0.02..0.5",
        "model.options.regularization": "log:0.002..0.2",
        "model.options.recency": "0..2",
        "strategy.options.learning_rate": "log:0.005..0.1",
    },
    "neumf": {
        "model.embedding-dim": "8|16|32",
        "model.options.recency": "0..2",
        "train.private-learning-rate": "log:2..40",
        "train.num-negatives": "int:1..8",
        "strategy.options.learning_rate": "log:0.003..0.1",
    },
    "pfedrec": {
        "model.embedding-dim": "16|32|64",
        "model.options.view_learning_rate": "log:0.01..1",
        "train.private-learning-rate": "log:2..40",
        "train.num-negatives": "int:1..8",
        "strategy.options.learning_rate": "log:0.003..0.1",
    },
    "sasrec": {
        "model.embedding-dim": "32|64|128",
        "model.options.layers": "int:1..3",
        "model.options.max_length": "20|50|100",
        "model.options.dropout": "0..0.5",
        "model.options.crop": "0..1",
        "train.local-epochs": "int:1..4",
        "train.learning-rate": "log:0.0005..0.008",
        "train.weight-decay": "log:0.001..0.1",
    },
    "ease": {
        "model.options.regularization": "log:5..5000",
        "model.options.recency": "0..1.5",
    },
    "itemknn": {
        "model.options.neighbors": "20|50|100|200|500",
        "model.options.shrinkage": "0..100",
        "model.options.recency": "0..1.5",
    },
    "popularity": {},
}
