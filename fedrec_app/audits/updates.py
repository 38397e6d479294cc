"""Updates as they leave a node, made by the run's own client for nodes of a few users."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec_app import node_data, pretrained
from fedrec_app.client import ARRAYS_IN, ARRAYS_OUT, RecommenderClient
from fedrec_app.config import RunConfig
from fedrec_app.errors import ConfigError
from fedrec_app.finished import FinishedRun
from fedrec_app.models.adapted import Adapted
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.node_settings import NodeSettings
from fedrec_app.records import CONTROL, ROWS, Arrays, Ask
from fedrec_app.run_strategy import strategy_of
from fedrec_app.seeding import rng
from strategies.base import RecStrategy
from strategies.update import Update


@dataclass(frozen=True)
class NodeUpdate:
    """What one node sent, and what its users hoped to keep.

    Attributes:
        deltas: by shared parameter, whole.
        items: of each user of the node: (n,) positions, each once.
    """

    deltas: Arrays
    items: list[NDArray[np.int64]]

    @property
    def norm(self) -> float:
        """L2 norm over all arrays together."""
        return float(np.sqrt(sum(np.square(delta, dtype=np.float64).sum() for delta in self.deltas.values())))


class UpdateSource:
    """Nodes of a run that train from the same shared parameters.

    Args:
        config: resolved.
        finished: starts from its parameters; None: from those that the run starts with.

    Attributes:
        model: bound without users.
        shared: its parameters, by name.

    Raises:
        FedrecError: the model is solved and not trained, or cannot be made.
    """

    def __init__(self, config: RunConfig, finished: FinishedRun | None = None) -> None:
        self._config = config.model_copy(update={"data": config.data.model_copy(update={"partition": "users"})})
        catalog = node_data.catalog(config.data) if finished is None else finished.catalog()
        self.model, _ = pretrained.start(config, catalog)
        if isinstance(self.model, ClosedForm):
            raise ConfigError(
                f"model {self.model.name!r} is solved from statistics of at least privacy.min-cohort users: no node "
                "sends updates that could be attacked"
            )
        own = {name: self.model.get_parameter(name).detach().numpy() for name in self.model.shared_names()}
        self.shared: Arrays = own if finished is None else finished.shared
        self._strategy = strategy_of(config, self.model)
        self._everybody = node_data.cohort(self._config.data, None, 1).train

    @property
    def users(self) -> int:
        """How many users have something to train on."""
        return int((self._everybody.lengths > 0).sum())

    def popularity(self) -> NDArray[np.int64]:
        """Returns (num_items,) training interactions of each item."""
        return np.bincount(self._everybody.items, minlength=len(node_data.catalog(self._config.data)))

    def nodes(
        self, size: int, number: int, clip_norm: float | None = None, sampling_rate: float = 1.0
    ) -> Iterator[NodeUpdate]:
        """Yields the updates of different nodes, drawn by the run's seed.

        Args:
            size: users of each node, or one more; all users where there are no more than these.
            number: of nodes, or as many as there are.
            clip_norm: C that the message asks for, of user-level privacy; None: the run's own.
            sampling_rate: q, of user-level privacy; whoever does not take part shows nothing.
        """
        total = max(1, len(self._everybody) // size)
        chosen = rng(self._config.seed, "audit-nodes", size).permutation(total)[:number]
        privacy = self._config.privacy.model_copy(update={"sampling_rate": sampling_rate})
        config = self._config.model_copy(update={"privacy": privacy})
        with tempfile.TemporaryDirectory() as folder:
            for partition in chosen:
                client = RecommenderClient(config, NodeSettings(int(partition), total, Path(folder), durable=False))
                train = client.cohort.train
                if len(train.items):
                    items = [np.unique(train[user]) for user in range(len(train)) if len(train[user])]
                    yield NodeUpdate(self._deltas(client, clip_norm), items)

    def _deltas(self, client: RecommenderClient, clip_norm: float | None) -> Arrays:
        sent, ask = dict(self.shared), self._ask(client, clip_norm)
        part = getattr(self._strategy, "client_part", None)
        if part is not None and part.has_controls:
            sent |= {CONTROL + name: np.zeros_like(array) for name, array in self.shared.items()}
        config = {**ask, ARRAYS_IN: json.dumps(list(sent))}
        arrays, _, said = client.fit(list(sent.values()), config)
        named = dict(zip(json.loads(said[ARRAYS_OUT]), arrays, strict=True))
        if Ask.UPDATE not in ask:
            return {name: named[name] - array for name, array in self.shared.items()}
        num_rows = {name: len(array) for name, array in self.shared.items() if ROWS + name in named}
        update = Update(named, {}, num_rows=num_rows)
        return {name: update.delta(name) for name in self.shared}

    def _ask(self, client: RecommenderClient, clip_norm: float | None) -> dict[str, Any]:
        """Returns what the strategy of the run tells nodes."""
        ask: dict[str, Any] = {Ask.ROUND: 1, Ask.LINEAGE: "audit"}
        if isinstance(self.model, Adapted):
            ask[Ask.BASE_HASH] = self.model.base.digest
            client.keep_base(self.model.base.arrays(), ask)
        if isinstance(self._strategy, RecStrategy):
            ask |= {Ask.UPDATE: "delta", Ask.WEIGHTING: self._strategy.weighting, **self._strategy.ask()}
        return ask | ({} if clip_norm is None else {Ask.CLIP_NORM: clip_norm})
