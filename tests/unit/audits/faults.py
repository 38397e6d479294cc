"""Ways to break user-level privacy, planted into the code that runs use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedrec_app.privacy import clipping
from fedrec_app.privacy.clipping import Clipped
from fedrec_app.records import Arrays, Said
from strategies import release
from strategies.dp_fedavg import DPFedAvg
from strategies.update import Update


def half_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = release.add_noise
    monkeypatch.setattr(release, "add_noise", lambda sums, z, bound: honest(sums, z / 2, bound))


def replayed_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(sums: Arrays, z: float, bound: float) -> Arrays:
        generator = np.random.default_rng(0)
        return {name: array + generator.normal(0, z * bound, array.shape) for name, array in sums.items()}

    monkeypatch.setattr(release, "add_noise", add)


def noise_left_out_of_one_array(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = release.add_noise

    def add(sums: Arrays, z: float, bound: float) -> Arrays:
        forgotten = sorted(sums)[0]
        return {**honest(sums, z, bound), forgotten: sums[forgotten]}

    monkeypatch.setattr(release, "add_noise", add)


def no_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = clipping.clip_and_sum
    monkeypatch.setattr(clipping, "clip_and_sum", lambda deltas, bound: honest(deltas, 1e9))


def clipping_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = clipping.clip_and_sum

    def clip(deltas: Mapping[str, Tensor], bound: float) -> Clipped:
        alone = {name: honest({name: each}, bound).sums[name] for name, each in deltas.items()}
        return replace(honest(deltas, bound), sums=alone)

    monkeypatch.setattr(clipping, "clip_and_sum", clip)


def weights_by_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last user, the canary where he is there, has three times as many examples as the others have on average."""
    honest = clipping.clip_and_sum

    def clip(deltas: Mapping[str, Tensor], bound: float) -> Clipped:
        first, last = (torch.cat([each[at].ravel() for each in deltas.values()]) for at in (0, -1))
        all_of_them = honest(deltas, bound)
        heavy = honest({name: each[-1:] for name, each in deltas.items()}, bound).sums
        more = 2.0 if first @ last < 0 else 0.0
        sums = {name: total + more * heavy[name] for name, total in all_of_them.sums.items()}
        return replace(all_of_them, sums=sums)

    monkeypatch.setattr(clipping, "clip_and_sum", clip)


def denominator_by_arrivals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of whoever came: one more user moves it by the difference to all others, who point the other way."""
    sums, step = DPFedAvg.aggregate, DPFedAvg.server_step
    came: list[float] = []

    def aggregate(self: DPFedAvg, updates: Any, params: Arrays) -> Arrays:
        listed: list[Update] = list(updates)
        came[:] = [sum(update.scalars[Said.NUM_USERS] for update in listed)]
        return sums(self, iter(listed), params)

    def server_step(self: DPFedAvg, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        after, more = step(self, params, delta, server_round), self.releases.privacy.expected / came[0]
        return {name: (more * array).astype(array.dtype) for name, array in after.items()}

    monkeypatch.setattr(DPFedAvg, "aggregate", aggregate)
    monkeypatch.setattr(DPFedAvg, "server_step", server_step)
